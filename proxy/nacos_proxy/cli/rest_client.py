"""The REST client of the command line: calls a running proxy and turns its errors into messages."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

from nacos_proxy.client.http import plain_client
from nacos_proxy.model.masking import shown_url

TIMEOUT = 10.0  # seconds
MAX_SILENCE = 40.0  # seconds; an event stream sends a comment every 15 s

_HINTS = {
    401: "Set an API token: --token, or NACOS_PROXY_TOKEN.",
    429: "Try again later.",
}


class Unreached(Exception):
    """No proxy answered at the address."""


class ApiProblem(Exception):
    """The proxy answered with an error: its title and detail, and a hint."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def temporary(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status == 429 or self.status >= 500


class RestClient:
    """A client of the REST API of the proxy at `server`: an `http(s)://` URL, `host:port` or `unix:PATH`.

    `ca` and `cert` are PEM files for https: certificate authorities, and a client certificate with its key. Raises
    `ValueError` for an invalid URL, token or file, `Unreached` if nothing listens on the Unix socket.
    """

    def __init__(
        self,
        server: str,
        token: str = "",
        *,
        ca: str = "",
        cert: str = "",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not (token.isascii() and token.isprintable()):
            raise ValueError("an API token consists of printable ASCII characters")
        self.local = False  # whether the proxy gave the last answer by itself, because the upstream is down
        headers = [("authorization", f"Bearer {token}")] if token else []
        if server.startswith("unix:"):
            transport = _unix(server.removeprefix("unix:"))
            server = "http://localhost"
        base = server if "://" in server else f"http://{server}"
        try:
            self._http = plain_client(base, headers, timeout=TIMEOUT, transport=transport, verify=_tls(ca, cert))
        except httpx.InvalidURL as error:
            reason = "" if "@" in server else f": {error}"  # the error may quote a password as the port
            raise ValueError(f"{shown_url(server)!r} is not a URL{reason}") from error
        self._url = shown_url(str(self._http.base_url))
        if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
            raise ValueError(f"{shown_url(server)!r} is not the URL of a proxy; write it like http://127.0.0.1:8840")

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        *,
        max_wait: float = 0.0,
    ) -> httpx.Response:
        """`max_wait`: seconds that the proxy may wait before it answers. Raises `Unreached` or `ApiProblem`."""
        params = {k: v for k, v in (query or {}).items() if v != ""}
        self.local = False
        try:
            reply = self._http.request(method, path, params=params or None, json=body, timeout=TIMEOUT + max_wait)
        except httpx.HTTPError as error:
            raise self._unreached(error) from error
        if reply.status_code >= 400:
            raise _problem(reply)
        self.local = reply.headers.get("nacos-proxy-answer") == "local"
        return reply

    def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        *,
        max_wait: float = 0.0,
    ) -> Any:
        """Returns the JSON object of the answer. `max_wait` as in `call`. Raises `Unreached` or `ApiProblem`."""
        reply = self.call(method, path, query, body, max_wait=max_wait)
        try:
            body = reply.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreached(f"the server at {self._url} is not a nacos-proxy. Check --server.")
        return body  # pyright: ignore[reportUnknownVariableType]

    def events(
        self,
        query: Mapping[str, str | list[str]],
        last_id: str = "",
        opened: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> Generator[tuple[str, str, Any], None, None]:
        """Yields (id, type, data) of each event until the stream ends. Raises `Unreached` or `ApiProblem`.

        When the stream begins, calls `opened` with a function that ends it, for other threads.
        """
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        timeout = httpx.Timeout(10.0, read=MAX_SILENCE)
        try:
            with self._http.stream("GET", "/api/v1/events", params=query, headers=headers, timeout=timeout) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise _problem(reply)
                opened(functools.partial(_shut_down, reply))
                for event in EventSource(reply).iter_sse():
                    if event.data:  # an event without data only sets `retry`
                        yield event.id, event.event, json.loads(event.data)
        except (httpx.HTTPError, ValueError) as error:
            raise self._unreached(error) from error

    def _unreached(self, error: Exception) -> Unreached:
        reason = str(error) or type(error).__name__
        text = f"no proxy answers at {self._url}: {reason}. Is `nacos-proxy serve` running there? Check --server."
        return Unreached(text)


def _shut_down(reply: httpx.Response) -> None:
    """Ends a stream that another thread reads: only a shutdown of its socket wakes that thread."""
    stream = reply.extensions.get("network_stream")
    if stream is not None and (connection := stream.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _unix(path: str) -> httpx.BaseTransport:
    """Tries to connect first, because httpx does not close a Unix socket that could not connect."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            raise Unreached(f"no proxy answers at unix:{path}: {error.strerror or error}. Check --server.") from error
    return httpx.HTTPTransport(uds=path)


def _tls(ca: str, cert: str) -> ssl.SSLContext | bool:
    if not ca and not cert:
        return True
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert)
    except OSError as error:
        raise ValueError(f"cannot use {ca or cert}: {error.strerror or error}") from error
    return context


def _problem(reply: httpx.Response) -> ApiProblem:
    try:
        body: Any = reply.json()
        title, detail = str(body.get("title", "")), str(body.get("detail", ""))
    except (ValueError, AttributeError):
        title, detail = f"{reply.status_code} {reply.reason_phrase}", reply.text[:500].strip()
    text = f"{title}: {detail}" if detail else title
    hint = _HINTS.get(reply.status_code, "")
    return ApiProblem(reply.status_code, f"{text}. {hint}".replace("..", ".") if hint else text)


def service_path(service: str, *more: str) -> str:
    """The path of a service in the REST API, followed by the segments `more`."""
    return "/".join(["/api/v1/services", quote(service, safe=""), *more])


def address_segment(address: str) -> str:
    """`ip:port` or `[ipv6]:port` as a path segment. Raises `ValueError`."""
    ip, separator, port = address.rpartition(":")
    bare = ":" in ip and not (ip.startswith("[") and ip.endswith("]"))
    if not separator or not (port.isascii() and port.isdecimal()) or not ip or bare:
        raise ValueError(f"{address!r} is not ip:port; write an IPv6 address in brackets, as in [2001:db8::1]:8080")
    return quote(address, safe="[]:.")

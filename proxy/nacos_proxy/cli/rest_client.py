"""The REST client of the command line: calls a running proxy and turns its errors into messages.

It uses http.client, because to import httpx takes longer than all that a command does.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Generator, Mapping
from email.message import Message
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.model.masking import shown_url
from nacos_proxy.model.printable import printable
from nacos_proxy.wire.compression import COMPRESSED_ANSWER, NO_COMPRESSION, content_codings
from nacos_proxy.wire.rest.sse import CONTENT_TYPE, decode

TIMEOUT = 10.0  # seconds
MAX_SILENCE = 40.0  # seconds; an event stream sends a comment every 15 s
_CHUNK = 1 << 16  # bytes

_HINTS = {
    401: "Set an API token: --token, or NACOS_PROXY_TOKEN.",
    429: "Try again later.",
}

Connect = Callable[[float], http.client.HTTPConnection]
"""Makes a connection, not connected yet, with a time-out in seconds."""


class Reply(NamedTuple):
    """An answer. Names in `headers` are compared without case."""

    status: int
    reason: str
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class RestClient:
    """A client of the REST API of the proxy at `server`: an `http(s)://` URL, `host:port` or `unix:PATH`.

    `ca` and `cert` are PEM files for https: certificate authorities, and a client certificate with its key. Raises
    `ValueError` for an invalid URL, token or file.
    """

    def __init__(
        self, server: str, token: str = "", *, ca: str = "", cert: str = "", connect: Connect | None = None
    ) -> None:
        if not (token.isascii() and token.isprintable()):
            raise ValueError("an API token consists of printable ASCII characters")
        self.local = False  # whether the proxy gave the last answer by itself, because the upstream is down
        self._headers = dict([NO_COMPRESSION, *([("Authorization", f"Bearer {token}")] if token else [])])
        base = server if "://" in server or server.startswith("unix:") else f"http://{server}"
        self._url = shown_url(base).rstrip("/")
        if server.startswith("unix:"):
            self._prefix, default = "", functools.partial(_UnixConnection, server.removeprefix("unix:"))
        else:
            url = _split(base)
            self._prefix, default = url.path.rstrip("/"), _tcp(url, ca, cert)
        self._connect: Connect = connect or default

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close: each call has a connection of its own."""

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        *,
        max_wait: float = 0.0,
    ) -> Reply:
        """`max_wait`: seconds that the proxy may wait before it answers. Raises `Unreached` or `ApiProblem`."""
        self.local = False
        data, headers = None, {}
        if body is not None:
            data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        connection = self._connect(TIMEOUT + max_wait)
        try:
            reply = _whole(self._ask(connection, method, _target(path, query or {}), headers, data))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreached(error) from error
        finally:
            connection.close()
        self._check(reply)
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
        return self.read_json(self.call(method, path, query, body, max_wait=max_wait))

    def read_json(self, reply: Reply) -> Any:
        """The JSON object of an answer. Raises `Unreached` if it is none: then another program answers."""
        try:
            body = json.loads(reply.body)
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
        headers = {"Accept": CONTENT_TYPE} | ({"Last-Event-ID": last_id} if last_id else {})
        connection = self._connect(TIMEOUT)
        try:
            connection.connect()
            ours = connection.sock  # http.client forgets it if the answer ends with the connection
            answer = self._ask(connection, "GET", _target("/api/v1/events", query), headers)
            if not 200 <= answer.status < 300:
                self._check(_whole(answer))
            if not (answer.headers.get("content-type") or "").startswith(CONTENT_TYPE):
                raise ValueError("the answer is no event stream")
            ours.settimeout(MAX_SILENCE)
            opened(functools.partial(_shut_down, ours))
            for event in decode(iter(functools.partial(answer.read1, _CHUNK), b"")):
                if event.data:  # an event without data only sets `retry`
                    yield event.id, event.kind, json.loads(event.data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreached(error) from error
        finally:
            connection.close()

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> http.client.HTTPResponse:
        connection.request(method, self._prefix + target, body, {**self._headers, **headers})
        answer = connection.getresponse()
        codings = answer.headers.get_all("content-encoding") or ()
        if coding := content_codings((b"content-encoding", value.encode("latin-1")) for value in codings):
            raise ValueError(COMPRESSED_ANSWER.format(coding))
        return answer

    def _check(self, reply: Reply) -> None:
        if reply.status >= 400:
            raise _problem(reply)
        if not 200 <= reply.status < 300:
            where = printable(reply.headers.get("location", "")[:200]) or "nowhere"
            raise Unreached(f"the server at {self._url} redirects to {where}. Check --server.")

    def _unreached(self, error: Exception) -> Unreached:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = f"no proxy answers at {self._url}: {reason}. Is `nacos-proxy serve` running there? Check --server."
        return Unreached(text)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _split(base: str) -> SplitResult:
    try:
        url = urlsplit(base)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError as error:
        reason = "" if "@" in base else f": {error}"  # the error may quote a password as the port
        raise ValueError(f"{shown_url(base)!r} is not a URL{reason}") from error
    if not good:
        raise ValueError(f"{shown_url(base)!r} is not the URL of a proxy; write it like http://127.0.0.1:8840")
    return url


def _tcp(url: SplitResult, ca: str, cert: str) -> Connect:
    host = url.hostname or ""
    if url.scheme == "http":
        return lambda timeout: http.client.HTTPConnection(host, url.port, timeout=timeout)
    context = _tls(ca, cert)
    return lambda timeout: http.client.HTTPSConnection(host, url.port, timeout=timeout, context=context)


def _tls(ca: str, cert: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert)
    except OSError as error:
        raise ValueError(f"cannot use {ca or cert}: {error.strerror or error}") from error
    return context


def _target(path: str, query: Mapping[str, str | list[str]]) -> str:
    given = {name: value for name, value in query.items() if value != ""}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def _whole(answer: http.client.HTTPResponse) -> Reply:
    return Reply(answer.status, answer.reason, answer.headers, answer.read())


def _shut_down(connection: socket.socket) -> None:
    """Ends a stream that another thread reads: only a shutdown of its socket wakes that thread."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _problem(reply: Reply) -> ApiProblem:
    """The detail says all, but not whether it was the upstream that refused."""
    try:
        body: Any = json.loads(reply.body)
        kind, title, detail = (str(body.get(name, "")) for name in ("type", "title", "detail"))
    except (ValueError, AttributeError):
        kind, title, detail = "upstream", f"{reply.status} {reply.reason}", reply.text[:500].strip()
    text = f"{title}: {detail}" if detail and "upstream" in kind else detail or title
    hint = _HINTS.get(reply.status, "")
    return ApiProblem(reply.status, f"{text.removesuffix('.')}. {hint}" if hint else text)


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

"""The HTTP of the command line: one call to a running proxy, its answer or its problem as a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

SILENCE = 40.0  # seconds; a living event stream has a comment every 15


class Unreached(Exception):
    """No proxy answered; says where it was looked for."""


class Problem(Exception):
    """The proxy said no: its title and detail, and what to do where it says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RestClient:
    """Talks to the REST API of one proxy."""

    def __init__(self, server: str, token: str = "", transport: httpx.BaseTransport | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if server.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=server.removeprefix("unix:"))
            server = "http://localhost"
        base = server if "://" in server else f"http://{server}"
        self._http = httpx.Client(base_url=base, headers=headers, timeout=10.0, transport=transport, trust_env=False)

    def call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None
    ) -> httpx.Response:
        """The answer. Raises `Unreached` or `Problem`."""
        try:
            params = {k: v for k, v in (query or {}).items() if v != ""}
            reply = self._http.request(method, path, params=params or None, json=body)
        except httpx.HTTPError as error:
            raise self._unreached(error) from error
        if reply.status_code >= 400:
            raise _problem(reply)
        return reply

    def events(self, query: Mapping[str, str | list[str]], last_id: str = "") -> Iterator[tuple[str, str, Any]]:
        """(id, type, data) of each event until the stream ends. Raises `Unreached` or `Problem`."""
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        timeout = httpx.Timeout(10.0, read=SILENCE)
        try:
            with self._http.stream("GET", "/api/v1/events", params=query, headers=headers, timeout=timeout) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise _problem(reply)
                for event in EventSource(reply).iter_sse():
                    if not event.data:  # a `retry` alone
                        continue
                    yield event.id, event.event, json.loads(event.data)
        except httpx.HTTPError as error:
            raise self._unreached(error) from error

    def _unreached(self, error: Exception) -> Unreached:
        text = f"no proxy answers at {self._http.base_url}: {error}. Is `nacos-proxy serve` running there? (--server)"
        return Unreached(text)


def _problem(reply: httpx.Response) -> Problem:
    try:
        body: Any = reply.json()
        title, detail = str(body.get("title", "")), str(body.get("detail", ""))
    except (ValueError, AttributeError):
        title, detail = reply.reason_phrase, reply.text[:500]
    return Problem(reply.status_code, f"{title}: {detail}" if detail else title)


def service_path(service: str, *more: str) -> str:
    """The path of a service, its name percent-encoded, and what stands behind it."""
    return "/".join(["/api/v1/services", quote(service, safe=""), *more])


def place_of(address: str) -> str:
    """`ip:port` or `[ipv6]:port` as a path segment. Raises `ValueError`."""
    ip, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or not ip:
        raise ValueError(f"{address!r} is no ip:port; an IPv6 address stands in brackets, as [2001:db8::1]:8080")
    return quote(address, safe="[]:.")

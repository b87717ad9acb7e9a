"""Passes a request through to a server, streamed both ways, and lets nothing but the context path be reached.

Not for: the naming API (`nacos`), logins: a client's own headers go as they came, and nothing of ours is added.

A path is refused where any reading of it, decoded once or more, with or without `;parameters`, could leave the context
path: dot segments, empty segments (`//host`), backslashes, encoded slashes, control characters (RFC 3986 6.2.2).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import httpx

from proxy.errors import BadCall, Problem, Unreachable, UpstreamError
from proxy.registry.connection import RawHeaders
from proxy.registry.faults import CAUGHT, upstream_error
from proxy.registry.http import Http
from proxy.registry.servers import Server

_PATH = re.compile(r"/[!-;=-~]*")  # printable ASCII but for what no path has
_QUERY = re.compile(r"[!-\"$-~]*")
_BAD = re.compile(r"[\x00-\x20\x7f\\#?\ufffd]")
_METHOD = re.compile(r"[A-Z]{1,20}")
_HOP_BY_HOP = frozenset(  # RFC 9110 7.6.1, and what the transport says by itself
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade http2-settings expect host".split()
)


def safe_target(path: str, query: str) -> str:
    """Path and query as they may be sent behind a context path. Raises `BadCall`."""
    if _PATH.fullmatch(path) is None or _QUERY.fullmatch(query) is None:
        raise _refused("the path must begin with / and hold nothing but printable ASCII")
    reading, before = path, ""
    while reading != before:
        _check_reading(reading)
        before, reading = reading, unquote(reading)
        if reading.count("/") != before.count("/"):
            raise _refused("a slash in it is encoded")
    return f"{path}?{query}" if query else path


def _check_reading(path: str) -> None:
    if _BAD.search(path):
        raise _refused("it holds an encoded character that no path has")
    segments = [segment.partition(";")[0] for segment in path.split("/")[1:]]
    if "." in segments or ".." in segments or "" in segments[:-1]:
        raise _refused("it has a dot segment or an empty one")


def _refused(why: str) -> BadCall:
    return BadCall("path", Problem.OTHER, f"this path is not passed on: {why}")


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Without the headers that are for one connection, those named by `Connection` among them."""
    fields = list(headers)
    named = (value for name, value in fields if name.lower() == b"connection")
    dropped = _HOP_BY_HOP | {token.strip().lower() for value in named for token in value.split(b",")}
    return [(name, value) for name, value in fields if name.lower() not in dropped]


class Passing:
    """An answer on its way; `body` yields it as it comes. Raises what the transport would as our errors."""

    def __init__(self, response: httpx.Response, server: Server) -> None:
        self.status = response.status_code
        self.headers = end_to_end(response.headers.raw)
        self._response = response
        self._server = server

    async def body(self) -> AsyncIterator[bytes]:
        stream: Any = self._response.stream
        try:
            async for chunk in stream:
                yield chunk
        except CAUGHT as error:
            raise upstream_error(error, self._server.origin) from error


class Upload:
    """A client's body, and whether any of it was taken: from then on it cannot be sent again."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self.begun = False
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            self.begun = True
            if chunk:
                yield chunk


def _request(
    http: Http, server: Server, method: str, target: str, headers: RawHeaders, upload: Upload | None
) -> httpx.Request:
    return httpx.Request(
        method, server.url + target, headers=headers, content=upload, extensions={**http.passing, "idempotent": False}
    )


@asynccontextmanager
async def passing(
    http: Http,
    candidates: Iterable[Server],
    outcome: Callable[[Server, UpstreamError | None], None],
    call: tuple[str, str, str, Iterable[tuple[bytes, bytes]], AsyncIterator[bytes]],
) -> AsyncGenerator[Passing]:
    """The answer to `call`: method, raw path behind the context path, raw query, headers, body.

    The next server is asked only where the call did not arrive and nothing of its body was taken. `outcome` is told
    how each server did.
    """
    method, path, query, headers, body = call
    if _METHOD.fullmatch(method) is None or method in ("CONNECT", "TRACE"):
        raise BadCall("method", Problem.OTHER, f"{method[:20]!r} is not passed on", status=405)
    target = safe_target(path, query)
    fields = end_to_end(headers)
    upload = Upload(body) if _has_body(headers) else None
    failed: UpstreamError = Unreachable("no server is known", arrived=False)
    for server in candidates:
        try:
            response = await http.transport.handle_async_request(_request(http, server, method, target, fields, upload))
        except CAUGHT as error:
            failed = upstream_error(error, server.origin)
            outcome(server, failed)
            if failed.arrived or (upload is not None and upload.begun):
                break
            continue
        outcome(server, None)
        try:
            yield Passing(response, server)
        finally:
            await response.aclose()
        return
    raise failed


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    given = {name.lower(): value for name, value in headers}
    return b"transfer-encoding" in given or given.get(b"content-length", b"0").strip() != b"0"

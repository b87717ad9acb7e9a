"""Passes a request through to a server, streamed both ways, and lets nothing but the context path be reached.

Not for: the naming API (`nacos`), logins: a client's own headers go as they came, and nothing of ours is added.

A path is refused where any reading of it, decoded once or more, with or without `;parameters`, could leave the context
path: dot segments, empty segments (`//host`), backslashes, encoded slashes, control characters (RFC 3986 6.2.2). What
is sent is the path that was checked, byte for byte.

    a call that failed          | goes to the next server
    ----------------------------+------------------------------------------------
    did not arrive              | where nothing of its body was taken
    may have arrived            | where it is GET, HEAD or OPTIONS without a body
    found no free connection    | never: that says nothing of the server

All calls about one configuration start at the same server, so that who publishes it reads it back; a server hears of
what another was told some 100 ms later. What names none starts at a server that each proxy draws for itself.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx

from nacos_proxy.model.errors import (
    BadCall,
    Reason,
    Refused,
    Unreachable,
    UpstreamError,
    Violation,
)
from nacos_proxy.upstream.http.connection import RawHeaders
from nacos_proxy.upstream.http.exchange import Http
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.nacos.servers import Server

_PATH = re.compile(r"/[!-;=-~]*")  # printable ASCII but for what no path has
_QUERY = re.compile(r"[!-\"$-~]*")
_BAD = re.compile(r"[\x00-\x20\x7f\\#?\ufffd]")
_METHOD = re.compile(r"[A-Z]{1,20}")
_SAFE = ("GET", "HEAD", "OPTIONS")
_IN_TROUBLE = (502, 503, 504)  # the words of gateways, and of a server that is not ready
_MOST_READINGS = 4  # nobody encodes a path more often; each reading costs its length
_FORM = b"application/x-www-form-urlencoded"
_HOP_BY_HOP = frozenset(  # RFC 9110 7.6.1, and what the transport says by itself
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade http2-settings expect host".split()
)


def safe_target(path: str, query: str) -> str:
    """Path and query as they may be sent behind a context path. Raises `BadCall`."""
    if _PATH.fullmatch(path) is None or _QUERY.fullmatch(query) is None:
        raise _refused("the path must begin with / and hold nothing but printable ASCII")
    reading = path
    for _ in range(_MOST_READINGS):
        _check_reading(reading)
        before, reading = reading, unquote(reading)
        if reading == before:
            return f"{path}?{query}" if query else path
        if reading.count("/") != before.count("/"):
            raise _refused("a slash in it is encoded")
    raise _refused("it is encoded too often")


def _check_reading(path: str) -> None:
    if _BAD.search(path):
        raise _refused("it holds an encoded character that no path has")
    segments = [segment.partition(";")[0] for segment in path.split("/")[1:]]
    if "." in segments or ".." in segments or "" in segments[:-1]:
        raise _refused("it has a dot segment or an empty one")


def _refused(why: str) -> BadCall:
    return BadCall("path", Violation.OTHER, f"this path is not passed on: {why}")


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Without the headers that are for one connection, those named by `Connection` among them."""
    fields = list(headers)
    named = (value for name, value in fields if name.lower() == b"connection")
    dropped = _HOP_BY_HOP | {token.strip().lower() for value in named for token in value.split(b",")}
    return [(name, value) for name, value in fields if name.lower() not in dropped]


def announced(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The bytes of body that a request announces, None where it comes in chunks.

    Raises `BadCall` where two readers could see two ends: both framings, lengths that differ (RFC 9112 6.3, 11.2).
    """
    lengths = {value.strip() for name, value in headers if name.lower() == b"content-length"}
    codings = [value.strip().lower() for name, value in headers if name.lower() == b"transfer-encoding"]
    if codings and (lengths or codings != [b"chunked"]):
        raise BadCall("Transfer-Encoding", Violation.OTHER, "only chunked is passed on, and not with a Content-Length")
    if codings:
        return None
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise BadCall("Content-Length", Violation.OTHER, "the Content-Length is not one number")
    return int(lengths.pop()) if lengths else 0


async def subject(
    query: str, headers: Iterable[tuple[bytes, bytes]], body: AsyncIterator[bytes]
) -> tuple[str, AsyncIterator[bytes]]:
    """The configuration that a call is about, '' for none, and its body, whose beginning may have to be looked at.

    Raises `BadCall` and what the body raises.
    """
    fields = list(headers)
    named = _data_id(query)
    media = next((value for name, value in fields if name.lower() == b"content-type"), b"")
    if named or media.partition(b";")[0].strip().lower() != _FORM or announced(fields) == 0:
        return named, body
    first = await anext(body, b"")
    return _data_id(first.decode("latin-1")), _whole(first, body)


def _data_id(text: str) -> str:
    """The `dataId` of a query or of the beginning of a form."""
    return next((value for name, value in parse_qsl(text) if name == "dataId"), "") if "dataId=" in text else ""


async def _whole(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


Outcome = Callable[[Server, UpstreamError | None], None]


class ForwardedResponse:
    """An answer on its way; `body` yields it as it comes. Raises what the transport would as our errors."""

    def __init__(self, response: httpx.Response, server: Server, outcome: Outcome) -> None:
        self.status = response.status_code
        self.headers = end_to_end(response.headers.raw)
        # the server that we are to the client writes a Date of its own, and nobody may write two
        self.headers = [field for field in self.headers if field[0].lower() != b"date"]
        if self.status in (204, 304):  # a length here is of a body that is not sent
            self.headers = [field for field in self.headers if field[0].lower() != b"content-length"]
        self._response = response
        self._server = server
        self._outcome = outcome

    async def body(self) -> AsyncIterator[bytes]:
        stream: Any = self._response.stream
        try:
            async for chunk in stream:
                yield chunk
        except CAUGHT as error:
            failed = upstream_error(error, self._server.origin)
            self._outcome(self._server, failed)
            raise failed from error


class Upload:
    """A client's body. `begun`: some of it was taken, and it cannot be sent again. `broken`: what the client did."""

    def __init__(self, body: AsyncIterator[bytes], length: int | None) -> None:
        self.begun = False
        self.broken: Exception | None = None
        self._body = body
        self._length = length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._body:
                self.begun = True
                size += len(chunk)
                if self._length is not None and size > self._length:
                    raise _wrong_length(self._length)
                if chunk:
                    yield chunk
            if self._length is not None and size < self._length:
                raise _wrong_length(self._length)
        except Exception as error:
            self.broken = error
            raise


def _wrong_length(length: int) -> BadCall:
    return BadCall("Content-Length", Violation.OTHER, f"the body is not of the {length} bytes that were announced")


def _request(
    http: Http, server: Server, method: str, target: str, headers: RawHeaders, upload: Upload | None
) -> httpx.Request:
    extensions = {**http.passing, "target": f"{server.context}{target}".encode()}
    return httpx.Request(method, server.origin, headers=headers, content=upload, extensions=extensions)


def _trouble(server: Server, status: int) -> Refused | None:
    if status not in _IN_TROUBLE:
        return None
    return Refused(Reason.OTHER, f"{server.origin}: passed on, and answered with status {status}", status=status)


def _failed(error: BaseException, server: Server, upload: Upload | None) -> UpstreamError:
    """What the server did. Raises what was the client's fault."""
    if upload is not None and upload.broken is error:
        raise error
    if isinstance(error, httpx.LocalProtocolError):
        raise BadCall("headers", Violation.OTHER, "a header holds what no header may") from error
    return upstream_error(error, server.origin)


@asynccontextmanager
async def passing(
    http: Http,
    candidates: Iterable[Server],
    outcome: Outcome,
    call: tuple[str, str, str, Iterable[tuple[bytes, bytes]], AsyncIterator[bytes]],
) -> AsyncGenerator[ForwardedResponse]:
    """The answer to `call`: method, raw path behind the context path, raw query, headers, body.

    `outcome` is told how each server did. Raises `BadCall`, `UpstreamError`s, and what the body raises.
    """
    method, path, query, headers, body = call
    if _METHOD.fullmatch(method) is None or method in ("CONNECT", "TRACE"):
        raise BadCall("method", Violation.OTHER, f"{method[:20]!r} is not passed on", status=405)
    target = safe_target(path, query)
    length = announced(headers)
    fields = [field for field in end_to_end(headers) if field[0].lower() != b"content-length"]
    if length:
        fields.append((b"content-length", b"%d" % length))
    upload = Upload(body, length) if length != 0 else None
    failed: UpstreamError = Unreachable("no server is known", arrived=False)
    for server in candidates:
        try:
            response = await http.transport.handle_async_request(_request(http, server, method, target, fields, upload))
        except CAUGHT as error:
            failed = _failed(error, server, upload)
            if isinstance(error, httpx.PoolTimeout):
                break
            outcome(server, failed)
            if (upload is not None and upload.begun) or (failed.arrived and (method not in _SAFE or upload)):
                break
            continue
        outcome(server, _trouble(server, response.status_code))
        try:
            yield ForwardedResponse(response, server, outcome)
        finally:
            await response.aclose()
        return
    raise failed

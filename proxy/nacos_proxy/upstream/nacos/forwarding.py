"""Forwards a request to a server, streamed both ways, and only below the context path.

The client's end-to-end headers are sent unchanged, without this proxy's token or identity, but with the id of the
request and the proxies on its way (`request_context`), and with the API token of an upper proxy.

A path is refused if any reading of it, decoded once or more often, with or without `;parameters`, could leave the
context path: dot segments, empty segments (`//host`), backslashes, encoded slashes, control characters (RFC 3986
6.2.2). An accepted path is sent byte for byte.

    a request that failed       | is sent to the next server
    ----------------------------+------------------------------------------------
    did not arrive              | unless some of its body was consumed
    may have arrived            | if it is GET, HEAD or OPTIONS without a body
    found no free connection    | never: that says nothing about the server

All requests about a configuration start at the same server, so that a client reads back what it published: the other
servers show it only some 100 ms later.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx

from nacos_proxy.model.errors import BadCall, Reason, Refused, Unreachable, UpstreamError, Violation
from nacos_proxy.upstream.http.connection import RawHeaders
from nacos_proxy.upstream.http.exchange import HttpClient
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.nacos.servers import Server

_PATH = re.compile(r"/[!-;=-~]*")  # printable ASCII that a path may contain
_QUERY = re.compile(r"[!-\"$-~]*")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\#?\ufffd]")
_METHOD = re.compile(r"[A-Z]{1,20}")
_SAFE = ("GET", "HEAD", "OPTIONS")
_UNAVAILABLE_STATUSES = (502, 503, 504)  # gateways, and servers that are not ready, answer these
_MAX_READINGS = 4  # honest clients encode a path less often, and the cost of a reading grows with its length
_FORM = b"application/x-www-form-urlencoded"
_HOP_BY_HOP = frozenset(  # RFC 9110 7.6.1, and headers that the transport writes
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade http2-settings expect host".split()
)


def safe_target(path: str, query: str) -> str:
    """Path and query, to append to a context path. Raises `BadCall` if they could leave it."""
    if _PATH.fullmatch(path) is None or _QUERY.fullmatch(query) is None:
        raise _refused("the path must begin with / and contain only printable ASCII")
    reading = path
    for _ in range(_MAX_READINGS):
        _check_reading(reading)
        before, reading = reading, unquote(reading)
        if reading == before:
            return f"{path}?{query}" if query else path
        if reading.count("/") != before.count("/"):
            raise _refused("it contains an encoded slash")
    raise _refused("it is encoded too often")


def _check_reading(path: str) -> None:
    if _FORBIDDEN.search(path):
        raise _refused("it contains an encoded character that is not allowed in a path")
    segments = [segment.partition(";")[0] for segment in path.split("/")[1:]]
    if "." in segments or ".." in segments or "" in segments[:-1]:
        raise _refused("it contains a dot segment or an empty segment")


def _refused(why: str) -> BadCall:
    return BadCall("path", Violation.OTHER, f"this path is not forwarded: {why}")


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers that are not for one connection only; `Connection` may name more of those."""
    fields = list(headers)
    named = (value for name, value in fields if name.lower() == b"connection")
    dropped = _HOP_BY_HOP | {token.strip().lower() for value in named for token in value.split(b",")}
    return [(name, value) for name, value in fields if name.lower() not in dropped]


def body_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The length of the body in bytes, None if it is chunked.

    Raises `BadCall` if two readers could disagree on where it ends: both framings, or different lengths (RFC 9112 6.3,
    11.2).
    """
    lengths = {value.strip() for name, value in headers if name.lower() == b"content-length"}
    codings = [value.strip().lower() for name, value in headers if name.lower() == b"transfer-encoding"]
    if codings and (lengths or codings != [b"chunked"]):
        text = "only chunked is forwarded, and not together with a Content-Length"
        raise BadCall("Transfer-Encoding", Violation.OTHER, text)
    if codings:
        return None
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise BadCall("Content-Length", Violation.OTHER, "the Content-Length is not one number")
    return int(lengths.pop()) if lengths else 0


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A client's request. `path` is raw and starts after the context path; `query` is raw, too."""

    method: str
    path: str
    query: str
    headers: RawHeaders
    body: AsyncIterator[bytes]


async def data_id(request: ForwardedRequest) -> tuple[str, ForwardedRequest]:
    """The id of the configuration that a request is about ('' for none), and the request to send instead of this one.

    It may consume the first chunk of the body to find the id; the returned request still has the whole body. Raises
    `BadCall` and the errors of the body.
    """
    found = _find_data_id(request.query)
    media = next((value for name, value in request.headers if name.lower() == b"content-type"), b"")
    if found or media.partition(b";")[0].strip().lower() != _FORM or body_length(request.headers) == 0:
        return found, request
    first = await anext(request.body, b"")
    return _find_data_id(first.decode("latin-1")), replace(request, body=_chain(first, request.body))


def _find_data_id(text: str) -> str:
    """Reads the id from a query, or from the beginning of a form."""
    return next((value for name, value in parse_qsl(text) if name == "dataId"), "") if "dataId=" in text else ""


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


ReportOutcome = Callable[[Server, UpstreamError | None], None]


class ForwardedResponse:
    """A response whose body is still arriving."""

    def __init__(self, response: httpx.Response, server: Server, report: ReportOutcome) -> None:
        self.status = response.status_code
        dropped = {b"date"}  # our own server adds it
        if self.status in (204, 304):  # their Content-Length is of a body that is not sent
            dropped.add(b"content-length")
        self.headers = [field for field in end_to_end(response.headers.raw) if field[0].lower() not in dropped]
        self._response = response
        self._server = server
        self._report = report

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `UpstreamError`s, and reports them."""
        stream: Any = self._response.stream
        try:
            async for chunk in stream:
                yield chunk
        except CAUGHT as error:
            failed = upstream_error(error, self._server.origin)
            self._report(self._server, failed)
            raise failed from error


class Upload:
    """A client's body. `begun`: some of it was consumed, so it cannot be sent again. `broken`: its own error."""

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
    text = f"the body does not have the {length} bytes that its Content-Length says"
    return BadCall("Content-Length", Violation.OTHER, text)


@asynccontextmanager
async def forward_request(
    http: HttpClient, candidates: Iterable[Server], report: ReportOutcome, request: ForwardedRequest
) -> AsyncGenerator[ForwardedResponse]:
    """The response to a request. `report` is called with the outcome at each server.

    Raises `BadCall`, `UpstreamError`s and the errors of the body.
    """
    method = request.method
    if _METHOD.fullmatch(method) is None or method in ("CONNECT", "TRACE"):
        raise BadCall("method", Violation.OTHER, f"{method[:20]!r} is not forwarded", status=405)
    target = safe_target(request.path, request.query)
    length = body_length(request.headers)
    headers = [field for field in end_to_end(request.headers) if field[0].lower() != b"content-length"]
    if length:
        headers.append((b"content-length", b"%d" % length))
    if not any(name.lower() == b"authorization" for name, _ in headers):
        headers += [(name.encode(), value.encode()) for name, value in http.api_token_headers]
    upload = Upload(request.body, length) if length != 0 else None
    failed: UpstreamError = Unreachable("no server is known", arrived=False)
    for server in candidates:
        extensions = {**http.forwarding_extensions, "target": f"{server.context}{target}".encode()}
        outgoing = httpx.Request(method, server.origin, headers=headers, content=upload, extensions=extensions)
        try:
            response = await http.exchange(outgoing)
        except CAUGHT as error:
            if upload is not None and upload.broken is error:
                raise
            if isinstance(error, httpx.LocalProtocolError):
                text = "a header contains characters that are not allowed"
                raise BadCall("headers", Violation.OTHER, text) from error
            failed = upstream_error(error, server.origin)
            if isinstance(error, httpx.PoolTimeout):
                break
            report(server, failed)
            if (upload is not None and upload.begun) or (failed.arrived and (method not in _SAFE or upload)):
                break
            continue
        status, refused = response.status_code, None
        if status in _UNAVAILABLE_STATUSES:
            refused = Refused(Reason.OTHER, f"{server.origin}: a forwarded request got status {status}", status=status)
        report(server, refused)
        try:
            yield ForwardedResponse(response, server, report)
        finally:
            await response.aclose()
        return
    raise failed

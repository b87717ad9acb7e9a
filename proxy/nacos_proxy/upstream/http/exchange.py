"""One HTTP exchange with a server: sends a dialect's request and returns the reply, or raises an `UpstreamError`."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from secrets import token_hex
from typing import TypeVar, cast

import httpx

from nacos_proxy.model.errors import Garbled
from nacos_proxy.model.masking import shown_origin, shown_url
from nacos_proxy.request_context import HOPS_HEADER, ID_HEADER, current_request
from nacos_proxy.upstream.http.connection import Connection
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.http.transport import (
    Answer,
    FastTransport,
    HeaderBlock,
    Origin,
    PreparedRequest,
    RepeatedRequest,
)
from nacos_proxy.wire.compression import COMPRESSED_ANSWER, NO_COMPRESSION, content_codings
from nacos_proxy.wire.http import FORM_TYPE, HttpReply, HttpRequest, Pairs

A = TypeVar("A", Answer, httpx.Response)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `reads` and `writes` limit a whole call, `forwarded` each wait of a forwarded request.

    `forwarded` is None (no limit) because long polls of the configuration API are silent for 30 s.
    """

    connect: float = 1.0
    reads: float = 5.0
    writes: float = 5.0
    forwarded: float | None = None


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """`agent` is the User-Agent, `max_body` the largest answer in bytes, `sni` the server's name for TLS.

    `api_token` is for an upper proxy, which requires it with every request.
    `identity` is the header that Nacos servers send to each other (`nacos.core.auth.server.identity.key` and
    `.value`). It lets a request pass every check, so only this proxy's own calls carry it.
    """

    agent: str = "nacos-proxy"
    identity: tuple[str, str] | None = field(default=None, repr=False)
    max_body: int = 64 * 1024 * 1024
    sni: str = ""
    api_token: str = field(default="", repr=False)
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """The paths of PEM files. `verify=False` trusts every server; for tests only."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = True


def tls_context(policy: TlsPolicy) -> ssl.SSLContext:
    """Raises `OSError` (`ssl.SSLError`) if a file is missing or not PEM."""
    context = ssl.create_default_context(cafile=policy.ca or None)
    if policy.certificate:
        context.load_cert_chain(policy.certificate, policy.key or None)
    if not policy.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


Headers = Sequence[tuple[str, str]]


class HttpClient:
    """Sends requests through a transport directly, because httpx's client would cost more than the rest of a call.

    `hop` names this proxy in `HOPS_HEADER`.
    """

    def __init__(self, policy: HttpPolicy, transport: httpx.AsyncBaseTransport) -> None:
        self.policy = policy
        self.transport = transport
        self.hop = token_hex(4)
        times = policy.timeouts
        timeout = {"connect": times.connect, "read": None, "write": times.writes, "pool": times.reads}
        wait = times.forwarded
        forwarding = {"connect": times.connect, "read": wait, "write": wait, "pool": times.connect}
        self.api_token_headers: Headers = (("Authorization", f"Bearer {policy.api_token}"),) if policy.api_token else ()
        self._sni: Mapping[str, object] = {"sni_hostname": policy.sni} if policy.sni else {}
        self._reads: Mapping[str, object] = {"timeout": timeout, "total": times.reads}
        writes: Mapping[str, object] = {"timeout": timeout, "total": times.writes}
        self._extensions: Mapping[tuple[bool, bool], dict[str, object]] = {  # by whether it reads and is idempotent
            (reads, twice): {**(self._reads if reads else writes), **self._sni, "idempotent": twice}
            for reads in (False, True)
            for twice in (False, True)
        }
        self.forwarding_extensions: Mapping[str, object] = {"timeout": forwarding, "stream": True, **self._sni}
        self._header_block = lru_cache(maxsize=1024)(self._make_header_block)  # by token and length of the body

    async def send(
        self,
        origin: str,
        context: str,
        request: HttpRequest,
        headers: Headers = (),
        *,
        idempotent: bool,
        wanted: Container[str] = (),
        begun: Connection | None = None,
    ) -> HttpReply:
        """The reply, whatever its status, with the `wanted` headers (in lower case).

        `context` is the context path; `idempotent`: the request may be sent twice. `begun`: the connection over which
        it was sent already.

        Raises `Unreachable`, `Busy` and `TooSlow`. Raises `Garbled` if the answer is not valid HTTP, is compressed or
        too large, or cannot be from Nacos: HTML, a redirect, an unknown status.
        """
        prepare = partial(self._prepare, origin, context, request, headers, idempotent=idempotent)
        return await self._send(prepare, origin, wanted, begun)

    def repeated(self, origin: str, context: str, request: HttpRequest, headers: Headers) -> RepeatedRequest | None:
        """An idempotent request that is sent again and again; None if it cannot be sent."""
        if not isinstance(self.transport, FastTransport):
            return None
        try:
            return self.transport.repeated(self._prepare(origin, context, request, headers, idempotent=True))
        except CAUGHT:
            return None

    def begin(self, request: RepeatedRequest, on_head: Callable[[Connection], object]) -> bool:
        """As `RepeatedRequest.begin`, with the headers of the client's request. False also if that is traced."""
        if (work := current_request()) is None:
            lines = f"{HOPS_HEADER}: {self.hop}\r\n"
        elif work.traced:
            return False
        else:
            lines = f"{HOPS_HEADER}: {self._hops(work.hops)}\r\n{ID_HEADER}: {work.id}\r\n"
        return request.begin(lines.encode("ascii"), on_head)

    def _hops(self, passed: Sequence[str]) -> str:
        return ", ".join((*passed, self.hop)) if passed else self.hop

    def _prepare(
        self, origin: str, context: str, request: HttpRequest, headers: Headers, *, idempotent: bool
    ) -> PreparedRequest:
        method, content = request.method, request.body if request.form else b""
        server, target = _origin(origin), f"{context}{request.target}".encode("ascii")
        agent = request.headers.get("user-agent", self.policy.agent)
        block = self._header_block(method, server.netloc, agent, tuple(headers), len(content))
        return PreparedRequest(method, server, target, block, content, self._extensions[method == "GET", idempotent])

    def _make_header_block(self, method: str, host: bytes, agent: str, headers: Headers, length: int) -> HeaderBlock:
        if self.api_token_headers:  # the account's own token is in `accessToken`, too
            headers = [field for field in headers if field[0] != "Authorization"]
        header_fields = [
            ("Host", host.decode("ascii")),
            ("User-Agent", agent),
            ("Accept", "*/*"),
            NO_COMPRESSION,
            *self.api_token_headers,
            *headers,
        ]
        if length:
            header_fields.append(("Content-Type", FORM_TYPE))
        if length or method in ("POST", "PUT", "PATCH"):  # RFC 9110 8.6
            header_fields.append(("Content-Length", str(length)))
        return HeaderBlock.of(httpx.Headers(header_fields))

    def renew(self, origin: str) -> None:
        """Reuses no connection to this server, because an answer belonged to another request."""
        if isinstance(self.transport, FastTransport):
            self.transport.renew(_origin(origin))

    async def get(self, url: str) -> HttpReply:
        """The reply of any URL, within the timeout of a read. Sends no header that is only for Nacos servers."""
        headers = [("User-Agent", self.policy.agent), NO_COMPRESSION]
        return await self._send(
            lambda: httpx.Request("GET", url, headers=headers, extensions=self._reads), shown_origin(url)
        )

    async def _send(
        self,
        make_request: Callable[[], httpx.Request],
        server: str,
        wanted: Container[str] = (),
        begun: Connection | None = None,
    ) -> HttpReply:
        content_type: bytes | None = None
        try:
            answer = await self._for_request(make_request(), partial(self._answer, begun=begun))
            for name, value in answer.headers:
                name = name.lower()
                if name == b"content-type":
                    content_type = value
                elif name == b"content-encoding" and (coding := content_codings(answer.headers)):
                    if not isinstance(answer.body, bytes):
                        await answer.body.aclose()
                    raise httpx.DecodingError(COMPRESSED_ANSWER.format(coding))
            body = answer.body if isinstance(answer.body, bytes) else await self._read(answer.body)
        except CAUGHT as error:
            raise upstream_error(error, server) from error
        status = answer.status_code
        _check_is_nacos(status, body, server)
        kept = _kept(answer.headers, wanted) if wanted else ()
        return HttpReply(status, None if content_type is None else content_type.decode("latin-1"), body, kept)

    async def _answer(self, request: httpx.Request, begun: Connection | None) -> Answer:
        if isinstance(self.transport, FastTransport):
            return await self.transport.answer(request, begun)
        response = await self.transport.handle_async_request(request)
        stream = cast("httpx.AsyncByteStream", response.stream)
        body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else stream
        return Answer(response.status_code, response.headers.raw, b"", body)

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        """The head of the response. A request for a client's request carries its id, and is part of its trace.

        Each request names the proxies that it has passed.
        """
        return await self._for_request(request, self.transport.handle_async_request)

    async def _for_request(self, request: httpx.Request, send: Callable[[httpx.Request], Awaitable[A]]) -> A:
        if (work := current_request()) is None:
            _add(request, ((HOPS_HEADER, self.hop),))
            return await send(request)
        with work.call(request.method, lambda: _shown(request)) as call:
            _add(request, ((HOPS_HEADER, self._hops(work.hops)), *call.headers))
            answer = await send(request)
            call.status = answer.status_code
        return answer

    async def _read(self, stream: httpx.AsyncByteStream) -> bytes:
        body = bytearray()
        try:
            async for chunk in stream:
                body += chunk
                if len(body) > self.policy.max_body:
                    raise httpx.RemoteProtocolError(f"an answer of more than {self.policy.max_body} bytes")
        finally:
            await stream.aclose()
        return bytes(body)


def _add(request: httpx.Request, headers: Headers) -> None:
    if isinstance(request, PreparedRequest):
        request.more = headers
    else:
        request.headers.update(headers)


def whole_reply(connection: Connection) -> HttpReply | None:
    """The reply that a connection has received, unless it is incomplete or its status is not 200. Takes no bytes."""
    if not connection.complete or connection.failed or connection.status != 200:
        return None
    content_type: str | None = None
    for name, value in connection.headers:
        name = name.lower()
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"content-encoding":
            return None
    return HttpReply(200, content_type, connection.body)


def _kept(header_fields: Iterable[tuple[bytes, bytes]], wanted: Container[str]) -> Pairs:
    fields = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in header_fields)
    return tuple(field for field in fields if field[0] in wanted)


def _shown(request: httpx.Request) -> str:
    """The URL that is asked, without secrets."""
    target = request.extensions.get("target")
    return shown_url(str(request.url if target is None else request.url.copy_with(raw_path=target)))


@lru_cache(maxsize=128)
def _origin(url: str) -> Origin:
    return Origin.of(httpx.URL(url))


def _check_is_nacos(status: int, body: bytes, server: str) -> None:
    """Raises `Garbled` for answers that no Nacos gives. Ignores the content type, which r-nacos often sets wrongly."""
    if body[:100].lstrip()[:1] == b"<":
        answer = f"an HTML page with status {status}"
    elif 300 <= status < 400:
        answer = f"a redirect with status {status}"
    elif 200 < status < 300:
        answer = f"the status {status}"
    else:
        return
    raise Garbled(f"{server}: the answer is {answer}, which is not from Nacos; check for a proxy in between")

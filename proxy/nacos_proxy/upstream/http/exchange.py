"""One HTTP exchange with a server: sends a dialect's request and returns the reply, or raises an `UpstreamError`."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from secrets import token_hex

import httpx

from nacos_proxy.model.errors import Garbled
from nacos_proxy.model.masking import shown_origin, shown_url
from nacos_proxy.request_context import HOPS_HEADER, current_request
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.http.transport import FastTransport, HeaderBlock, Origin, PreparedRequest
from nacos_proxy.wire.compression import COMPRESSED_ANSWER, NO_COMPRESSION, content_codings
from nacos_proxy.wire.http import FORM_TYPE, HttpReply, HttpRequest, Pairs


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
        self._first_hop: Headers = ((HOPS_HEADER, self.hop),)
        times = policy.timeouts
        timeout = {"connect": times.connect, "read": None, "write": times.writes, "pool": times.reads}
        wait = times.forwarded
        forwarding = {"connect": times.connect, "read": wait, "write": wait, "pool": times.connect}
        self.api_token_headers: Headers = (("Authorization", f"Bearer {policy.api_token}"),) if policy.api_token else ()
        self._sni: Mapping[str, object] = {"sni_hostname": policy.sni} if policy.sni else {}
        self._reads: Mapping[str, object] = {"timeout": timeout, "total": times.reads}
        self._writes: Mapping[str, object] = {"timeout": timeout, "total": times.writes}
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
    ) -> HttpReply:
        """The reply, whatever its status, with the `wanted` headers (in lower case).

        `context` is the context path; `idempotent`: the request may be sent twice.

        Raises `Unreachable`, `Busy` and `TooSlow`. Raises `Garbled` if the answer is not valid HTTP, is compressed or
        too large, or cannot be from Nacos: HTML, a redirect, an unknown status.
        """
        method, content = request.method, request.body if request.form else b""
        extensions = {**(self._reads if method == "GET" else self._writes), **self._sni, "idempotent": idempotent}

        def make_request() -> httpx.Request:
            server, target = _origin(origin), f"{context}{request.target}".encode("ascii")
            agent = request.headers.get("user-agent", self.policy.agent)
            block = self._header_block(method, server.netloc, agent, tuple(headers), len(content))
            return PreparedRequest(method, server, target, block, content, extensions)

        return await self._send(make_request, origin, wanted)

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
        self, make_request: Callable[[], httpx.Request], server: str, wanted: Container[str] = ()
    ) -> HttpReply:
        try:
            response = await self.exchange(make_request())
            header_fields = {name.lower(): value for name, value in response.headers.raw}
            if b"content-encoding" in header_fields and (coding := content_codings(response.headers.raw)):
                await response.aclose()
                raise httpx.DecodingError(COMPRESSED_ANSWER.format(coding))
            stream = response.stream
            body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else await self._read(response)
        except CAUGHT as error:
            raise upstream_error(error, server) from error
        _check_is_nacos(response.status_code, body, server)
        content_type = header_fields.get(b"content-type")
        kept = _kept(header_fields, wanted) if wanted else ()
        media = None if content_type is None else content_type.decode("latin-1")
        return HttpReply(response.status_code, media, body, kept)

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        """The head of the response. A request for a client's request carries its id, and is part of its trace.

        Each request names the proxies that it has passed.
        """
        if (work := current_request()) is None:
            _add(request, self._first_hop)
            return await self.transport.handle_async_request(request)
        with work.call(request.method, lambda: _shown(request)) as call:
            hop = (HOPS_HEADER, ", ".join((*work.hops, self.hop))) if work.hops else self._first_hop[0]
            _add(request, (hop, *call.headers))
            response = await self.transport.handle_async_request(request)
            call.status = response.status_code
        return response

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        try:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self.policy.max_body:
                    raise httpx.RemoteProtocolError(f"an answer of more than {self.policy.max_body} bytes")
        finally:
            await response.aclose()
        return bytes(body)


def _add(request: httpx.Request, headers: Headers) -> None:
    if isinstance(request, PreparedRequest):
        request.more = headers
    else:
        request.headers.update(headers)


def _kept(header_fields: Mapping[bytes, bytes], wanted: Container[str]) -> Pairs:
    fields = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in header_fields.items())
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

"""One call over HTTP to one server: takes a dialect's request, returns the reply, raises every fault as our error."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import httpx

from nacos_proxy.model.errors import Garbled
from nacos_proxy.model.masking import shown_origin
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.http.transport import FastTransport, HeaderBlock, Origin, PreparedRequest
from nacos_proxy.upstream.nacos.servers import Server
from nacos_proxy.wire.http import CODED, FORM_TYPE, PLAIN, HttpReply, HttpRequest, coded


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `reads` and `writes` are for a whole call; `passing` limits each wait of a forwarded request.

    `passing` is None because long polls of the configuration API are silent for 30 s.
    """

    connect: float = 1.0
    reads: float = 5.0
    writes: float = 5.0
    forwarded: float | None = None


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """What requests carry; `max_body` is the largest answer, in bytes. `sni` is the server's name for TLS.

    `identity` is the header that Nacos servers send to each other (`nacos.core.auth.server.identity.key` and
    `.value`). A request with it passes every check, so only this proxy's own calls carry it.
    """

    agent: str = "nacos-proxy"
    identity: tuple[str, str] | None = field(default=None, repr=False)
    max_body: int = 64 * 1024 * 1024
    sni: str = ""
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """Files in PEM. `verify=False` trusts every server; for tests only."""

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
    """Calls to servers through one transport. An httpx client on top would cost more than the call."""

    def __init__(self, policy: HttpPolicy, transport: httpx.AsyncBaseTransport) -> None:
        self.policy = policy
        self.transport = transport
        times = policy.timeouts
        connecting = {"connect": times.connect, "read": None, "write": times.writes, "pool": times.reads}
        self._sni: Mapping[str, object] = {"sni_hostname": policy.sni} if policy.sni else {}
        self._reads: Mapping[str, object] = {"timeout": connecting, "total": times.reads}
        self._writes: Mapping[str, object] = {"timeout": connecting, "total": times.writes}
        self.forwarding_extensions: Mapping[str, object] = {
            "timeout": {
                "connect": times.connect,
                "read": times.forwarded,
                "write": times.forwarded,
                "pool": times.connect,
            },
            "stream": True,
            **self._sni,
        }
        self._header_block = lru_cache(maxsize=1024)(self._make_header_block)  # by token and length of the body

    async def send(self, server: Server, request: HttpRequest, headers: Headers = (), *, again: bool) -> HttpReply:
        """The reply, whatever its status. `again`: the call may be sent twice.

        Raises `Unreachable`, `TooSlow` and `Garbled`: the answer is not valid HTTP, is compressed or too large, or is
        HTML, a redirect or another status that no Nacos gives, so it comes from a proxy in between.
        """
        method, content = request.method, request.body if request.form else b""
        extensions = {**(self._reads if method == "GET" else self._writes), **self._sni, "idempotent": again}

        def make() -> httpx.Request:
            origin, target = _origin(server.origin), f"{server.context}{request.target}".encode("ascii")
            agent = request.headers.get("user-agent", self.policy.agent)
            block = self._header_block(method, origin.netloc, agent, tuple(headers), len(content))
            return PreparedRequest(method, origin, target, block, content, extensions)

        return await self._send(make, server.origin)

    def _make_header_block(self, method: str, host: bytes, agent: str, headers: Headers, length: int) -> HeaderBlock:
        fields = [("Host", host.decode("ascii")), ("User-Agent", agent), ("Accept", "*/*"), PLAIN, *headers]
        if length:
            fields.append(("Content-Type", FORM_TYPE))
        if length or method in ("POST", "PUT", "PATCH"):  # RFC 9110 8.6
            fields.append(("Content-Length", str(length)))
        return HeaderBlock.of(httpx.Headers(fields))

    def renew(self, server: Server) -> None:
        """Reuses no connection to it, because it answered another request than the one it got."""
        if isinstance(self.transport, FastTransport):
            self.transport.renew(httpx.URL(server.origin))

    async def get(self, url: str) -> HttpReply:
        """The reply of any URL, within the timeout of a read, without what is only for Nacos servers."""
        return await self._send(
            lambda: httpx.Request(
                "GET", url, headers=[("User-Agent", self.policy.agent), PLAIN], extensions=self._reads
            ),
            shown_origin(url),
        )

    async def _send(self, make: Callable[[], httpx.Request], server: str) -> HttpReply:
        try:
            response = await self.transport.handle_async_request(make())
            fields = {name.lower(): value for name, value in response.headers.raw}
            if b"content-encoding" in fields and (coding := coded(response.headers.raw)):
                await response.aclose()
                raise httpx.DecodingError(CODED.format(coding))
            stream = response.stream
            body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else await self._read(response)
        except CAUGHT as error:
            raise upstream_error(error, server) from error
        _check(response.status_code, body, server)
        kind = fields.get(b"content-type")
        return HttpReply(response.status_code, None if kind is None else kind.decode("latin-1"), body)

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


@lru_cache(maxsize=128)
def _origin(url: str) -> Origin:
    return Origin.of(httpx.URL(url))


def _check(status: int, body: bytes, server: str) -> None:
    """Raises `Garbled` for answers that no Nacos gives. The content type does not tell: r-nacos's are often wrong."""
    if body[:100].lstrip()[:1] == b"<":
        answer = f"an HTML page with status {status}"
    elif 300 <= status < 400:
        answer = f"a redirect with status {status}"
    elif 200 < status < 300:
        answer = f"the status {status}"
    else:
        return
    raise Garbled(f"{server}: the answer is {answer}, which is not from Nacos; check for a proxy in between")

"""One call over HTTP to one server: a dialect's request in, its reply out, and every fault as one of our errors.

Not for: which server (`servers`), whether to try again (`nacos`), what a reply means (`wire`).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import httpx

from nacos_proxy.model.errors import Garbled
from nacos_proxy.model.masking import shown_origin
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.http.transport import (
    FastTransport,
    Fields,
    Place,
    Prepared,
)
from nacos_proxy.upstream.nacos.servers import Server
from nacos_proxy.wire.http import (
    CODED,
    FORM_TYPE,
    PLAIN,
    HttpReply,
    HttpRequest,
    coded,
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `reads` and `writes` are for a whole call; `passing` limits each wait of a passed-through request.

    `passing` is None because long polls of the configuration API are silent for 30 s.
    """

    connect: float = 1.0
    reads: float = 5.0
    writes: float = 5.0
    passing: float | None = None


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """What every request carries, and how large an answer may be (bytes).

    `identity` is the header by which Nacos knows its own (`nacos.core.auth.server.identity.key` and `.value`); a
    request with it passes every check, so it goes only with this proxy's own calls. `sni` names the host for TLS.
    """

    agent: str = "nacos-proxy"
    identity: tuple[str, str] | None = field(default=None, repr=False)
    max_body: int = 64 * 1024 * 1024
    sni: str = ""
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """Files in PEM. `verify` False trusts anyone, which is for tests alone."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = True


def tls_context(policy: TlsPolicy) -> ssl.SSLContext:
    """Raises `OSError` (`ssl.SSLError`) for a file that is missing or no PEM."""
    context = ssl.create_default_context(cafile=policy.ca or None)
    if policy.certificate:
        context.load_cert_chain(policy.certificate, policy.key or None)
    if not policy.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


Headers = Sequence[tuple[str, str]]


class Http:
    """Calls to servers through one transport; httpx's client on top would cost more than the call."""

    def __init__(self, policy: HttpPolicy, transport: httpx.AsyncBaseTransport) -> None:
        self.policy = policy
        self.transport = transport
        times = policy.timeouts
        connecting = {"connect": times.connect, "read": None, "write": times.writes, "pool": times.reads}
        self._sni: Mapping[str, object] = {"sni_hostname": policy.sni} if policy.sni else {}
        self._reads: Mapping[str, object] = {"timeout": connecting, "total": times.reads}
        self._writes: Mapping[str, object] = {"timeout": connecting, "total": times.writes}
        self.passing: Mapping[str, object] = {
            "timeout": {"connect": times.connect, "read": times.passing, "write": times.passing, "pool": times.connect},
            "stream": True,
            **self._sni,
        }
        self._fields = lru_cache(maxsize=1024)(self._make_fields)  # of each token and each length of a body

    async def ask(self, server: Server, request: HttpRequest, headers: Headers = (), *, again: bool) -> HttpReply:
        """The reply, whatever its status. `again`: the call may be sent twice.

        Raises `Unreachable`, `TooSlow` and `Garbled`: for what is no HTTP, is compressed, or has more bytes than the
        policy allows, and for HTML, redirects and other statuses that come from something in between.
        """
        method, content = request.method, request.body if request.form else b""
        extensions = {**(self._reads if method == "GET" else self._writes), **self._sni, "idempotent": again}

        def make() -> httpx.Request:
            place = _place(server.origin)._replace(target=f"{server.context}{request.target}".encode("ascii"))
            agent = request.headers.get("user-agent", self.policy.agent)
            fields = self._fields(method, place.netloc, agent, tuple(headers), len(content))
            return Prepared(method, place, fields, content, extensions)

        return await self._send(make, server.origin)

    def _make_fields(self, method: str, host: bytes, agent: str, headers: Headers, length: int) -> Fields:
        fields = [("Host", host.decode("ascii")), ("User-Agent", agent), ("Accept", "*/*"), PLAIN, *headers]
        if length:
            fields.append(("Content-Type", FORM_TYPE))
        if length or method in ("POST", "PUT", "PATCH"):  # RFC 9110 8.6
            fields.append(("Content-Length", str(length)))
        return Fields.of(httpx.Headers(fields))

    def renew(self, server: Server) -> None:
        """No connection to it is used again: it answered another question than was asked."""
        if isinstance(self.transport, FastTransport):
            self.transport.renew(httpx.URL(server.origin))

    async def get(self, url: str) -> HttpReply:
        """The reply of any URL, in the time of a read, with nothing that is for a server of Nacos alone."""
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
            # It is all here already, or has to be read.
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
def _place(origin: str) -> Place:
    """Of a server, not of a request: the names that are asked for have no end."""
    return Place.of(httpx.URL(origin))


def _check(status: int, body: bytes, server: str) -> None:
    """The content type tells nothing here: r-nacos calls some of its answers HTML, others it does not name."""
    if body[:100].lstrip()[:1] == b"<":
        raise Garbled(f"{server}: an HTML page with status {status}: something in between answers")
    if 300 <= status < 400:
        raise Garbled(f"{server}: a redirect with status {status}: something in between answers")
    if 200 < status < 300:
        raise Garbled(f"{server}: the status {status}, which no Nacos gives: something in between answers")

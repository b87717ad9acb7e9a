"""A fast transport with httpx's interface: a pool of connections for each server, answers parsed by httptools.

httpx's default transport would take most of the time of a call (docs/decisions/0004-a-transport-of-our-own.md). This
one has only HTTP/1.1, without proxies, redirects and retries on other servers.

It obeys these extensions of a request:

- `timeout`: as httpx sets it; seconds or None; `read` limits each wait.
- `total`: seconds from having a connection to the end of the body, including a second attempt. Waiting for a connection
  does not count, since that is not the server's fault.
- `idempotent`: whether the request may be sent a second time; by default its method decides.
- `stream`: True if the request may last long.
- `target`: the raw path and query to send, instead of the URL's.
- `sni_hostname`: the server's name for TLS.

Rules:

- Requests that wait for a connection are served in order.
- The policy's maximum includes connections that are being opened.
- A request is sent a second time only if the server closed an idle connection without a byte of an answer.
- A closed transport opens no connection.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import httpx

from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.http.connection import Connection, ExchangeLimits, RawHeaders

IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))  # RFC 9110 9.2.2


class Origin(NamedTuple):
    """A server: scheme, host and port (RFC 6454). `netloc` is the value of the Host header."""

    scheme: str
    host: str
    port: int
    netloc: bytes

    @classmethod
    def of(cls, url: httpx.URL) -> Origin:
        return cls(url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80), url.netloc)


_PoolKey = tuple[Origin, str, bool]  # the origin, the server's name for TLS, whether its requests may last long


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """Each server gets at most `connections`. One that was idle for `keep_alive` seconds is not reused.

    `streams` is a separate limit for requests that may last long, so that long polls cannot block short calls.
    `uds`: the Unix socket to which all connections go, whatever the server; '' for TCP.
    """

    connections: int = 64
    streams: int = 1024
    keep_alive: float = 30.0
    uds: str = ""


class _Pool:
    """The connections to one server. The most recently used one is taken first."""

    def __init__(self, key: _PoolKey, policy: TransportPolicy, tls: ssl.SSLContext | None) -> None:
        self.connections: set[Connection] = set()
        self.loop = asyncio.get_running_loop()
        self._origin, self._server_name, stream = key
        self._max_connections = policy.streams if stream else policy.connections
        self._keep_alive = policy.keep_alive
        self._uds = policy.uds
        self._tls = tls
        self._closed = False
        self._idle: list[Connection] = []
        self._opening = 0  # connections that are being opened
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()

    async def take(self, connect: float | None, wait: float | None, *, fresh: bool = False) -> Connection:
        """An open connection for one exchange. Raises `ConnectError`, `ConnectTimeout`, `PoolTimeout`."""
        while True:
            if not fresh and (connection := self.take_idle()) is not None:
                return connection
            if self._room:
                self._opening += 1
                return await self._open(connect)
            given = self._idle.pop(0) if self._idle else await self._wait(wait)
            if given is None:
                return await self._open(connect)
            if given.open and not fresh:
                return given
            if given in self.connections:  # else the server closed it, and another request took its room
                self.connections.discard(given)
                given.abort()
                self._opening += 1
                return await self._open(connect)

    def take_idle(self) -> Connection | None:
        self._drop_old()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.abort()
        return None

    @property
    def _room(self) -> bool:
        return len(self.connections) + self._opening < self._max_connections and not self._closed

    def _drop_old(self) -> None:
        oldest = self.loop.time() - self._keep_alive
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).abort()

    async def _wait(self, limit: float | None) -> Connection | None:
        """A connection that was given back. None: the caller has to open one, which `_opening` counts already."""
        if self._closed:
            raise httpx.ConnectError("the transport is closed")
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        timer = self.loop.call_later(limit, _time_out, waiter) if limit is not None else None
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                given = waiter.result()  # handed over just before the cancellation
                self.give(given) if given is not None else self._release_room()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _open(self, limit: float | None) -> Connection:
        """Opens a connection, which `_opening` counts already."""
        connection = Connection(self._lost)
        # Not wait_for: up to Python 3.11 it may swallow a cancellation.
        connecting = spawn(self._connect(connection), name="connection")
        try:
            await asyncio.wait((connecting,), timeout=limit)
            if not connecting.done():
                raise httpx.ConnectTimeout("no connection in time")
            if (error := connecting.result()) is not None:
                to = f" to {self._uds}" if self._uds else ""
                raise httpx.ConnectError(f"no connection{to}: {_reason(error)}") from error
            if not connection.open or self._closed:
                raise httpx.ConnectError("the connection was closed at once")
        except BaseException:
            connecting.cancel()
            connection.abort()
            self._release_room()
            raise
        self._opening -= 1
        self.connections.add(connection)
        return connection

    async def _connect(self, connection: Connection) -> Exception | None:
        try:
            if self._uds:
                await self.loop.create_unix_connection(lambda: connection, self._uds)
                return None
            await self.loop.create_connection(
                lambda: connection,
                self._origin.host,
                self._origin.port,
                ssl=self._tls,
                server_hostname=self._server_name if self._tls else None,
            )
        except (OSError, ValueError) as error:  # ValueError: the name is invalid for DNS or TLS
            return error
        return None

    def give(self, connection: Connection) -> None:
        """Takes a connection back after an exchange."""
        if not connection.reusable or self._closed:
            connection.abort()
            return
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        self._drop_old()

    def renew(self) -> None:
        for connection in self.connections:
            connection.retired = True
        for connection in self._idle[:]:
            connection.abort()

    def close(self) -> None:
        self._closed = True
        for connection in list(self.connections):
            connection.abort()
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(httpx.ConnectError("the transport is closed"))

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._offer_room()

    def _release_room(self) -> None:
        """Ends an attempt to open a connection."""
        self._opening -= 1
        self._offer_room()

    def _offer_room(self) -> None:
        """Lets waiters open connections while there is room."""
        while self._room and (waiter := self._next_waiter()) is not None:
            self._opening += 1
            waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None


def _reason(error: Exception) -> str:
    """The text of an error without the server's address, which asyncio includes and `upstream_error` adds anyway."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0)
    return getattr(error, "strerror", None) or str(error)


def _time_out(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(httpx.PoolTimeout("no connection became free in time"))


class _Body(httpx.AsyncByteStream):
    """The body of an answer. Gives the connection back to the pool at its end."""

    def __init__(self, pool: _Pool, connection: Connection) -> None:
        self._pool = pool
        self._connection: Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (data := await self._connection.read()):
            yield data
        await self.aclose()

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give(connection)


class Answer(NamedTuple):
    """An answer. `body` is all of it if it has arrived."""

    status_code: int
    headers: RawHeaders
    reason: bytes
    body: bytes | httpx.AsyncByteStream


class HeaderBlock(NamedTuple):
    """Headers, and their bytes in a request, including the empty line at the end."""

    headers: httpx.Headers
    lines: bytes

    @classmethod
    def of(cls, headers: httpx.Headers) -> HeaderBlock:
        """Raises `LocalProtocolError` if a header contains a line break (RFC 9112 11.1)."""
        raw = headers.raw
        lines = b"".join([b"%b: %b\r\n" % field for field in raw])
        if lines.count(b"\n") != len(raw) or lines.count(b"\r") != len(raw) or b"\0" in lines:
            raise httpx.LocalProtocolError("a line break in the head of a request")
        return cls(headers, lines + b"\r\n")


class PreparedRequest(httpx.Request):
    """A request whose parts are ready to send. httpx would compute them anew, which costs more than the rest of a call.

    `target` is path and query. `block` is sent unchanged, so it contains `Host` and `Content-Length`. `more` are
    headers of this request alone.
    """

    def __init__(
        self, method: str, origin: Origin, target: bytes, block: HeaderBlock, body: bytes, extensions: dict[str, Any]
    ) -> None:
        self.method = method
        self.more: Sequence[tuple[str, str]] = ()
        self.content_bytes = body
        self.extensions = extensions
        self.origin = origin
        self.target = target
        self.block = block

    @property
    def stream(self) -> httpx.ByteStream:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For other transports, like `headers` and `url`."""
        return httpx.ByteStream(self.content_bytes)

    @property
    def headers(self) -> httpx.Headers:  # pyright: ignore[reportIncompatibleVariableOverride]
        return httpx.Headers([*self.block.headers.multi_items(), *self.more]) if self.more else self.block.headers

    @property
    def url(self) -> httpx.URL:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not parsed in advance, since that costs as much as the rest of a call."""
        return httpx.URL(f"{self.origin.scheme}://{self.origin.netloc.decode('ascii')}{self.target.decode('ascii')}")


class RepeatedRequest:
    """The bytes of a request that is sent again and again, apart from the headers of each time."""

    __slots__ = ("_body", "_head", "_limits", "_total", "pool")

    def __init__(self, request: PreparedRequest, pool: _Pool) -> None:
        self.pool = pool
        self._head = _head(request)[:-2]
        self._body = request.content_bytes
        self._limits, self._total = _limits_of(request.extensions)

    def begin(self, headers: bytes, on_head: Callable[[Connection], object]) -> bool:
        """Sends it with these header lines over an idle connection. False if there is none: nothing is sent then.

        `on_head` is called as by `Connection.begin`. Then either take the body, if the answer is complete, and give the
        connection back to the `pool`; or `FastTransport.answer` goes on with it.
        """
        connection = self.pool.take_idle()
        if connection is None:
            return False
        limits = _from_now(self._limits, self._total, self.pool.loop)
        connection.begin(self._head + headers + b"\r\n", self._body, limits=limits, on_head=on_head)
        return True


class FastTransport(httpx.AsyncBaseTransport):
    """Use it under an `httpx.AsyncClient`, or call `handle_async_request` directly with prepared requests."""

    def __init__(self, policy: TransportPolicy = TransportPolicy(), tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._tls = tls
        self._pools: dict[_PoolKey, _Pool] = {}
        self._closed = False

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return sum(len(pool.connections) for pool in self._pools.values())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self.answer(request)
        stream = httpx.ByteStream(answer.body) if isinstance(answer.body, bytes) else answer.body
        extensions = {"http_version": b"HTTP/1.1", "reason_phrase": answer.reason}
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream, extensions=extensions)

    def repeated(self, request: PreparedRequest) -> RepeatedRequest:
        """Raises `LocalProtocolError` and `ConnectError`."""
        return RepeatedRequest(request, self._pool(request.origin, request.extensions))

    async def answer(self, request: httpx.Request, begun: Connection | None = None) -> Answer:
        """As `handle_async_request`, without httpx's response, which costs more than the rest of a short exchange.

        `begun`: the connection over which it was sent already (`RepeatedRequest.begin`).
        """
        extensions: Mapping[str, Any] = request.extensions
        timeout = cast("Mapping[str, float | None]", extensions.get("timeout") or {})
        origin = request.origin if isinstance(request, PreparedRequest) else Origin.of(request.url)
        message, body = _head(request), _body(request)
        pool, bodyless = self._pool(origin, extensions), request.method == "HEAD"
        limits, total = _limits_of(extensions)
        waits = _shorter_limit(timeout.get("connect"), total), _shorter_limit(timeout.get("pool"), total)
        if begun is not None:
            connection, limits = begun, begun.limits
        else:
            connection = await pool.take(*waits)
            limits = _from_now(limits, total, pool.loop)
        try:
            if begun is None:
                connection.begin(message, body, bodyless=bodyless, limits=limits)
            await connection.head()
        except httpx.ReadError as lost:
            # the server may close an idle connection just when it is taken (RFC 9112 9.3.1)
            idempotent = extensions.get("idempotent", request.method in IDEMPOTENT)
            if not (connection.used and not connection.began and isinstance(body, bytes) and idempotent):
                raise
            try:
                connection = await pool.take(*waits, fresh=True)
            except httpx.TransportError:
                raise lost from None  # not a connection error, which would deny that the first attempt may have arrived
            connection.begin(message, body, bodyless=bodyless, limits=limits)
            await connection.head()
        head = connection.status, connection.headers, connection.reason
        if not connection.complete:
            return Answer(*head, _Body(pool, connection))
        answer = Answer(*head, connection.take_body())
        pool.give(connection)
        return answer

    def renew(self, server: Origin) -> None:
        """Reuses none of the connections to this server after the exchanges that are under way."""
        for (origin, _, _), pool in self._pools.items():
            if origin == server:
                pool.renew()

    def _pool(self, origin: Origin, extensions: Mapping[str, Any]) -> _Pool:
        if origin.scheme not in ("http", "https") or not origin.host:
            raise httpx.UnsupportedProtocol(f"neither http nor https: {origin.scheme!r}")
        key = origin, str(extensions.get("sni_hostname") or origin.host), extensions.get("stream") is True
        pool = self._pools.get(key)
        if pool is None:
            if self._closed:
                raise httpx.ConnectError("the transport is closed")
            tls = (self._tls or ssl.create_default_context()) if origin.scheme == "https" else None
            pool = self._pools[key] = _Pool(key, self._policy, tls)
        return pool

    async def aclose(self) -> None:
        """Ends all connections, even those in use, and waits until their sockets are closed."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        for _ in range(100):  # a connection needs an iteration or two of the loop, over TLS a few more
            if not self.connections:
                break
            await asyncio.sleep(0)


def _limits_of(extensions: Mapping[str, Any]) -> tuple[ExchangeLimits, float | None]:
    """The limits, and the seconds of the whole exchange, which become one when there is a connection."""
    timeout = cast("Mapping[str, float | None]", extensions.get("timeout") or {})
    return ExchangeLimits(timeout.get("read"), timeout.get("write")), extensions.get("total")


def _from_now(limits: ExchangeLimits, total: float | None, loop: asyncio.AbstractEventLoop) -> ExchangeLimits:
    return limits if total is None else ExchangeLimits(limits.read, limits.write, loop.time() + total)


def _shorter_limit(limit: float | None, total: float | None) -> float | None:
    return total if limit is None else limit if total is None else min(limit, total)


def _head(request: httpx.Request) -> bytes:
    """Request line and headers. Raises `LocalProtocolError` if a part contains a line break (RFC 9112 11.1)."""
    if isinstance(request, PreparedRequest):
        target, lines = request.target, request.block.lines
        if request.more:
            more = "".join(f"{name}: {value}\r\n" for name, value in request.more)
            lines = b"%b%b\r\n" % (lines[:-2], more.encode("ascii"))
    else:
        target, lines = request.extensions.get("target") or request.url.raw_path, HeaderBlock.of(request.headers).lines
    if b" " in target or b"\n" in target or b"\r" in target or b"\0" in target:
        raise httpx.LocalProtocolError("a line break in the head of a request")
    return b"%b %b HTTP/1.1\r\n%b" % (request.method.encode("ascii"), target, lines)


def _body(request: httpx.Request) -> bytes | AsyncIterable[bytes]:
    if isinstance(request, PreparedRequest):
        return request.content_bytes
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):
        return b"".join(stream)
    if not isinstance(stream, AsyncIterable):
        raise RuntimeError("a synchronous stream in an asynchronous transport")
    if request.headers.get("transfer-encoding", "").lower() == "chunked":
        return _chunked(stream)
    return stream


async def _chunked(stream: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for data in stream:
        if data:
            yield b"%x\r\n%b\r\n" % (len(data), data)
    yield b"0\r\n\r\n"

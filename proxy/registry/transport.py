"""A fast transport under httpx's own interface: connections kept alive per server, httptools reads the answers.

Not for: retries on other servers, logins (`nacos`). It stands in for httpx's default transport because that costs most
of a forwarded call (docs/decisions/0002-http-transport.md has the figures). HTTP/1.1 only, no proxies, no redirects.

Extensions of a request that it obeys: `timeout` as httpx fills it (seconds or None, `read` limits each wait), `total`
(seconds up to the end of the body), `idempotent` (True: it may be sent a second time), `sni_hostname`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx

from proxy.registry.connection import Connection, Limits

IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))  # RFC 9110 9.2.2

Origin = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """`connections` at most to one server; an idle one is not used again after `keep_alive` seconds."""

    connections: int = 64
    keep_alive: float = 30.0


class _Pool:
    """The connections to one server, last used first."""

    def __init__(self, origin: Origin, policy: TransportPolicy, tls: ssl.SSLContext | None) -> None:
        self.connections: set[Connection] = set()
        self._origin = origin
        self._policy = policy
        self._tls = tls
        self._idle: list[Connection] = []
        self._opening = 0
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._loop = asyncio.get_running_loop()

    async def take(self, connect: float | None, wait: float | None, *, fresh: bool = False) -> Connection:
        """A connection for one exchange. Raises `ConnectError`, `ConnectTimeout`, `PoolTimeout`."""
        oldest = self._loop.time() - self._policy.keep_alive
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        if len(self.connections) + self._opening < self._policy.connections:
            return await self._open(connect)
        if self._idle:
            self._idle.pop(0).abort()
        given = await self._wait(wait)
        return given if given is not None else await self._open(connect)

    async def _wait(self, limit: float | None) -> Connection | None:
        """A connection that somebody gave back, or None: there is room for a new one."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        timer = self._loop.call_later(limit, _expire, waiter) if limit is not None else None
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                given = waiter.result()  # handed over in the moment of the cancellation
                self.give(given) if given is not None else self._next()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _open(self, limit: float | None) -> Connection:
        scheme, host, port, name = self._origin
        tls = self._tls if scheme == "https" else None
        connection = Connection(self._lost)
        self._opening += 1
        try:
            await asyncio.wait_for(
                self._loop.create_connection(
                    lambda: connection, host, port, ssl=tls, server_hostname=name if tls else None
                ),
                limit,
            )
        except BaseException as error:
            connection.abort()
            self._next()
            if isinstance(error, asyncio.TimeoutError):
                raise httpx.ConnectTimeout(f"no connection to {host}:{port} in time") from error
            if isinstance(error, OSError):
                raise httpx.ConnectError(f"no connection to {host}:{port}: {error}") from error
            raise
        finally:
            self._opening -= 1
        self.connections.add(connection)
        return connection

    def give(self, connection: Connection) -> None:
        """Back from an exchange."""
        if not connection.reusable:
            connection.abort()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next()

    def _next(self) -> None:
        """There is room: the first who waits opens a connection of its own."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _expire(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(httpx.PoolTimeout("no connection became free in time"))


class _Body(httpx.AsyncByteStream):
    """The rest of an answer; its connection goes back when it has ended."""

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


class FastTransport(httpx.AsyncBaseTransport):
    """Use it below an `httpx.AsyncClient`, or call `handle_async_request` itself with prepared requests."""

    def __init__(self, policy: TransportPolicy = TransportPolicy(), tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._tls = tls
        self._pools: dict[Origin, _Pool] = {}

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(len(pool.connections) for pool in self._pools.values())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        extensions: Mapping[str, Any] = request.extensions
        timeout = cast("Mapping[str, float | None]", extensions.get("timeout") or {})
        head, body = _head(request), _body(request)
        pool, bodyless = self._pool(request), request.method == "HEAD"
        limits = Limits(timeout.get("read"), timeout.get("write"), extensions.get("total"))
        connection = await pool.take(timeout.get("connect"), timeout.get("pool"))
        try:
            await connection.exchange(head, body, bodyless=bodyless, limits=limits)
        except httpx.ReadError:
            # The server closed an idle connection in the moment in which it was taken (RFC 9112 9.3.1).
            if not (connection.used and not connection.began and isinstance(body, bytes) and _again(request)):
                raise
            connection = await pool.take(timeout.get("connect"), timeout.get("pool"), fresh=True)
            await connection.exchange(head, body, bodyless=bodyless, limits=limits)
        if connection.complete:
            response = _response(connection, httpx.ByteStream(connection.take()))
            pool.give(connection)
            return response
        return _response(connection, _Body(pool, connection))

    def _pool(self, request: httpx.Request) -> _Pool:
        url = request.url
        scheme, host = url.scheme, url.host
        if scheme not in ("http", "https") or not host:
            raise httpx.UnsupportedProtocol(f"neither http nor https: {scheme!r}")
        port = url.port or (443 if scheme == "https" else 80)
        origin = (scheme, host, port, str(request.extensions.get("sni_hostname") or host))
        pool = self._pools.get(origin)
        if pool is None:
            tls = (self._tls or ssl.create_default_context()) if scheme == "https" else None
            pool = self._pools[origin] = _Pool(origin, self._policy, tls)
        return pool

    async def aclose(self) -> None:
        for pool in self._pools.values():
            for connection in list(pool.connections):
                connection.abort()
        self._pools.clear()


def _again(request: httpx.Request) -> bool:
    return request.method in IDEMPOTENT or request.extensions.get("idempotent") is True


def _response(connection: Connection, stream: httpx.AsyncByteStream) -> httpx.Response:
    extensions = {"http_version": b"HTTP/1.1", "reason_phrase": connection.reason}
    return httpx.Response(connection.status, headers=connection.headers, stream=stream, extensions=extensions)


def _head(request: httpx.Request) -> bytes:
    """Request line and headers. Raises `LocalProtocolError` where a part would end its line (RFC 9112 11.1)."""
    target = request.url.raw_path
    fields = request.headers.raw
    head = b"".join(
        (
            b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), target),
            *[b"%b: %b\r\n" % field for field in fields],
            b"\r\n",
        )
    )
    lines = len(fields) + 2
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in target:
        raise httpx.LocalProtocolError("a line break in the head of a request")
    return head


def _body(request: httpx.Request) -> bytes | AsyncIterable[bytes]:
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

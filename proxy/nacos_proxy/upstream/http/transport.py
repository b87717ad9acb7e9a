"""A fast transport under httpx's own interface: connections kept alive per server, httptools reads the answers.

Not for: retries on other servers, logins (`nacos`). It stands in for httpx's default transport because that costs most
of a forwarded call (figures: docs/decisions/0004-a-transport-of-our-own.md). HTTP/1.1 only, no proxies, no redirects.

Extensions of a request that it obeys: `timeout` as httpx fills it (seconds or None, `read` limits each wait), `total`
(seconds from when there is a connection to the end of the body, second tries included; what waits for a connection is
not the server's fault), `idempotent` (whether it may be sent a second time; not given, its method says), `stream`
(True: it may last long), `target` (path and query as they are to be sent, in place of the URL's), `sni_hostname`.

Rules: who waits for a connection is served in order and before who comes later; no more connections than the policy
allows, those that are being opened among them; a request is sent a second time only where the server closed a
connection that had been idle, without a byte of an answer; closed, it opens nothing more.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import httpx

from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.http.connection import Connection, Limits

IDEMPOTENT = frozenset(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"))  # RFC 9110 9.2.2

Origin = tuple[str, str, int, str, bool]


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """`connections` at most to one server; an idle one is not used again after `keep_alive` seconds.

    `streams` are the connections to one server for requests that may last long. They are counted apart, so that long
    polls cannot keep short calls waiting.
    """

    connections: int = 64
    streams: int = 1024
    keep_alive: float = 30.0


class _Pool:
    """The connections to one server, last used first."""

    def __init__(self, origin: Origin, policy: TransportPolicy, tls: ssl.SSLContext | None) -> None:
        self.connections: set[Connection] = set()
        self.loop = asyncio.get_running_loop()
        self._origin = origin
        self._most = policy.streams if origin[-1] else policy.connections
        self._keep_alive = policy.keep_alive
        self._tls = tls
        self._closed = False
        self._idle: list[Connection] = []
        self._opening = 0  # room that is taken for connections to come
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()

    async def take(self, connect: float | None, wait: float | None, *, fresh: bool = False) -> Connection:
        """A connection for one exchange, open. Raises `ConnectError`, `ConnectTimeout`, `PoolTimeout`."""
        while True:
            self._drop_old()
            while self._idle and not fresh:
                connection = self._idle.pop()
                if connection.reusable:
                    return connection
                connection.abort()
            if self._room:
                self._opening += 1
                return await self._open(connect)
            given = self._idle.pop(0) if self._idle else await self._wait(wait)
            if given is None:
                return await self._open(connect)
            if given.open and not fresh:
                return given
            if given in self.connections:  # else the server closed it, and its room is somebody else's
                self._replace(given)
                return await self._open(connect)

    def _replace(self, connection: Connection) -> None:
        """Its room is taken for a new one."""
        self.connections.discard(connection)
        connection.abort()
        self._opening += 1

    @property
    def _room(self) -> bool:
        return len(self.connections) + self._opening < self._most and not self._closed

    def _drop_old(self) -> None:
        oldest = self.loop.time() - self._keep_alive
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).abort()

    async def _wait(self, limit: float | None) -> Connection | None:
        """A connection that somebody gave back, or None: room is taken for a new one."""
        if self._closed:
            raise httpx.ConnectError("the transport is closed")
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        timer = self.loop.call_later(limit, _expire, waiter) if limit is not None else None
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                given = waiter.result()  # handed over in the moment of the cancellation
                self.give(given) if given is not None else self._pass_on()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _open(self, limit: float | None) -> Connection:
        """Into room that was taken before."""
        connection = Connection(self._lost)
        # Not wait_for: up to Python 3.11 it may swallow a cancellation.
        connecting = spawn(self._connect(connection), name="connection")
        try:
            await asyncio.wait((connecting,), timeout=limit)
            if not connecting.done():
                raise httpx.ConnectTimeout("no connection in time")
            if (error := connecting.result()) is not None:
                raise httpx.ConnectError(f"no connection: {_why(error)}") from error
            if not connection.open or self._closed:
                raise httpx.ConnectError("the connection was closed at once")
        except BaseException:
            connecting.cancel()
            connection.abort()
            self._pass_on()
            raise
        self._opening -= 1
        self.connections.add(connection)
        return connection

    async def _connect(self, connection: Connection) -> Exception | None:
        _, host, port, name, _ = self._origin
        try:
            await self.loop.create_connection(
                lambda: connection, host, port, ssl=self._tls, server_hostname=name if self._tls else None
            )
        except (OSError, ValueError) as error:  # ValueError: a name that DNS or TLS cannot have
            return error
        return None

    def give(self, connection: Connection) -> None:
        """Back from an exchange."""
        if not connection.reusable or self._closed:
            connection.abort()
            return
        if (waiter := self._first()) is not None:
            waiter.set_result(connection)
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        self._drop_old()

    def renew(self) -> None:
        """None of the connections is used for another exchange."""
        for connection in self.connections:
            connection.last = True
        for connection in self._idle[:]:
            connection.abort()

    def close(self) -> None:
        self._closed = True
        for connection in list(self.connections):
            connection.abort()
        while (waiter := self._first()) is not None:
            waiter.set_exception(httpx.ConnectError("the transport is closed"))

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next()

    def _pass_on(self) -> None:
        """Room that was taken is not needed."""
        self._opening -= 1
        self._next()

    def _next(self) -> None:
        """Where there is room, it is the first waiter's, for a connection of its own."""
        while self._room and (waiter := self._first()) is not None:
            self._opening += 1
            waiter.set_result(None)

    def _first(self) -> asyncio.Future[Connection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None


def _why(error: Exception) -> str:
    """In words that do not name the server, as asyncio's do: whoever tells of the error names it."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0)
    return getattr(error, "strerror", None) or str(error)


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


class Place(NamedTuple):
    """Where a request goes. `target` is what stands in its first line."""

    scheme: str
    host: str
    port: int
    netloc: bytes
    target: bytes

    @classmethod
    def of(cls, url: httpx.URL) -> Place:
        return cls(url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80), url.netloc, url.raw_path)


class Fields(NamedTuple):
    """Headers, and as they go on the wire, with the empty line behind them."""

    headers: httpx.Headers
    lines: bytes

    @classmethod
    def of(cls, headers: httpx.Headers) -> Fields:
        """Raises `LocalProtocolError` where one would end its line (RFC 9112 11.1)."""
        raw = headers.raw
        lines = b"".join([b"%b: %b\r\n" % field for field in raw])
        if lines.count(b"\n") != len(raw) or lines.count(b"\r") != len(raw) or b"\0" in lines:
            raise httpx.LocalProtocolError("a line break in the head of a request")
        return cls(headers, lines + b"\r\n")


class Prepared(httpx.Request):
    """A request whose parts are complete: to work them out again, as httpx does, costs more than all else of a call.

    `fields` are sent as they are, `Host` and `Content-Length` among them, and may be shared: nobody changes them.
    """

    def __init__(self, method: str, place: Place, fields: Fields, body: bytes, extensions: dict[str, Any]) -> None:
        self.method = method
        self.headers = fields.headers
        self.stream = httpx.ByteStream(body)
        self.extensions = extensions
        self.place = place
        self.fields = fields

    @property
    def url(self) -> httpx.URL:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For transports that are not ours: to parse one costs as much as all else of a call."""
        place = self.place
        return httpx.URL(f"{place.scheme}://{place.netloc.decode('ascii')}{place.target.decode('ascii')}")


class FastTransport(httpx.AsyncBaseTransport):
    """Use it below an `httpx.AsyncClient`, or call `handle_async_request` itself with prepared requests."""

    def __init__(self, policy: TransportPolicy = TransportPolicy(), tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._tls = tls
        self._pools: dict[Origin, _Pool] = {}
        self._closed = False

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(len(pool.connections) for pool in self._pools.values())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        extensions: Mapping[str, Any] = request.extensions
        timeout = cast("Mapping[str, float | None]", extensions.get("timeout") or {})
        place = request.place if isinstance(request, Prepared) else Place.of(request.url)
        head, body = _head(request, place), _body(request)
        pool, bodyless = self._pool(place, extensions), request.method == "HEAD"
        total: float | None = extensions.get("total")
        waits = _within(timeout.get("connect"), total), _within(timeout.get("pool"), total)
        connection = await pool.take(*waits)
        until = pool.loop.time() + total if total is not None else None
        limits = Limits(timeout.get("read"), timeout.get("write"), until)
        try:
            await connection.exchange(head, body, bodyless=bodyless, limits=limits)
        except httpx.ReadError as lost:
            # The server closed an idle connection in the moment in which it was taken (RFC 9112 9.3.1).
            if not (connection.used and not connection.began and isinstance(body, bytes) and _again(request)):
                raise
            try:
                connection = await pool.take(*waits, fresh=True)
            except httpx.TransportError:
                raise lost from None  # the first one may have arrived, which no connection would deny
            await connection.exchange(head, body, bodyless=bodyless, limits=limits)
        if connection.complete:
            response = _response(connection, httpx.ByteStream(connection.take()))
            pool.give(connection)
            return response
        return _response(connection, _Body(pool, connection))

    def renew(self, server: httpx.URL) -> None:
        """No connection to this server is used again: on one of them answers are out of step with requests."""
        place = Place.of(server)
        for origin, pool in self._pools.items():
            if origin[:3] == (place.scheme, place.host, place.port):
                pool.renew()

    def _pool(self, place: Place, extensions: Mapping[str, Any]) -> _Pool:
        scheme, host = place.scheme, place.host
        if scheme not in ("http", "https") or not host:
            raise httpx.UnsupportedProtocol(f"neither http nor https: {scheme!r}")
        if self._closed:
            raise httpx.ConnectError("the transport is closed")
        name, stream = str(extensions.get("sni_hostname") or host), extensions.get("stream") is True
        origin = (scheme, host, place.port, name, stream)
        pool = self._pools.get(origin)
        if pool is None:
            tls = (self._tls or ssl.create_default_context()) if scheme == "https" else None
            pool = self._pools[origin] = _Pool(origin, self._policy, tls)
        return pool

    async def aclose(self) -> None:
        """Ends all connections, those in use too, and returns when their sockets are closed."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        for _ in range(100):  # each needs a turn or two of the loop, over TLS some more
            if not self.connections:
                break
            await asyncio.sleep(0)
        self._pools.clear()


def _within(limit: float | None, total: float | None) -> float | None:
    return total if limit is None else limit if total is None else min(limit, total)


def _again(request: httpx.Request) -> bool:
    said: bool | None = request.extensions.get("idempotent")
    return request.method in IDEMPOTENT if said is None else said


def _response(connection: Connection, stream: httpx.AsyncByteStream) -> httpx.Response:
    extensions = {"http_version": b"HTTP/1.1", "reason_phrase": connection.reason}
    return httpx.Response(connection.status, headers=connection.headers, stream=stream, extensions=extensions)


def _head(request: httpx.Request, place: Place) -> bytes:
    """Request line and headers. Raises `LocalProtocolError` where a part would end its line (RFC 9112 11.1)."""
    target: bytes = request.extensions.get("target") or place.target
    if b" " in target or b"\n" in target or b"\r" in target or b"\0" in target:
        raise httpx.LocalProtocolError("a line break in the head of a request")
    fields = request.fields if isinstance(request, Prepared) else Fields.of(request.headers)
    return b"%b %b HTTP/1.1\r\n%b" % (request.method.encode("ascii"), target, fields.lines)


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

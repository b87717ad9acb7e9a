"""The sockets of DNS: UDP and TCP on each address.

UDP is read from the bare socket, many datagrams in one turn of the event loop. That is faster than an asyncio
transport, and a turn can be kept short, so that HTTP has its turns in between (decision 0024).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

from cachetools import LRUCache

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.frontends.dns.responder import Repeatable, Responder
from nacos_proxy.runtime import Clock, Supervisor, stop, ticks
from nacos_proxy.wire.dns.messages import MAX_LOOPBACK, MAX_QUERY, MAX_UDP

log = logging.getLogger("nacos_proxy.dns")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TURN = 64  # what may be answered in one turn: that many prepared answers,
COST = 8  # or a query that must be parsed for each 8 of them,
MAX_TURN = 0.003  # and in any case not for longer than this, in seconds, but for one query
TICK = 1.0
IDLE = 15.0  # seconds after which a TCP connection without a query is closed
PIPELINED = 32  # queries of a TCP connection that may wait for their answers
UNREAD = 256 << 10  # bytes of answers that a TCP client may leave unread
_LENGTH = struct.Struct("!H")


@dataclass(frozen=True, slots=True)
class DnsPolicy:
    """`allow`: networks of other hosts that may ask; None: all. `max_connections`: by TCP, in total."""

    allow: tuple[Network, ...] | None = ()
    max_connections: int = 1000


Listeners: TypeAlias = tuple[socket.socket, socket.socket]
"""Bound UDP and TCP sockets with the same address, which is not any address of this host (0.0.0.0, ::)."""


class DnsServer:
    """Serves from `start` to `stop`. `off`: why it does not serve, '' if it does."""

    def __init__(self, responder: Responder, policy: DnsPolicy, clock: Clock, supervisor: Supervisor) -> None:
        self.responder = responder
        self.addresses: list[str] = []
        self.off = "it is not started"
        self.connections: dict[TcpConnection, None] = {}
        self.shares: Shares[str] = Shares(policy.max_connections)
        self.clock = clock
        self._allow = policy.allow
        self._own: set[str] = set()
        self._allowed: LRUCache[str, bool] = LRUCache(1024)
        self._supervisor = supervisor
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, listeners: Collection[Listeners]) -> None:
        """Answers on these sockets."""
        loop = asyncio.get_running_loop()
        for udp, tcp in listeners:
            udp.setblocking(False)
            self._sockets.append(udp)
            host, port = udp.getsockname()[:2]
            self._own.add(host)
            loopback = ipaddress.ip_address(host).is_loopback
            table = self.responder.repeatable(MAX_LOOPBACK if loopback else MAX_UDP)
            loop.add_reader(udp, partial(self.read_udp, udp, table, loopback))
            self._servers.append(await loop.create_server(lambda: TcpConnection(self), sock=tcp))
            self.addresses.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self.off = ""
        self._ticker = self._supervisor.keep(self._close_idle, name="dns")

    async def stop(self) -> None:
        await stop(self._ticker)
        for udp in self._sockets:
            asyncio.get_running_loop().remove_reader(udp)
            udp.close()
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.abort()
        self._sockets.clear()
        self.off = "it is stopped"

    def allows(self, client: str) -> bool:
        """Whether a client, given by its address, may ask."""
        if self._allow is None:
            return True
        allowed = self._allowed.get(client)
        if allowed is None:
            address = ipaddress.ip_address(client.partition("%")[0])
            here = address.is_loopback or client in self._own  # this host asks its own address from that address
            allowed = here or any(address in network for network in self._allow)
            self._allowed[client] = allowed
        return allowed

    def read_udp(self, udp: socket.socket, table: Repeatable, loopback: bool) -> None:
        """Answers what has arrived, but not more than one turn allows. `loopback`: only this host can ask."""
        now, get, responder, left = self.clock.now(), table.get, self.responder, TURN
        counts = responder.counts
        while left > 0:
            try:
                packet, client = udp.recvfrom(MAX_QUERY)
            except BlockingIOError:
                return
            except OSError as error:  # the error of an earlier answer
                left -= 1
                counts.dropped["not sent"] += 1
                log.debug("DNS: %s", error)
                continue
            prepared = get(packet[2:])
            if not loopback and not self.allows(client[0]):
                left -= 1
                counts.dropped["not allowed"] += 1
            elif prepared is not None and prepared.valid_until > now:
                left -= 1
                counts.repeated += 1
                counts.answers[prepared.code] += 1
                counts.reads[prepared.outcome] += 1
                self._send_udp(udp, client, packet[:2] + prepared.next())
            else:
                left -= COST
                responder.answer(packet, client[0], partial(self._send_udp, udp, client), table)
                if self.clock.now() - now > MAX_TURN:
                    return

    def _send_udp(self, udp: socket.socket, client: Any, message: bytes) -> None:
        try:
            udp.sendto(message, client)
        except OSError:  # its buffer is full, or the client cannot be reached: it will ask again
            self.responder.counts.dropped["not sent"] += 1

    async def _close_idle(self) -> None:
        async for now, gap in ticks(self.clock, TICK):
            for connection in list(self.connections):
                connection.look(now, gap)

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        if self.off:
            return {"state": "off", "reason": self.off}
        counts = self.responder.counts
        return {
            "state": "ok",
            "addresses": self.addresses,
            "answers": dict(counts.answers),
            "repeated": counts.repeated,
            "truncated": counts.truncated,
            "dropped": dict(counts.dropped),
            "waiting": self.responder.waiting.total,
            "connections": len(self.connections),
            "prepared": self.prepared,
        }

    @property
    def prepared(self) -> int:
        return sum(map(len, self.responder.tables.values()))


class TcpConnection(asyncio.Protocol):
    """A client by TCP: messages with their length in front (RFC 1035 4.2.2), answered in any order (RFC 7766)."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._client = ""
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waiting = 0
        self._unread = False  # it does not read its answers
        self._ending = False
        self._scheduled = False
        self._last = server.clock.now()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._client = str((transport.get_extra_info("peername") or ("",))[0])
        if not self._server.allows(self._client) or not self._server.shares.room(self._client):
            self._server.responder.counts.dropped["connection refused"] += 1
            transport.abort()
            return
        self._transport = transport
        transport.set_write_buffer_limits(UNREAD)
        self._server.shares.take(self._client)
        self._server.connections[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._server.shares.give_back(self._client)
            del self._server.connections[self]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        self._ending = True
        return self._waiting > 0  # True: we close, after the last answer

    def pause_writing(self) -> None:
        self._unread = True

    def resume_writing(self) -> None:
        self._unread = False
        self._advance()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def look(self, now: float, gap: float) -> None:
        """Ends the connection if it has long had no query. `gap`: seconds for which this process stood still."""
        self._last += gap
        if now - self._last > IDLE and (self._unread or not self._waiting):
            self.abort()

    def _advance(self) -> None:
        """Answers complete messages, a few in one turn, while the client reads its answers."""
        begun = self._server.clock.now()
        for _ in range(TURN // COST):
            if self._transport is None or self._unread or self._waiting >= PIPELINED:
                break
            if len(self._buffer) < _LENGTH.size:
                break
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_QUERY:
                self.abort()
                return
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            packet = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            self._last = self._server.clock.now()
            self._waiting += 1
            if not self._server.responder.answer(packet, self._client, self._reply):
                self.abort()
                return
            if self._server.clock.now() - begun > MAX_TURN:
                self._again()
                break
        else:
            self._again()
        self._throttle()

    def _again(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run_again)

    def _run_again(self) -> None:
        self._scheduled = False
        self._advance()

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if len(self._buffer) > MAX_QUERY:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _reply(self, message: bytes) -> None:
        self._waiting -= 1
        if self._transport is None:
            return
        self._transport.write(_LENGTH.pack(len(message)) + message)
        if self._ending and not self._waiting:
            self._transport.close()
        elif len(self._buffer) >= _LENGTH.size:
            self._again()

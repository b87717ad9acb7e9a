"""UDP push from the upstream, as legacy clients get it (NACOS.md 6): 1.x has no other, later servers still do it.

A subscription is some parameters of the list that is polled anyway, so it costs the upstream no call and lasts as long
as the polls go on. What comes is a hint and no more: the list stays the one source, and polling keeps its pace, since
nobody tells whether datagrams find their way. Not for: the datagrams' form (`wire.udp`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from cachetools import LRUCache

from proxy.model import ServiceKey
from proxy.registry.servers import Server
from proxy.wire.base import HttpRequest
from proxy.wire.udp import read_push, write_ack

log = logging.getLogger("nacos_proxy.push")

AGENT = "Nacos-Go-Client:v1.0.0"  # servers push to agents that they know; 1.x words its list for this one as for us
MOST = 20_000  # names of services that are remembered as asked for


class PushReceiver:
    """Opens a socket with the first server that is to push, on the address that faces it. `stop` closes it.

    `hint` is told of each service that is said to have changed; `received` counts the datagrams.
    """

    def __init__(self, versions: Collection[str], port: int = 0) -> None:
        """`versions` are the beginnings of those that are to push; `port` 0 takes any free one."""
        self.hint: Callable[[ServiceKey], None] = lambda _: None
        self.received = 0
        self._versions = tuple(versions)
        self._port = port
        self._sockets: dict[str, asyncio.DatagramTransport] = {}
        self._wishes: dict[str, tuple[tuple[str, str], ...]] = {}
        self._senders: set[str] = set()
        self._asked: LRUCache[str, frozenset[ServiceKey]] = LRUCache(MOST)

    async def meet(self, server: Server) -> None:
        """A server has told its version: its lists are subscribed to from now on, or no longer."""
        self._wishes.pop(server.origin, None)
        if not server.spoken.version.startswith(self._versions):
            return
        place, loop = urlsplit(server.origin), asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(place.hostname, place.port or 80, family=socket.AF_INET, proto=17)
            here = _facing(found[0][4])
            if here not in self._sockets:
                opened, _ = await loop.create_datagram_endpoint(lambda: _Socket(self), local_addr=(here, self._port))
                self._sockets[here] = opened
        except (OSError, UnicodeError) as error:  # the latter of names that cannot be
            log.warning("no UDP push from %s: %s; polling keeps time", server.origin, error)
            return
        port = self._sockets[here].get_extra_info("sockname")[1]
        self._senders.update(str(address[4][0]) for address in found)
        self._wishes[server.origin] = (("clientIP", here), ("udpPort", str(port)), ("app", "nacos-proxy"))

    def covers(self, servers: Collection[Server]) -> bool:
        """Whether all of these are asked to push."""
        return bool(servers) and all(server.origin in self._wishes for server in servers)

    def subscribing(self, server: Server, key: ServiceKey, request: HttpRequest) -> HttpRequest:
        """A list of v1, which asks for pushes where the server is to push."""
        wish = self._wishes.get(server.origin)
        if wish is None:
            return request
        asked = self._asked.get(key.grouped, frozenset())
        if key not in asked:
            self._asked[key.grouped] = asked | {key}
        return request._replace(query=(*request.query, *wish), headers={"user-agent": AGENT})

    def heard(self, packet: bytes, sender: str) -> bytes | None:
        """A datagram; its acknowledgement, None where it is no push of a server that was met."""
        push = read_push(packet) if sender in self._senders else None
        if push is None:
            return None
        self.received += 1
        for key in self._asked.get(push.service, ()):  # a push does not tell its namespace
            self.hint(key)
        return write_ack(push.reference)

    def stop(self) -> None:
        for transport in self._sockets.values():
            transport.close()


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, receiver: PushReceiver) -> None:
        self._receiver = receiver
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        answer = self._receiver.heard(data, addr[0])
        if answer is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)


def _facing(address: Any) -> str:
    """This host's address on the way to another; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])

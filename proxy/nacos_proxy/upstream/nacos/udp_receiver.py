"""UDP push from the upstream, as legacy clients get it (nacos-http.md 6): 1.x has no other, later servers still do it.

A subscription is some parameters of the list that is polled anyway, so it costs the upstream no call and lasts as long
as the polls go on. What comes is a hint and no more: the list stays the one source, and polling keeps its pace, since
nobody tells whether datagrams find their way. Not for: the datagrams' form (`wire.udp`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cachetools import LRUCache

from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.nacos.servers import Server
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.udp import read_push, write_ack

log = logging.getLogger("nacos_proxy.push")

AGENT = "Nacos-Go-Client:v1.0.0"  # servers push to agents that they know; 1.x words its hosts for this one as for us
MOST = 20_000  # names of services that are remembered as asked for
NAMESPACES = 16  # of each of them, the last ones: a push does not tell its namespace
STRANGERS = 100  # senders of ignored datagrams that are logged


@dataclass(slots=True)
class _Link:
    """What a list of one server says more; whose datagrams it may send; whether it was asked so."""

    wish: tuple[tuple[str, str], ...]
    senders: frozenset[str]
    asked: bool = False


class PushReceiver:
    """Opens a socket with the first server that is to push, on the address that faces it. `stop` closes it for good.

    `hint` is told of each service that is said to have changed. `received` counts the datagrams, `ignored` those of
    senders that are no address of the upstream.
    """

    def __init__(
        self, versions: Collection[str], port: int = 0, hint: Callable[[ServiceKey], None] = lambda _: None
    ) -> None:
        """`versions` are the beginnings of those that are to push; `port` 0 takes any free one."""
        self.hint = hint
        self.received = 0
        self.ignored = 0
        self._versions = tuple(versions)
        self._port = port
        self._sockets: dict[str, asyncio.DatagramTransport] = {}
        self._opening = asyncio.Lock()  # the nodes of a cluster are met at the same time
        self._links: dict[str, _Link] = {}
        self._asked: LRUCache[str, tuple[ServiceKey, ...]] = LRUCache(MOST)
        self._strangers: set[str] = set()
        self._closed = False

    async def meet(self, server: Server) -> None:
        """A server has told its version: its lists are subscribed to from now on. Raises `OSError` where that fails."""
        if not self._wanted(server):
            return
        place, loop = urlsplit(server.origin), asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(place.hostname, place.port or 80, family=socket.AF_INET, proto=17)
        except UnicodeError as error:  # a name that cannot be one
            raise OSError(str(error)) from error
        here = _facing(found[0][4])
        async with self._opening:
            if self._closed:
                return
            if here not in self._sockets:
                opened, _ = await loop.create_datagram_endpoint(lambda: _Socket(self), local_addr=(here, self._port))
                self._sockets[here] = opened
        port = self._sockets[here].get_extra_info("sockname")[1]
        wish = (("clientIP", here), ("udpPort", str(port)), ("app", "nacos-proxy"))
        self._links[server.origin] = _Link(wish, frozenset(str(address[4][0]) for address in found))

    def part(self, servers: Collection[Server]) -> None:
        """These are all that there are now."""
        there = {server.origin for server in servers}
        self._links = {origin: link for origin, link in self._links.items() if origin in there}

    def covers(self, servers: Collection[Server]) -> bool:
        """Whether all of these are asked to push."""
        return bool(servers) and all((link := self._link(server)) is not None and link.asked for server in servers)

    def subscribing(self, server: Server, key: ServiceKey, request: HttpRequest) -> HttpRequest:
        """A list of v1, which asks for pushes where the server is to push."""
        link = self._link(server)
        if link is None:
            return request
        link.asked = True
        asked = self._asked.get(key.grouped, ())
        if key not in asked:
            self._asked[key.grouped] = (*asked, key)[-NAMESPACES:]
        return request._replace(query=(*request.query, *link.wish), headers={"user-agent": AGENT})

    def _wanted(self, server: Server) -> bool:
        return server.spoken.version.startswith(self._versions)

    def _link(self, server: Server) -> _Link | None:
        return self._links.get(server.origin) if self._wanted(server) else None

    def heard(self, packet: bytes, sender: str) -> bytes | None:
        """A datagram; its acknowledgement, None where it is no push of a server that was met."""
        if not any(sender in link.senders for link in self._links.values()):
            self.ignored += 1
            if sender not in self._strangers and len(self._strangers) < STRANGERS:
                self._strangers.add(sender)
                log.warning("UDP push from %s is ignored: that is no address of the upstream", sender)
            return None
        push = read_push(packet)
        if push is None:
            return None
        self.received += 1
        for key in self._asked.get(push.service, ()):
            self.hint(key)
        return write_ack(push.reference)

    def tallies(self) -> dict[str, int]:
        return {"received": self.received, "ignored": self.ignored}

    def stop(self) -> None:
        self._closed = True
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

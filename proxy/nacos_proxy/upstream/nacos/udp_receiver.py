"""Receives UDP push from the upstream, as legacy clients do (nacos-http.md 6). 1.x has no other push.

A subscription consists of parameters of the list that is polled anyway, so it costs no call and lasts as long as the
polling. A datagram is only a hint: snapshots come from the list, and polling does not slow down, because nothing tells
whether datagrams get lost.
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

AGENT = "Nacos-Go-Client:v1.0.0"  # servers push only to known agents; 1.x lists the same hosts to this agent as to ours
MAX_NAMES = 20_000  # names of subscribed services
MAX_NAMESPACES = 16  # the last ones of each name: a push does not name its namespace
MAX_LOGGED_SENDERS = 100  # senders of ignored datagrams


@dataclass(slots=True)
class _Subscription:
    """A subscription to one server. `parameters` are added to requests for lists; `sent`: such a request was made.

    `senders` are the addresses that the server's pushes come from.
    """

    parameters: tuple[tuple[str, str], ...]
    senders: frozenset[str]
    sent: bool = False


class PushReceiver:
    """Opens a socket for the first server that can push, on the local address that routes to it.

    `hint` is called with each service that may have changed. `received` counts pushes, `ignored` datagrams from other
    senders than the upstream.
    """

    def __init__(
        self, versions: Collection[str], port: int = 0, hint: Callable[[ServiceKey], None] = lambda _: None
    ) -> None:
        """Subscribes to servers whose version starts with one of `versions`. `port` 0 takes any free one."""
        self.hint = hint
        self.received = 0
        self.ignored = 0
        self._versions = tuple(versions)
        self._port = port
        self._sockets: dict[str, asyncio.DatagramTransport] = {}
        self._opening = asyncio.Lock()  # the versions of a cluster's nodes arrive at the same time
        self._subscriptions: dict[str, _Subscription] = {}
        self._subscribed: LRUCache[str, tuple[ServiceKey, ...]] = LRUCache(MAX_NAMES)
        self._logged_senders: set[str] = set()
        self._closed = False

    async def subscribe(self, server: Server) -> None:
        """Prepares the subscription to a server of a known version. Raises `OSError`."""
        if not self._can_push(server):
            return
        address, loop = urlsplit(server.origin), asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(address.hostname, address.port or 80, family=socket.AF_INET, proto=17)
        except UnicodeError as error:  # an invalid name
            raise OSError(str(error)) from error
        local = _facing(found[0][4])
        async with self._opening:
            if self._closed:
                return
            if local not in self._sockets:
                opened, _ = await loop.create_datagram_endpoint(lambda: _Socket(self), local_addr=(local, self._port))
                self._sockets[local] = opened
        port = self._sockets[local].get_extra_info("sockname")[1]
        parameters = (("clientIP", local), ("udpPort", str(port)), ("app", "nacos-proxy"))
        senders = frozenset(str(info[4][0]) for info in found)
        self._subscriptions[server.origin] = _Subscription(parameters, senders)

    def retain(self, servers: Collection[Server]) -> None:
        """Ends the subscriptions to all other servers."""
        origins = {server.origin for server in servers}
        self._subscriptions = {key: kept for key, kept in self._subscriptions.items() if key in origins}

    def covers(self, servers: Collection[Server]) -> bool:
        """Whether all of these servers were asked to push."""
        return bool(servers) and all((s := self._subscription(server)) is not None and s.sent for server in servers)

    def with_push_address(self, server: Server, key: ServiceKey, request: HttpRequest) -> HttpRequest:
        """Makes a list request of v1 subscribe to pushes, if the server can push."""
        subscription = self._subscription(server)
        if subscription is None:
            return request
        subscription.sent = True
        subscribed = self._subscribed.get(key.grouped, ())
        if key not in subscribed:
            self._subscribed[key.grouped] = (*subscribed, key)[-MAX_NAMESPACES:]
        return request._replace(query=(*request.query, *subscription.parameters), headers={"user-agent": AGENT})

    def _can_push(self, server: Server) -> bool:
        return server.capabilities.version.startswith(self._versions)

    def _subscription(self, server: Server) -> _Subscription | None:
        return self._subscriptions.get(server.origin) if self._can_push(server) else None

    def receive(self, packet: bytes, sender: str) -> bytes | None:
        """Handles a datagram. Returns the acknowledgement, None if no subscribed server sent it, or it is no push."""
        if not any(sender in subscription.senders for subscription in self._subscriptions.values()):
            self.ignored += 1
            if sender not in self._logged_senders and len(self._logged_senders) < MAX_LOGGED_SENDERS:
                self._logged_senders.add(sender)
                log.warning("ignored UDP push from %s: it is not an address of the upstream", sender)
            return None
        push = read_push(packet)
        if push is None:
            return None
        self.received += 1
        for key in self._subscribed.get(push.service, ()):
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
        ack = self._receiver.receive(data, addr[0])
        if ack is not None and not self._transport.is_closing():
            self._transport.sendto(ack, addr)


def _facing(address: Any) -> str:
    """The local address on the route to another host. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])

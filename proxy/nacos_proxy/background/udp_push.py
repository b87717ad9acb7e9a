"""The socket of UDP push: sends lists to legacy clients and receives their acknowledgements.

Unless a setting allows more, it sends only to loopback and this host's own addresses, because a client may name any
address in a list call.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nacos_proxy.catalog.udp_subscribers import Subscription, UdpSubscribers
from nacos_proxy.model.services import Change, Snapshot
from nacos_proxy.runtime import Clock, Supervisor, stop, ticks
from nacos_proxy.wire.nacos.base import ReadService
from nacos_proxy.wire.nacos.udp import qualifies, read_ack, write_push

log = logging.getLogger("nacos_proxy.udp")

_SCOPE = re.compile(r"[0-9A-Za-z_.:@-]{0,15}")  # the name or number of an interface

Encode = Callable[[ReadService, Snapshot], bytes]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class UdpPolicy:
    """`allow`: networks that may get pushes, besides loopback and this host's own addresses.

    At most `max_sends` pushes go out in a row, and for at most `max_busy` seconds; then follows a `pause` (s).
    """

    allow: tuple[Network, ...] = ()
    tick: float = 1.0
    max_sends: int = 50
    max_busy: float = 0.002
    pause: float = 0.01


class UdpPush(asyncio.DatagramProtocol):
    """A follower of the agent's changes. `start`, then `stop`."""

    def __init__(
        self,
        subscribers: UdpSubscribers,
        encode: Encode,
        clock: Clock,
        policy: UdpPolicy,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.sent = 0
        self.refused = 0
        self.too_large = 0
        self.subscribers = subscribers
        self._encode = encode
        self._clock = clock
        self._supervisor = supervisor or Supervisor(clock)
        self._policy = policy
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._backlog = asyncio.Event()  # set while subscribers wait for a change
        self._reference = 0
        self._ipv6 = False

    async def start(self, host: str) -> None:
        """Open the socket on a free port. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, 0))
        self._reference = int(self._clock.wall() * 1e6)  # the Node SDK keeps numbers exact below 2**53 only
        self._ipv6 = ":" in host
        self._tasks = [
            self._supervisor.keep(self._run, name="udp push"),
            self._supervisor.keep(self._send_backlog, name="udp changes"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            await stop(task)
        if self._transport is not None:
            self._transport.close()

    def listed(self, call: ReadService, snapshot: Snapshot) -> None:
        """A list call was answered. If its push address qualifies, a subscription begins or goes on."""
        target = call.push
        if target is None or not qualifies(target.agent):
            return
        ip = plain(target.ip)
        if not allowed(ip, self._policy.allow) or not self._reaches(ip):
            self.refused += 1
            return
        now = self._clock.now()
        new = self.subscribers.listed(call.service, (ip, target.port), call.clusters, target.agent, target.app, now)
        if new is not None:
            self._send(new, snapshot)

    def restore(self, saved: Sequence[Subscription]) -> None:
        """Restore subscriptions after a restart. They expire unless their clients list again."""
        now = self._clock.now()
        for s in saved:
            if allowed(s.address[0], self._policy.allow) and self._reaches(s.address[0]):
                self.subscribers.listed(s.service, s.address, s.clusters, s.agent, s.app, now)

    def follow(self, change: Change) -> None:
        """Push the change to its subscribers; a follower of the agent."""
        self.subscribers.changed(change.after, self._clock.now())
        if not self._backlog.is_set():
            self._send_some()

    def _send_some(self) -> None:
        """Push to some subscribers. To compress a long list for thousands at once would block the loop for seconds."""
        end = self._clock.now() + self._policy.max_busy
        try:
            for _ in range(self._policy.max_sends):
                if (push := self.subscribers.next()) is None:
                    break
                self._send(*push)
                if self._clock.now() > end:
                    break
        finally:  # an exception in a push must not stop the others
            if self.subscribers.queued:
                self._backlog.set()
            else:
                self._backlog.clear()

    async def _send_backlog(self) -> None:
        while True:
            await self._backlog.wait()
            await self._clock.sleep_until(self._clock.now() + self._policy.pause)
            self._send_some()

    def tallies(self) -> dict[str, int]:
        """Counts of datagrams (`sent` includes repetitions; `given_up` got no answer) and of refused addresses."""
        return {
            "sent": self.sent,
            "acknowledged": self.subscribers.acknowledged,
            "given_up": self.subscribers.given_up,
            "refused": self.refused,
            "too_large": self.too_large,
        }

    def _send(self, subscription: Subscription, snapshot: Snapshot) -> None:
        self._reference += 1
        text = self._encode(ReadService(subscription.service, subscription.clusters), snapshot)
        packet = write_push(text, self._reference)
        if packet is None:
            self.too_large += 1
            return
        self.subscribers.sent(self._reference, subscription, packet, self._clock.now())
        self._put(packet, subscription)

    def _put(self, packet: bytes, subscription: Subscription) -> None:
        if self._transport is not None and not self._transport.is_closing():
            ip, port = subscription.address
            self._transport.sendto(packet, (f"::ffff:{ip}" if self._ipv6 and ":" not in ip else ip, port))
            self.sent += 1

    def _reaches(self, ip: str) -> bool:
        """An IPv4 socket cannot send to IPv6 (uvloop raises); an IPv6 socket can send to IPv4."""
        return self._ipv6 or ":" not in ip

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        reference = read_ack(data)
        if reference is not None:
            self.subscribers.acked(reference, (plain(addr[0]), addr[1]))

    def error_received(self, exc: Exception) -> None:
        log.debug("udp: %s", exc)

    async def _run(self) -> None:
        async for now, gap in ticks(self._clock, self._policy.tick):
            self.subscribers.shift(gap, now)
            self.subscribers.expire(now)
            for sent in self.subscribers.due_again(now):
                self._put(sent.packet, sent.subscription)


def plain(ip: str) -> str:
    """An IPv4-mapped IPv6 address as an IPv4 address; any other text unchanged."""
    try:
        mapped = getattr(ipaddress.ip_address(ip), "ipv4_mapped", None)
    except ValueError:
        return ip
    return ip if mapped is None else str(mapped)


def allowed(ip: str, networks: Sequence[Network]) -> bool:
    """Whether an address is loopback, this host's own or in `networks`. A name is never resolved, so not allowed."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    # `ipaddress` accepts any text as the scope of an IPv6 address, but an invalid one closes asyncio's socket.
    if _SCOPE.fullmatch(getattr(address, "scope_id", None) or "") is None:
        return False
    if address.is_loopback or any(address in network for network in networks):
        return True
    return _is_ours(str(address), socket.AF_INET6 if address.version == 6 else socket.AF_INET)


def _is_ours(ip: str, family: int) -> bool:
    """Binds a socket to find out: only this host's addresses can be bound. Broadcast addresses refuse to connect."""
    if ipaddress.ip_address(ip).is_unspecified or ipaddress.ip_address(ip).is_multicast:
        return False
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
            probe.connect((ip, 9))
        except OSError:
            return False
    return True

"""gRPC push of Nacos 2.0 on, by the official Rust SDK's binding: the optional extra `push`. Says that, never what.

Not for: snapshots; the HTTP list stays their one source. Only the clusters are learned from here, since some servers
list by HTTP no others than they are asked for. Without the extra, or where the gRPC port is closed, this says
that it is not alive, and the poller keeps time. How a client is made: `sdk`.

What the binding does, seen with 0.8.0 against r-nacos: it has one namespace per client and never lets a
connection or a subscription go, so what is no longer wanted is only ignored. It reconnects by itself, but says nothing
of a loss: calls just wait. Hence the probe, a query that must be answered in time. It also subscribes anew by itself,
one service after the other at 30 ms each, a minute for 2,000: after a loss that the probe has seen all are subscribed
again from here, which takes a second; a shorter one is left to the SDK and to the safety poll. It calls listeners in a
thread of its own, with the instances but not the service. Below HOME it writes a file for each service, named as the
service is: what is no plain file name is not given to it. A client cannot be told of other servers: where one of its
own is no longer among those of the address server, another client takes its place, a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, cast

from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import (
    Clock,
    Supervisor,
    at_most,
    spawn,
    stop,
)
from nacos_proxy.upstream.grpc.sdk import (
    Client,
    PushPolicy,
    Told,
    connect,
    failure,
)
from nacos_proxy.upstream.grpc.sdk import available as available

log = logging.getLogger("nacos_proxy.push")

LONGEST_NAME = 200  # bytes, of the 255 that a file name may have
MOST_RENEWALS = 100  # each leaves a listener with the SDK for each service
MOST_CLIENTS = 16  # of one namespace, each with its threads and its subscriptions
SDK_RENEWAL = 0.05  # seconds that the SDK takes, at most, to subscribe to one service anew


def pushable(key: ServiceKey) -> bool:
    """Whether a service may become the name of a file of the SDK's."""
    return "/" not in key.name and "\\" not in key.name and len(key.grouped.encode()) <= LONGEST_NAME


Connect = Callable[[PushPolicy, str], Awaitable[Client]]
Hint = Callable[[ServiceKey, Collection[str]], None]


def _no_hint(key: ServiceKey, clusters: Collection[str]) -> None:
    """Nobody has use of it."""


class GrpcPush:
    """Implements `Watchable`; the tasks start with the first service that is watched, and end with `close`.

    `hint` is told of the clusters in which a service has instances.
    """

    def __init__(
        self,
        policy: PushPolicy,
        clock: Clock,
        connect: Connect = connect,
        hint: Hint = _no_hint,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.policy = policy
        self.supervisor = supervisor or Supervisor(clock)
        self.clock = clock
        self.connect = connect
        self.hint = hint
        self.connecting = asyncio.Lock()
        self.unavailable = ""  # why there is no client, where none could be made yet
        self.servers = policy.servers
        self._wanted: frozenset[ServiceKey] = frozenset()
        self._feeds: dict[str, _Feed] = {}
        self._told: dict[ServiceKey, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def alive(self) -> bool:
        feeds = self._feeds.values()
        return bool(feeds) and not self._closed and all(feed.alive for feed in feeds)

    def covers(self, key: ServiceKey) -> bool:
        feed = self._feeds.get(key.namespace)
        return feed is not None and feed.covers(key)

    @property
    def subscriptions(self) -> int:
        """How many the SDK holds, wanted or not."""
        return sum(len(feed.subscribed) for feed in self._feeds.values())

    def watch(self, services: Collection[ServiceKey]) -> None:
        wanted = frozenset(services)
        if wanted == self._wanted or self._closed:
            return
        added, self._wanted = wanted - self._wanted, wanted
        for key in added:
            feed = self._feed(key.namespace) if pushable(key) else None
            if feed is not None:
                feed.want(key)

    def follow(self, servers: Iterable[str]) -> None:
        """The address server names other servers now. Those that only came are left to the next client."""
        before, self.servers = self.servers, tuple(servers)
        if set(before) != set(self.servers) and not self._closed:
            for feed in self._feeds.values():
                feed.follow(self.servers)

    def _feed(self, namespace: str) -> _Feed | None:
        feed = self._feeds.get(namespace)
        if feed is None and len(self._feeds) < self.policy.namespaces:
            feed = self._feeds[namespace] = _Feed(self, namespace)
        return feed

    async def changes(self) -> AsyncIterator[ServiceKey]:
        while not self._closed:
            if not self._told:
                self._wake.clear()
                await self._wake.wait()
                continue
            key = next(iter(self._told))
            del self._told[key]
            yield key

    def tell(self, key: ServiceKey) -> None:
        """A service changed; collapsed with what waits to be yielded."""
        if key in self._wanted:
            self._told[key] = None
            self._wake.set()

    async def close(self) -> None:
        """The SDK's threads go on, and may call; nobody hears them any more."""
        self._closed = True
        self._wanted = frozenset()
        self._wake.set()
        for feed in self._feeds.values():
            await feed.close()


class _Feed:
    """The client of one namespace. `asked` counts the subscriptions made or under way, `failing` are those refused."""

    def __init__(self, push: GrpcPush, namespace: str) -> None:
        self.namespace = namespace
        self.asked = 0
        self.subscribed: set[ServiceKey] = set()
        self.failing: set[ServiceKey] = set()
        self.renewals = 0
        self._clients = 0
        self._servers: frozenset[str] = frozenset()  # those of the client
        self._push = push
        self._loop = asyncio.get_running_loop()
        self._known: set[ServiceKey] = set()
        self._pending: dict[ServiceKey, float] = {}
        self._waiting: deque[ServiceKey] = deque()
        self._wake = asyncio.Event()
        self._answered_since: float | None = None
        self._task = self._begin()
        self._under_way: set[asyncio.Task[None]] = set()
        self._resting: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        """It answers, and has for a while."""
        since, followed = self._answered_since, self._servers.issubset(self._push.servers)
        return since is not None and self._push.clock.now() - since >= self._push.policy.settle and followed

    def covers(self, key: ServiceKey) -> bool:
        """Whether its subscription is confirmed."""
        return key in self.subscribed and key not in self.failing and key not in self._pending

    def follow(self, servers: Collection[str]) -> None:
        """Anew where there is no client yet, or where it may be at a server that is none of these any more."""
        if not self._servers.issubset(servers) and self._clients >= MOST_CLIENTS:
            log.warning("push of %s ends: the servers changed too often; polling keeps time", self.namespace)
        elif not self._servers or not self._servers.issubset(servers):
            self._begin_anew()

    def _begin_anew(self) -> None:
        for task in (self._task, *self._under_way, *self._resting):
            task.cancel()
        now = self._push.clock.now()
        self._servers, self._answered_since = frozenset(), None
        self.subscribed.clear()
        self.failing.clear()
        self._pending = dict.fromkeys(self._known, now)
        self._waiting = deque(self._known)
        self._task = self._begin()

    def want(self, key: ServiceKey) -> None:
        if key in self.subscribed:
            self._push.tell(key)  # its changes were of no interest for a while
        elif key not in self._known and self.asked < self._push.policy.max_services:
            self._known.add(key)
            self.asked += 1
            self._queue(key)

    def _queue(self, key: ServiceKey) -> None:
        self._pending[key] = self._push.clock.now()
        self._waiting.append(key)
        self._wake.set()

    def _begin(self) -> asyncio.Task[None]:
        return self._push.supervisor.keep(self._run, name=f"push of {self.namespace}")

    async def _run(self) -> None:
        client = await self._connected()
        probe = self._push.supervisor.keep(lambda: self._probe(client), name=f"push probe of {self.namespace}")
        try:
            while True:
                self._wake.clear()
                while self._waiting and len(self._under_way) < self._push.policy.together:
                    self._start(client, self._waiting.popleft())
                await self._wake.wait()
        finally:
            await stop(probe)

    async def _connected(self) -> Client:
        policy, clock = self._push.policy, self._push.clock
        pause = policy.pause
        while True:
            try:
                async with self._push.connecting:
                    servers = self._push.servers
                    client = await self._push.connect(replace(policy, servers=servers), self.namespace)
                self._clients += 1
                self._servers = frozenset(servers)
                self._push.unavailable = ""
                return client
            except (OSError, RuntimeError) as error:
                if str(error) != self._push.unavailable:
                    self._push.unavailable = str(error)
                    log.warning("no gRPC push: %s; changes are found by polling", error)
            await clock.sleep_until(clock.now() + pause)
            pause = min(pause * 2, policy.longest_pause)

    def _start(self, client: Client, key: ServiceKey) -> None:
        task = spawn(self._subscribe(client, key), name=f"subscribe {key}")
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._wake.set()

    async def _subscribe(self, client: Client, key: ServiceKey) -> None:
        """Never cancelled while the server is away: the SDK would subscribe all the same, and twice on a retry."""
        again = key in self.subscribed
        listener: Told = _deaf if again else lambda told: self._heard(key, told)
        error = await failure(lambda: client.subscribe(key.name, key.group, None, listener))
        self._pending.pop(key, None)
        if error:
            log.info("no push of %s: %s", key, error)
            self.failing.add(key)
            self._push.tell(key)  # it is polled from now on
            task = spawn(self._retry(key), name=f"subscribe {key} again")
            self._resting.add(task)
            task.add_done_callback(self._resting.discard)
            return
        self.failing.discard(key)
        self.subscribed.add(key)
        if not again:
            self._push.tell(key)  # what changed before this moment nobody has told

    async def _retry(self, key: ServiceKey) -> None:
        clock = self._push.clock
        await clock.sleep_until(clock.now() + self._push.policy.longest_pause)
        self._queue(key)

    def _heard(self, key: ServiceKey, told: Any) -> None:
        """In a thread of the SDK's, at any time, also when the loop has ended."""
        instances = cast(list[Any], told) if isinstance(told, list) else []
        clusters = {str(getattr(instance, "cluster_name", "")) for instance in instances}
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed, key, clusters)

    def _changed(self, key: ServiceKey, clusters: Collection[str]) -> None:
        self._push.hint(key, clusters)
        self._push.tell(key)

    async def _probe(self, client: Client) -> None:
        policy, clock = self._push.policy, self._push.clock
        lost = False
        try:
            while True:
                begin = clock.now()
                if not await self._answers(client):
                    lost = lost or self._answered_since is not None
                    self._answered_since = None
                elif self._answered_since is None:
                    self._answered_since = begin
                    if lost:
                        self._renew()
                await clock.sleep_until(begin + policy.probe)
        finally:
            self._answered_since = None

    def _renew(self) -> None:
        """All are subscribed to again: the server that answers now may know none of them."""
        if self.renewals < MOST_RENEWALS:
            self.renewals += 1
            for key in self.subscribed - self._pending.keys():
                self._queue(key)
        elif self._answered_since is not None:
            self._answered_since += SDK_RENEWAL * len(self.subscribed)

    async def _answers(self, client: Client) -> bool:
        """Whether a query of one of the services comes back in time."""
        key = next(iter(self.subscribed or self._known))
        asked = spawn(self._ask(client, key), name="push probe")
        try:
            await at_most(self._push.clock, self._push.policy.answer, asked)
            return asked.done() and asked.result()
        finally:
            asked.cancel()

    async def _ask(self, client: Client, key: ServiceKey) -> bool:
        error = await failure(lambda: client.get_all_instances(key.name, key.group, None, False))
        if error:
            log.info("push of %s does not answer: %s", self.namespace, error)
        return not error

    async def close(self) -> None:
        for task in (self._task, *self._under_way, *self._resting):
            await stop(task)


def _deaf(_: Any) -> None:
    """The listener of a subscription that is only renewed: the first one still hears."""

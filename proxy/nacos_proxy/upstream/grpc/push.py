"""gRPC push of Nacos 2.0 and later, through the SDK's client (`sdk`). It reports that a service changed, never what.

Snapshots come only from the HTTP list. Push also reports the clusters of a service, because some servers list by HTTP
only the clusters that a request names. Without the extra `push`, or if the gRPC port is closed, push is not alive, and
polling finds the changes.

These properties of the SDK (0.8.0, observed against r-nacos) shape this module:

- A client has one namespace, and never closes a connection or a subscription. We ignore pushes of unwatched services.
- It reconnects by itself and does not report the loss; calls just wait. Hence the probe, a query with a deadline.
- It renews its subscriptions one after the other, 30 ms each: a minute for 2,000. After a loss that the probe noticed,
  this module renews all of them within a second. The SDK and the safety poll cover a shorter loss.
- It calls listeners in its own thread, with the instances but without the service.
- It writes a file named like each service, so it gets only services whose names are plain file names.
- It cannot change its servers. If one of them leaves the list of the address server, a new client takes over, a limited
  number of times.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, cast

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import Clock, Supervisor, at_most, spawn, stop
from nacos_proxy.upstream.grpc.sdk import Client, Listener, PushPolicy, connect, failure

log = logging.getLogger("nacos_proxy.push")

MAX_NAME = 200  # bytes, of the 255 that a file name may have
MAX_CONCURRENT = 100  # subscriptions under way in one namespace
MAX_RENEWALS = 100  # each adds a listener for each service to the SDK, which never removes it
MAX_CLIENTS = 16  # of one namespace, since replaced clients keep their threads and subscriptions
BACKOFF = Backoff(initial=1.0, maximum=30.0)  # of attempts to connect; a subscription is retried after the maximum
SDK_RENEWAL = 0.05  # seconds, at most, that the SDK takes to renew one subscription


def pushable(key: ServiceKey) -> bool:
    """Whether the name of the service can be a file name, which the SDK requires."""
    return "/" not in key.name and "\\" not in key.name and len(key.grouped.encode()) <= MAX_NAME


Connect = Callable[[PushPolicy, str], Awaitable[Client]]
Hint = Callable[[ServiceKey, Collection[str]], None]


class GrpcPush:
    """Implements `Watchable`. Its tasks start with the first watched service, and end with `close`.

    `hint` is called with a service and the clusters in which it has instances. `unavailable`: why there is no client.
    """

    def __init__(
        self,
        policy: PushPolicy,
        clock: Clock,
        connect: Connect = connect,
        hint: Hint = lambda key, clusters: None,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.policy = policy
        self.supervisor = supervisor or Supervisor(clock)
        self.clock = clock
        self.hint = hint
        self.unavailable = ""
        self.servers = policy.servers
        self._connect = connect
        self._connecting = asyncio.Lock()
        self._watched: frozenset[ServiceKey] = frozenset()
        self._feeds: dict[str, _Feed] = {}
        self._changed: dict[ServiceKey, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def alive(self) -> bool:
        feeds = self._feeds.values()
        return bool(feeds) and not self._closed and all(feed.alive for feed in feeds)

    def covers(self, key: ServiceKey) -> bool:
        feed = self._feeds.get(key.namespace)
        return feed is not None and feed.covers(key)

    def watch(self, services: Collection[ServiceKey]) -> None:
        watched = frozenset(services)
        if watched == self._watched or self._closed:
            return
        added, self._watched = watched - self._watched, watched
        for key in added:
            feed = self._feed(key.namespace) if pushable(key) else None
            if feed is not None:
                feed.add(key)

    def follow(self, servers: Iterable[str]) -> None:
        """Takes a new list of servers. A client uses added servers only if it is made after this."""
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
            if not self._changed:
                self._wake.clear()
                await self._wake.wait()
                continue
            key = next(iter(self._changed))
            del self._changed[key]
            yield key

    def notify(self, key: ServiceKey) -> None:
        """Reports that a service changed. Changes of one service are merged until `changes` yields it."""
        if key in self._watched:
            self._changed[key] = None
            self._wake.set()

    async def connect(self, namespace: str) -> tuple[Client, frozenset[str]]:
        """A new client and its servers. Raises `OSError` and `RuntimeError`, and logs a reason only when it is new."""
        try:
            async with self._connecting:
                servers = self.servers
                client = await self._connect(replace(self.policy, servers=servers), namespace)
        except (OSError, RuntimeError) as error:
            if str(error) != self.unavailable:
                self.unavailable = str(error)
                log.warning("no gRPC push: %s; changes are found by polling", error)
            raise
        self.unavailable = ""
        return client, frozenset(servers)

    async def close(self) -> None:
        """Ends the tasks. The SDK's threads go on; their pushes are ignored."""
        self._closed = True
        self._watched = frozenset()
        self._wake.set()
        for feed in self._feeds.values():
            await feed.close()


class _Feed:
    """The client of one namespace, and its subscriptions."""

    def __init__(self, push: GrpcPush, namespace: str) -> None:
        self.namespace = namespace
        self._push = push
        self._loop = asyncio.get_running_loop()
        self._clients = 0
        self._servers: frozenset[str] = frozenset()  # of the client; empty while there is no client
        self._keys: set[ServiceKey] = set()
        self._subscribed: set[ServiceKey] = set()
        self._failing: set[ServiceKey] = set()
        self._pending: set[ServiceKey] = set()
        self._queue: deque[ServiceKey] = deque()
        self._wake = asyncio.Event()
        self._answered_since: float | None = None
        self._renewals = 0
        self._task = self._start()
        self._subscribing: set[asyncio.Task[None]] = set()
        self._retrying: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        """Whether the client has answered probes for `settle` seconds, and all its servers are still in the list."""
        since, current = self._answered_since, self._servers.issubset(self._push.servers)
        return since is not None and self._push.clock.now() - since >= self._push.policy.settle and current

    def covers(self, key: ServiceKey) -> bool:
        """Whether the subscription of this service is confirmed."""
        return key in self._subscribed and key not in self._failing and key not in self._pending

    def follow(self, servers: Collection[str]) -> None:
        """Connects anew if there is no client yet, or if one of its servers has left the list."""
        if not self._servers.issubset(servers) and self._clients >= MAX_CLIENTS:
            log.warning("push of %s ends: the servers changed too often; changes are found by polling", self.namespace)
        elif not self._servers or not self._servers.issubset(servers):
            for task in (self._task, *self._subscribing, *self._retrying):
                task.cancel()
            self._servers, self._answered_since = frozenset(), None
            self._subscribed.clear()
            self._failing.clear()
            self._pending = set(self._keys)
            self._queue = deque(self._keys)
            self._task = self._start()

    def add(self, key: ServiceKey) -> None:
        if key in self._subscribed:
            self._push.notify(key)  # its changes were ignored for a while
        elif key not in self._keys and len(self._keys) < self._push.policy.max_services:
            self._keys.add(key)
            self._enqueue(key)

    def _enqueue(self, key: ServiceKey) -> None:
        self._pending.add(key)
        self._queue.append(key)
        self._wake.set()

    def _start(self) -> asyncio.Task[None]:
        return self._push.supervisor.keep(self._run, name=f"push of {self.namespace}")

    async def _run(self) -> None:
        client = await self._connect()
        probe = self._push.supervisor.keep(lambda: self._probe(client), name=f"push probe of {self.namespace}")
        try:
            while True:
                self._wake.clear()
                while self._queue and len(self._subscribing) < MAX_CONCURRENT:
                    key = self._queue.popleft()
                    task = spawn(self._subscribe(client, key), name=f"subscribe {key}")
                    self._subscribing.add(task)
                    task.add_done_callback(self._on_subscribe_done)
                await self._wake.wait()
        finally:
            await stop(probe)

    def _on_subscribe_done(self, task: asyncio.Task[None]) -> None:
        self._subscribing.discard(task)
        self._wake.set()

    async def _connect(self) -> Client:
        clock = self._push.clock
        retry = 0
        while True:
            try:
                client, self._servers = await self._push.connect(self.namespace)
            except (OSError, RuntimeError):
                await clock.sleep_until(clock.now() + BACKOFF.delay(retry))
                retry += 1
            else:
                self._clients += 1
                return client

    async def _subscribe(self, client: Client, key: ServiceKey) -> None:
        """Not cancelled if the connection is lost: the SDK would subscribe anyway, and twice after a retry."""
        renewal = key in self._subscribed
        listener: Listener = _ignore if renewal else lambda instances: self._on_push(key, instances)
        error = await failure(lambda: client.subscribe(key.name, key.group, None, listener))
        self._pending.discard(key)
        if error:
            log.info("no push of %s: %s", key, error)
            self._failing.add(key)
            self._push.notify(key)  # it is polled from now on
            task = spawn(self._retry(key), name=f"subscribe {key} again")
            self._retrying.add(task)
            task.add_done_callback(self._retrying.discard)
            return
        self._failing.discard(key)
        self._subscribed.add(key)
        if not renewal:
            self._push.notify(key)  # changes before this moment were not reported

    async def _retry(self, key: ServiceKey) -> None:
        clock = self._push.clock
        await clock.sleep_until(clock.now() + BACKOFF.maximum)
        self._enqueue(key)

    def _on_push(self, key: ServiceKey, pushed: Any) -> None:
        """Called in a thread of the SDK, at any time, even after the loop has ended."""
        instances = cast(list[Any], pushed) if isinstance(pushed, list) else []
        clusters = {str(getattr(instance, "cluster_name", "")) for instance in instances}
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_change, key, clusters)

    def _on_change(self, key: ServiceKey, clusters: Collection[str]) -> None:
        self._push.hint(key, clusters)
        self._push.notify(key)

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
        """Subscribes to all services again, since the server that answers now may know none of the subscriptions."""
        if self._renewals < MAX_RENEWALS:
            self._renewals += 1
            for key in self._subscribed - self._pending:
                self._enqueue(key)
        elif self._answered_since is not None:
            self._answered_since += SDK_RENEWAL * len(self._subscribed)

    async def _answers(self, client: Client) -> bool:
        """Whether the client answers a query of one service in time."""
        key = next(iter(self._subscribed or self._keys))
        query = spawn(self._query(client, key), name="push probe")
        try:
            await at_most(self._push.clock, self._push.policy.answer, query)
            return query.done() and query.result()
        finally:
            query.cancel()

    async def _query(self, client: Client, key: ServiceKey) -> bool:
        error = await failure(lambda: client.get_all_instances(key.name, key.group, None, False))
        if error:
            log.info("push of %s does not answer: %s", self.namespace, error)
        return not error

    async def close(self) -> None:
        for task in (self._task, *self._subscribing, *self._retrying):
            await stop(task)


def _ignore(_: Any) -> None:
    """The listener of a renewed subscription, since the first listener still gets the pushes."""

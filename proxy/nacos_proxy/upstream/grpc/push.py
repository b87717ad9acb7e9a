"""Push of Nacos 2.0 and later over gRPC: subscribes to what is watched, and reports what the server pushes.

A push is the whole list of a service, but does not say in which namespace (nacos-grpc.md 6). So one connection has at
most one service of each `group@@name`: if such a name is watched in several namespaces, each of them has another
connection. Usually one connection carries all namespaces.

    a service is     | while
    -----------------+------------------------------------------------------------------------------------------------
    covered          | the server has confirmed its subscription, and answers
    not covered      | otherwise, for example if the server refuses it (it is tried again after `RETRY_REFUSED`). It is
                     | polled as without push

A subscription's answer lists the service, so it reports what has changed until then. After the loss of a connection the
next server in the list is asked, and all subscriptions are made again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import Garbled, Malformed, ProxyError, Refused, UpstreamError, is_denied
from nacos_proxy.model.services import DEFAULT_NAMESPACE, GROUP_SEPARATOR, ServiceKey
from nacos_proxy.runtime import Clock, Supervisor, spawn, stop
from nacos_proxy.upstream.contract import Changed
from nacos_proxy.upstream.grpc.connection import GrpcConnection
from nacos_proxy.upstream.grpc.session import Connect, Session, SessionPolicy, Target
from nacos_proxy.wire.nacos.grpc.client import Notify, read_notified
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from nacos_proxy.wire.nacos.hosts import Listing

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.push")

WORKERS = 16  # calls under way on one connection, to subscribe and to unsubscribe
BACKOFF = Backoff(initial=1.0, maximum=30.0, jitter=0.5)  # of attempts to connect, when no server answers
RECONNECT_WITHIN = 0.5  # seconds; after a loss, clients of one server come back at different times
STEADY = 10.0  # seconds after which a session counts as a success
NAME_KEPT = 60.0  # seconds after the end of a subscription, while a push of it may still arrive
RETRY_REFUSED = 30.0  # seconds until a subscription that failed is tried again


@dataclass(frozen=True, slots=True)
class PushPolicy:
    """`max_services` of one connection; others are polled, as are services that would need more `connections`."""

    max_services: int = 20_000
    connections: int = 16
    session: SessionPolicy = field(default_factory=SessionPolicy)


class Account(Protocol):
    """On whose behalf the server is asked: `upstream.nacos.registry.AuthenticatedClient`."""

    def grpc_targets(self) -> Iterable[Target]:
        """The gRPC ports of the servers, in the order in which to try them."""
        ...

    async def grpc_headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """The headers of payloads that carry the token. `refused`: those that a server has just refused.

        Raises `UpstreamError`.
        """
        ...

    def lists_disabled(self, key: ServiceKey) -> bool:
        """Whether a fetch of the service would also list its disabled instances."""
        ...

    def add_clusters(self, key: ServiceKey, clusters: Collection[str]) -> None:
        """Gets the clusters that a push names, because some servers list by HTTP only those that a request names."""
        ...


async def open_session(
    target: Target,
    account: Account,
    policy: SessionPolicy,
    clock: Clock,
    on_notify: Callable[[Notify], None],
    connect: Connect = GrpcConnection.connect,
) -> Session:
    """A session without TLS, if the port does not speak it although HTTP does: a server has two settings for them.

    Raises `OSError` and `UpstreamError`; also if the account has a token, which must not be sent without TLS.
    """
    try:
        return await Session.open(connect, target, policy, clock, on_notify)
    except ssl.SSLCertVerificationError:
        raise
    except (ssl.SSLError, ConnectionResetError) as error:
        if target.tls is None:
            raise
        if await account.grpc_headers():
            raise OSError(f"{error}; the account's token is not sent without TLS") from error
        session = await Session.open(connect, replace(target, tls=None), policy, clock, on_notify)
        log.warning("gRPC of %s has no TLS (%s): pushes are not encrypted", target, error)
        return session


class GrpcPush:
    """Implements `Watchable`. Connects when the first service is watched; `close` ends it.

    `unavailable`: why there is no connection; '' if there is one, or none was tried yet. `was_alive`: whether changes
    have ever been reported.
    """

    def __init__(
        self,
        account: Account,
        policy: PushPolicy,
        clock: Clock,
        rng: Callable[[], float],
        supervisor: Supervisor | None = None,
        connect: Connect = GrpcConnection.connect,
    ) -> None:
        self.account = account
        self.policy = policy
        self.clock = clock
        self.rng = rng
        self.supervisor = supervisor or Supervisor(clock)
        self.connect = connect
        self.unavailable = ""
        self.was_alive = False
        self.reconnects = 0  # connections that followed one that had ended
        self.on_lost: list[Callable[[], None]] = []  # a connection has ended: its server may have lost its data
        self._feeds: list[_Feed] = []
        self._feed_of: dict[ServiceKey, _Feed] = {}
        self._watched: frozenset[ServiceKey] = frozenset()
        self._news: dict[ServiceKey, Notify | Listing | None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def alive(self) -> bool:
        """A connection that is being set up for more services changes nothing: they are not covered yet.

        Nor does the loss of one that nothing needs any more.
        """
        begun = [feed for feed in self._feeds if feed.was_alive]
        any_alive = any(feed.alive for feed in begun) and not self._closed
        return any_alive and all(feed.alive or feed.idle for feed in begun)

    def status(self) -> dict[str, Any]:
        """The servers that push, and the numbers of subscriptions that hold and that failed, ready for JSON."""
        sessions = [feed.session for feed in self._feeds if feed.session is not None]
        return {
            "kind": "grpc",
            "servers": sorted({str(session.target) for session in sessions}),
            "subscriptions": sum(map(self.covers, self._feed_of)),
            "refused": sum(len(feed.refused) for feed in self._feeds),
        }

    def covers(self, key: ServiceKey) -> bool:
        feed = self._feed_of.get(key)
        return feed is not None and feed.covers(key)

    def watch(self, services: Collection[ServiceKey]) -> None:
        watched = frozenset(services)
        if watched == self._watched or self._closed:
            return
        before, self._watched = self._watched, watched
        for key in before - watched:
            self._news.pop(key, None)
            if (feed := self._feed_of.pop(key, None)) is not None:
                feed.remove(key)
        for key in watched - before:
            if (feed := self._feed_for(key)) is not None:
                self._feed_of[key] = feed
                feed.add(key)

    def _feed_for(self, key: ServiceKey) -> _Feed | None:
        feed = next((feed for feed in self._feeds if feed.takes(key)), None)
        if feed is None and len(self._feeds) < self.policy.connections:
            feed = _Feed(self)
            self._feeds.append(feed)
        return feed

    def follow(self) -> None:
        """The list of servers has changed: connections to servers that are no longer in it move to others."""
        addresses = {(target.host, target.port) for target in self.account.grpc_targets()}
        for feed in self._feeds:
            feed.follow(addresses)

    def report(self, key: ServiceKey, news: Notify | Listing | None) -> None:
        """A service may have changed. Only the last news of a service is kept until `changes` yields it."""
        if key in self._watched:
            self._news[key] = news
            self._wake.set()

    async def changes(self) -> AsyncIterator[Changed]:
        while not self._closed:
            if not self._news:
                self._wake.clear()
                await self._wake.wait()
                continue
            key = next(iter(self._news))
            yield self._changed(key, self._news.pop(key))
            await asyncio.sleep(0)  # others must run during a burst

    def _changed(self, key: ServiceKey, news: Notify | Listing | None) -> Changed:
        try:
            listing = read_notified(key, news) if isinstance(news, Notify) else news
        except Malformed as error:
            log.warning("a push of %s cannot be read, so it is fetched: %s", key, error)
            return Changed(key)
        if listing is None:
            return Changed(key)
        pushed, protected = listing
        self.account.add_clusters(key, pushed.clusters)
        if protected or pushed.unreadable:
            return Changed(key)
        return Changed(key, pushed, self.account.lists_disabled(key))

    def no_connection(self, reason: str) -> None:
        """No server could be connected to, again and again until one can."""
        if not self.unavailable:
            log.warning("no gRPC push: %s; changes are found by polling", reason)
        self.unavailable = reason

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        for feed in self._feeds:
            await feed.close()


class _Feed:
    """One connection at a time, and the services that it is for. `session` is the current one."""

    def __init__(self, push: GrpcPush) -> None:
        self.refused: set[ServiceKey] = set()  # subscriptions that failed, and will be tried again
        self.was_alive = False
        self._push = push
        self._keys: dict[str, ServiceKey] = {}  # by `group@@name`: those wanted, and for `NAME_KEPT` those before
        self._left: dict[str, float] = {}  # names whose subscription has ended, and when; the earliest first
        self._wanted: set[ServiceKey] = set()
        self._confirmed: set[ServiceKey] = set()
        self._pushed: set[ServiceKey] = set()  # since the subscription was sent
        self._busy: set[ServiceKey] = set()
        self._queue: dict[ServiceKey, None] = {}  # whose subscription may have to change
        self._workers: set[asyncio.Task[None]] = set()
        self._retrying: set[asyncio.Task[None]] = set()
        self.session: Session | None = None
        self._last: Session | None = None
        self._ready = False  # all subscriptions that were wanted at the start of the session were tried
        self._task = push.supervisor.keep(self._run, name="push")

    @property
    def alive(self) -> bool:
        return self._ready and self.session is not None and self.session.answers

    @property
    def idle(self) -> bool:
        return not self._wanted

    def takes(self, key: ServiceKey) -> bool:
        """Whether no other namespace has this name here, or had it a moment ago."""
        while self._left and self._left[name := next(iter(self._left))] + NAME_KEPT <= self._push.clock.now():
            del self._left[name], self._keys[name]
        known = self._keys.get(key.grouped)
        return len(self._keys) < self._push.policy.max_services if known is None else known == key

    def covers(self, key: ServiceKey) -> bool:
        return key in self._confirmed and self.session is not None and self.session.answers

    def add(self, key: ServiceKey) -> None:
        self._keys[key.grouped] = key
        self._left.pop(key.grouped, None)
        self._wanted.add(key)
        self._confirmed.discard(key)  # a subscription that was about to end: its pushes were ignored meanwhile
        self._enqueue(key)

    def remove(self, key: ServiceKey) -> None:
        for kept in (self._wanted, self._pushed, self.refused):
            kept.discard(key)
        if self.session is None:
            self._keys.pop(key.grouped, None)
        self._enqueue(key)

    def follow(self, addresses: Collection[tuple[str, int]]) -> None:
        session = self.session
        if session is not None and (session.target.host, session.target.port) not in addresses:
            session.end("the server has left the list")

    async def _run(self) -> None:
        clock, rng = self._push.clock, self._push.rng
        failures = 0
        while True:
            begun = clock.now()
            if (session := await self._connect()) is not None:
                self._push.reconnects += self._last is not None
                reason = await self._use(session)
                log.info("gRPC of %s: the connection has ended: %s", session.target, reason)
                for listener in self._push.on_lost:
                    self._push.supervisor.call("push", listener)
            if session is not None and clock.now() - begun >= STEADY:
                failures = 0
                await clock.sleep_until(clock.now() + RECONNECT_WITHIN * rng())
            else:
                await clock.sleep_until(clock.now() + BACKOFF.delay(failures, rng))
                failures += 1

    async def _connect(self) -> Session | None:
        """A session with the first server that has one; None if no server has."""
        push, reason = self._push, "no server is known"
        for target in self._in_order(list(push.account.grpc_targets())):
            try:
                session = await open_session(
                    target, push.account, push.policy.session, push.clock, self._on_notify, push.connect
                )
            except (OSError, UpstreamError) as error:
                reason = f"gRPC port {target}: {error}"
            else:
                push.unavailable = ""
                return session
        push.no_connection(reason)
        return None

    def _in_order(self, targets: list[Target]) -> list[Target]:
        """The server that a reset named first, the last one last. A reset cannot name a server outside the list."""
        last = self._last
        if last is not None and len(targets) > 1:
            targets.sort(key=lambda target: (last.reset_to != (target.host, target.http_port), target == last.target))
        return targets

    async def _use(self, session: Session) -> str:
        """Subscribes to all that is wanted, and follows what is added and removed, until the session ends."""
        self.session = self._last = session
        self._queue = dict.fromkeys(self._wanted)
        self._start_workers()
        try:
            return await session.until_ended()
        finally:
            session.end("push ends")
            self.session, self._ready = None, False
            tasks = (*self._workers, *self._retrying)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            if not self.was_alive:  # so `alive` stays, and nothing else says that these are polled again
                for key in self._confirmed:
                    self._push.report(key, None)
            self._confirmed.clear()
            self._busy.clear()
            self._left.clear()
            self._keys = {key.grouped: key for key in self._wanted}

    def _enqueue(self, key: ServiceKey) -> None:
        if self.session is not None:  # the next session begins with all that is wanted
            self._queue[key] = None
            self._start_workers()

    def _start_workers(self) -> None:
        session = self.session
        if session is None:
            return
        for _ in range(min(len(self._queue), WORKERS - len(self._workers))):
            worker = self._push.supervisor.once(self._work(session), name="subscribe")
            self._workers.add(worker)
            worker.add_done_callback(self._on_worker_done)
        if not self._queue and not self._workers:
            self._ready = self.was_alive = self._push.was_alive = True

    def _on_worker_done(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        self._start_workers()

    async def _work(self, session: Session) -> None:
        while self._queue and not session.ended:
            key = next(iter(self._queue))
            del self._queue[key]
            await self._settle(session, key)

    async def _settle(self, session: Session, key: ServiceKey) -> None:
        """Subscribes or unsubscribes until that is what is wanted. One worker at a time does so for a service."""
        if key in self._busy:
            return
        self._busy.add(key)
        try:
            while (wanted := key in self._wanted) != (key in self._confirmed):
                await (self._subscribe(session, key) if wanted else self._unsubscribe(session, key))
            if not wanted and self._keys.get(key.grouped) == key:
                self._left[key.grouped] = self._push.clock.now()
        except NotRegistered as error:
            session.end(str(error))
        except ProxyError as error:
            if not session.ended:
                self._failed(key, error)
                await asyncio.sleep(0)  # calls on a connection that is closing fail at once, one after the other
        finally:
            self._busy.discard(key)

    def _failed(self, key: ServiceKey, error: ProxyError) -> None:
        if key in self._wanted:
            if not self.refused:
                log.warning("no push of %s, which is polled instead: %s", key, error)
            self.refused.add(key)
            self._push.report(key, None)  # it is polled from now on
        else:
            log.info("the subscription of %s could not be ended: %s", key, error)
            self._confirmed.add(key)  # it may still exist
        self._retry_later(key)

    async def _subscribe(self, session: Session, key: ServiceKey) -> None:
        self._pushed.discard(key)
        try:
            listing = await self._authorized(lambda headers: session.subscribe(key, headers))
        except Garbled as error:
            if not error.answered:
                raise
            listing = None
        self._confirmed.add(key)
        self.refused.discard(key)
        if key not in self._pushed:  # a push is younger than the answer
            self._push.report(key, listing)

    async def _unsubscribe(self, session: Session, key: ServiceKey) -> None:
        self._confirmed.discard(key)
        await self._authorized(lambda headers: session.unsubscribe(key, headers))

    async def _authorized(self, call: Callable[[Mapping[str, str]], Awaitable[T]]) -> T:
        """Calls with the account's token; with a new one, too, if the server refuses it."""
        account = self._push.account
        headers = await account.grpc_headers()
        try:
            return await call(headers)
        except Refused as error:
            if not is_denied(error) or (renewed := await account.grpc_headers(headers)) == headers:
                raise
        return await call(renewed)

    def _retry_later(self, key: ServiceKey) -> None:
        task = spawn(self._retry(key), name=f"subscribe {key} again")
        self._retrying.add(task)
        task.add_done_callback(self._retrying.discard)

    async def _retry(self, key: ServiceKey) -> None:
        await self._push.clock.sleep_until(self._push.clock.now() + RETRY_REFUSED)
        self._enqueue(key)

    def _on_notify(self, notify: Notify) -> None:
        """Ignores what is no longer wanted. r-nacos names the namespace, and pushes those of all."""
        key = self._keys.get(f"{notify.group}{GROUP_SEPARATOR}{notify.name}")
        if key not in self._wanted or key is None:
            return
        if notify.namespace is None or (notify.namespace or DEFAULT_NAMESPACE) == key.namespace:
            self._pushed.add(key)
            self._push.report(key, notify)

    async def close(self) -> None:
        await stop(self._task)

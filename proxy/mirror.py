"""For `workers` > 1: the agent of a process that does not ask the upstream itself, but another process of ours.

Not for: what that one does (`feed`). Its catalog is a mirror: every event comes in its order and with its number, so
that readers may come back to any worker; when a service was confirmed comes a moment later. What is fresh here is
answered here. All else, every write among it, is asked there; an answer comes behind the events that it brought about.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from proxy.agent import Agent, AgentPolicy, Catalog, Written
from proxy.calls import Call, GetInstance, Update, Write
from proxy.catalog.checks import CheckSpec
from proxy.catalog.hub import Filter, Mailbox, Notice
from proxy.catalog.look import Freshness, Look, Wants
from proxy.counts import Counts
from proxy.errors import NothingKnown
from proxy.feed import Known, Tallies
from proxy.link import Link, LinkLost
from proxy.model import Change, Instance, ServiceKey, Snapshot
from proxy.runtime import Clock, spawn, stop
from proxy.wire.base import HttpReply, ReadService

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.workers")

Follower = Callable[[Change], None]
Count = Callable[[], Tallies]


class _Nobody:
    """The registry of who asks none."""

    async def send(self, call: Call[R]) -> R:
        raise NothingKnown(f"{type(call).__name__} is asked by another process")

    async def close(self) -> None:
        """Nothing to close."""


class Mirror(Agent):
    """`link` is set before it stands; `begun` says that the catalog is the other process's."""

    def __init__(self, catalog: Catalog, clock: Clock, followers: Sequence[Follower] = ()) -> None:
        super().__init__(_Nobody(), catalog, clock, AgentPolicy(), followers)
        self.link: Link | None = None
        self.begun = asyncio.Event()
        self.checks = False  # whether Nacos's parameter check applies
        self.on_reload: list[Callable[[], None]] = []
        self.on_push_lost: list[Callable[[], None]] = []
        self._touched: set[ServiceKey] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self, count: Count, every: float = 1.0) -> None:
        """From now on it tells what is read here, and what `count` counted since it was last called."""
        self._task = spawn(self._tell(count, every), name="mirror")

    async def close(self, tasks: Iterable[asyncio.Task[Any]] = ()) -> None:
        await stop(self._task)
        if self.link is not None:
            self.link.close()

    @property
    def _other(self) -> Link:
        if self.link is None:
            raise LinkLost
        return self.link

    # asking

    async def read(self, key: ServiceKey, wants: Wants = Wants()) -> Look:  # noqa: B008 - a frozen value
        now = self.clock.now()
        look = self.catalog.cache.look(key, now)
        if look.freshness is Freshness.FRESH and wants.content_with(look):
            self.touch(key, now)
            Counts.add(self.counts.reads, "hit")
            return look
        look = await self._other.ask("read", key, wants)
        self._adopt(look)
        return look

    def touch(self, key: ServiceKey, now: float) -> None:
        self._touched.add(key)

    def _adopt(self, look: Look) -> None:
        if look.snapshot is not None:
            self.catalog.cache.mirror(look.snapshot, self.clock.now() - look.age, from_disk=look.from_disk)

    async def instance(self, call: GetInstance) -> tuple[Instance, Look | None]:
        look = await self.read(call.service)
        assert look.snapshot is not None
        known = look.snapshot.find(call.ip, call.port, call.cluster)
        return (known, look) if known is not None else await self._other.ask("instance", call)

    async def send(self, call: Call[R]) -> R:
        return await self._other.ask("send", call)

    async def ask(self, call: Call[R]) -> R:
        return await self._other.ask("ask", call)

    async def write(self, call: Write[R]) -> Written[R]:
        return await self._other.ask("write", call)

    async def modify(self, call: Update) -> Written[Instance]:
        return await self._other.ask("modify", call)

    async def watch(
        self, interest: Filter, wake: Callable[[], None], after: str = ""
    ) -> tuple[Mailbox, list[Snapshot]]:
        mailbox, known = await super().watch(interest, wake, after)
        if interest.keys and self.link is not None:
            self.link.tell("watch", tuple(interest.keys))
        return mailbox, known

    def unwatch(self, mailbox: Mailbox) -> bool:
        ended = super().unwatch(mailbox)
        if ended and mailbox.filter.keys and self.link is not None:
            self.link.tell("unwatch", tuple(mailbox.filter.keys))
        return ended

    def discover(self, namespace: str, group: str) -> None:
        """Someone listens to every service of a group."""
        self._other.tell("discover", namespace, group)

    def forget(self, namespace: str, group: str) -> None:
        if self.link is not None:
            self.link.tell("forget", namespace, group)

    def listed(self, call: ReadService, snapshot: Snapshot) -> None:
        """A client named a push address: the other process pushes."""
        if call.push is not None and self.link is not None:
            self.link.tell("listed", call)

    async def operations(self, request: Request) -> HttpReply:
        """What operators ask is answered for all processes together."""
        query = request.scope["query_string"].decode("latin-1")
        return await self._other.ask("operations", request.scope["path"], query, request.headers.get("accept", ""))

    # hearing

    def hear(self, name: str, args: tuple[Any, ...]) -> None:
        """What the other process tells."""
        catalog = self.catalog
        match name, args:
            case "begin", (Known() as known,):
                self._begin(known)
            case "event", (body,):
                self._event(body)
            case "confirmed", (confirmed,):
                for key, contact in confirmed:
                    catalog.cache.confirm(key, contact)
            case "sync", (number,):
                self._other.tell("heard", min(number, catalog.hub.published))
            case "pushed", (alive,):
                self._pushed(alive)
            case "checks", (checks,):
                self.checks = checks
            case "reload", ():
                for listener in self.on_reload:
                    listener()
            case _:
                log.error("the other process says %r, which nobody understands", name)

    def _begin(self, known: Known) -> None:
        hub, breaker = self.catalog.hub, self.catalog.breaker
        hub.epoch, hub.published = known.epoch, known.published
        breaker.up, breaker.reason = known.up, known.reason
        self.catalog.cache.pushed, self.checks = known.pushed, known.checks
        for snapshot, contact, from_disk in known.services:
            self.catalog.cache.mirror(snapshot, contact, from_disk=from_disk)
        self._other.tell("heard", hub.published)
        self.begun.set()

    def _pushed(self, alive: bool) -> None:
        lost = self.catalog.cache.pushed and not alive
        self.catalog.cache.pushed = alive
        for listener in self.on_push_lost if lost else ():
            listener()

    def _event(self, body: Change | Notice) -> None:
        if isinstance(body, Change):
            self.catalog.cache.mirror(body.after, self.clock.now())
            self._commit(body)
            return
        breaker = self.catalog.breaker
        breaker.up, breaker.since, breaker.reason = body.state == "up", self.clock.now(), body.reason
        self.catalog.hub.publish(body)

    async def _tell(self, count: Count, every: float) -> None:
        while True:
            await self.clock.sleep_until(self.clock.now() + every)
            touched, self._touched = self._touched, set()
            if touched:
                self._other.tell("touched", tuple(touched))
            self._other.tell("tallies", count())


class FarKeeper:
    """Managed instances are the other process's. Implements `api.rest.Managing`."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    async def register(self, service: ServiceKey, instance: Instance, spec: CheckSpec) -> Written[None]:
        if self._mirror.link is None:
            raise LinkLost
        return await self._mirror.link.ask("manage", service, instance, spec)

    def heard(self, service: ServiceKey, ip: str, port: int) -> bool:
        self._tell("alive", service, ip, port)
        return True

    def forget(self, service: ServiceKey, ip: str, port: int) -> None:
        self._tell("unmanage", service, ip, port)

    def _tell(self, name: str, *args: Any) -> None:
        if self._mirror.link is not None:
            self._mirror.link.tell(name, *args)

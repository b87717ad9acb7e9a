"""For `workers` > 1: what the process that asks the upstream tells the others, and does for them.

Not for: the processes (`workers`), the other end (`mirror`). The others hold the same catalog: they get all that is
known when they join, then every event in its order, and when each service was last confirmed. They ask here for what
they do not know and for all that changes something; what they counted is added to the counts here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from proxy.agent import Agent
from proxy.catalog.hub import Event
from proxy.counts import Counts
from proxy.fastpath.table import Answers
from proxy.link import Link, packed
from proxy.managed import Keeper
from proxy.model import ServiceKey, Snapshot
from proxy.poller import Poller
from proxy.runtime import spawn, stop
from proxy.wire.base import HttpReply, ReadService

K = TypeVar("K")

log = logging.getLogger("nacos_proxy.workers")


@dataclass(frozen=True, slots=True)
class Known:
    """All that a new worker is told: the stream's place, who is up, and each service with when it was confirmed."""

    epoch: str
    published: int
    up: bool
    reason: str
    pushed: bool
    checks: bool
    services: Sequence[tuple[Snapshot, float, bool]]


@dataclass(frozen=True, slots=True)
class Tallies:
    """What a worker counted since it last told. `repeated`: kind, status, by head, by target."""

    reads: dict[str, int]
    repeated: Sequence[tuple[str, int, int, int]]
    refused: int
    streams: int


@dataclass(frozen=True, slots=True)
class FeedPolicy:
    """Seconds: how often confirmations are told; how long a write waits until all workers show it."""

    confirm_every: float = 0.25
    settle_within: float = 0.5


@dataclass(slots=True, eq=False)
class Fed:
    """One worker that joined, and what it holds here for its clients."""

    link: Link | None = None
    watched: Counter[ServiceKey] = field(default_factory=lambda: Counter())
    groups: Counter[tuple[str, str]] = field(default_factory=lambda: Counter())
    heard: int | None = None  # the last event that it shows; None until it serves
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Desk:
    """What is done here for workers: the parts that only this process has."""

    agent: Agent
    poller: Poller
    keeper: Keeper
    answers: Answers
    refused: Callable[[int], None]
    operations: Callable[[str, str, str], Awaitable[HttpReply]]
    checks: Callable[[], bool]
    listed: Callable[[ReadService, Snapshot], None] | None = None


class Feed:
    """`start`, then `stop`. Each worker `join`s with its link."""

    def __init__(self, desk: Desk, policy: FeedPolicy) -> None:
        self.workers: list[Fed] = []
        self._desk = desk
        self._policy = policy
        self._task: asyncio.Task[None] | None = None
        self._told_at = 0.0
        self._pushed = False
        self._checks = False
        self._caught_up = asyncio.Event()
        self._asks: dict[str, Callable[..., Awaitable[Any]]] = {
            "read": desk.agent.read,
            "instance": desk.agent.instance,
            "send": desk.agent.send,
            "ask": desk.agent.ask,
            "write": desk.agent.write,
            "modify": desk.agent.modify,
            "manage": desk.keeper.register,
            "operations": desk.operations,
        }

    def start(self) -> None:
        self._desk.agent.catalog.hub.taps.append(self._publish)
        self._desk.agent.settled = self.settled
        self._task = spawn(self._confirm(), name="feed")

    async def stop(self) -> None:
        await stop(self._task)
        for fed in list(self.workers):
            if fed.link is not None:
                fed.link.close()

    # workers

    def join(self) -> tuple[Fed, Link]:
        """A worker, and the protocol for its socket; it is told all once its link stands (`welcome`)."""
        fed = Fed()
        fed.link = Link(
            lambda name, args: self._hear(fed, name, args), lambda name, args: self._asks[name](*args),
            lambda: self._leave(fed),
        )  # fmt: skip
        return fed, fed.link

    def welcome(self, fed: Fed) -> None:
        """Tell all that is known; from here on the worker hears every event."""
        assert fed.link is not None
        catalog = self._desk.agent.catalog
        shown = [
            (entry.shown, entry.contact, entry.from_disk)
            for entry in catalog.cache.entries()
            if entry.shown is not None
        ]
        breaker, hub = catalog.breaker, catalog.hub
        known = Known(
            hub.epoch, hub.published, breaker.up, breaker.reason, catalog.cache.pushed, self._desk.checks(), shown
        )
        fed.link.tell("begin", known)
        self.workers.append(fed)
        self._tell_state()  # what it was told now, the others may not have been

    def _leave(self, fed: Fed) -> None:
        if fed in self.workers:
            self.workers.remove(fed)
        now, cache = self._desk.agent.clock.now(), self._desk.agent.catalog.cache
        for key in fed.watched.elements():
            cache.unwatch(key, now)
        for group in fed.groups.elements():
            self._desk.poller.forget(*group)
        fed.watched.clear()
        fed.groups.clear()
        self._caught_up.set()

    @property
    def streams(self) -> int:
        """Event streams of all workers."""
        return sum(fed.streams for fed in self.workers)

    def tell(self, name: str, *args: Any) -> None:
        """To every worker."""
        message = packed(("tell", name, args))
        for fed in self.workers:
            if fed.link is not None:
                fed.link.tell_packed(message)

    # told to workers

    def _publish(self, event: Event) -> None:
        if self.workers:
            self.tell("event", event.body)

    async def settled(self) -> None:
        """Returns when every worker shows all that was published so far, or when one is too slow to wait for."""
        wanted = self._desk.agent.catalog.hub.published
        if not self._behind(wanted):
            return
        self.tell("sync", wanted)
        clock = self._desk.agent.clock
        timer = spawn(clock.sleep_until(clock.now() + self._policy.settle_within), name="settle")
        timer.add_done_callback(lambda _: self._caught_up.set())
        while self._behind(wanted):
            if timer.done():
                log.warning("a worker is slow: a write was answered before every process shows it")
                return
            self._caught_up.clear()
            await self._caught_up.wait()
        timer.cancel()

    def _behind(self, wanted: int) -> bool:
        return any(fed.heard is not None and fed.heard < wanted for fed in self.workers)

    def _tell_state(self) -> None:
        if (pushed := self._desk.agent.catalog.cache.pushed) != self._pushed:
            self._pushed = pushed
            self.tell("pushed", pushed)
        if (checks := self._desk.checks()) != self._checks:
            self._checks = checks
            self.tell("checks", checks)

    async def _confirm(self) -> None:
        clock, cache = self._desk.agent.clock, self._desk.agent.catalog.cache
        while True:
            await clock.sleep_until(clock.now() + self._policy.confirm_every)
            since, self._told_at = self._told_at, clock.now()
            if not self.workers:
                continue
            self._tell_state()
            confirmed = [(entry.key, entry.contact) for entry in cache.entries() if entry.contact >= since]
            if confirmed:
                self.tell("confirmed", confirmed)

    # heard from workers

    def _hear(self, fed: Fed, name: str, args: tuple[Any, ...]) -> None:
        desk = self._desk
        cache, now = desk.agent.catalog.cache, desk.agent.clock.now()
        match name, args:
            case "heard", (number,):
                fed.heard = max(fed.heard or 0, number)
                self._caught_up.set()
            case "touched", (keys,):
                for key in keys:
                    cache.touch(key, now)
            case "watch", (keys,):
                for key in keys:
                    fed.watched[key] += 1
                    cache.watch(key, now)
            case "unwatch", (keys,):
                for key in keys:
                    _less(fed.watched, key)
                    cache.unwatch(key, now)
            case "discover", group:
                fed.groups[group] += 1
                desk.poller.discover(*group)
            case "forget", group:
                _less(fed.groups, group)
                desk.poller.forget(*group)
            case "listed", (call,):
                self._listed(call)
            case "alive", (service, ip, port):
                desk.keeper.heard(service, ip, port)
            case "unmanage", (service, ip, port):
                desk.keeper.forget(service, ip, port)
            case "tallies", (tallies,):
                self._count(fed, tallies)
            case _:
                log.error("a worker says %r, which nobody understands", name)

    def _listed(self, call: ReadService) -> None:
        entry = self._desk.agent.catalog.cache.get(call.service)
        if self._desk.listed is not None and entry is not None and entry.shown is not None:
            self._desk.listed(call, entry.shown)

    def _count(self, fed: Fed, tallies: Tallies) -> None:
        fed.streams = tallies.streams
        self._desk.refused(tallies.refused)
        for outcome, number in tallies.reads.items():
            Counts.add(self._desk.agent.counts.reads, outcome, number)
        for kind, status, head, target in tallies.repeated:
            tally = self._desk.answers.tally(kind, status)
            tally.head += head
            tally.target += target

    def __repr__(self) -> str:
        return f"<Feed {len(self.workers)} workers, {self.streams} streams>"


def _less(held: Counter[K], key: K) -> None:
    held[key] -= 1
    if held[key] <= 0:
        del held[key]

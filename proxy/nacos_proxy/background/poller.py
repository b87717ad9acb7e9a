"""Asks again for what is due, within a budget; listens to push; keeps registrations alive after an outage.

Not for: deciding what is due (the cache says so) or what a change means (the agent). A hint of push is no exception to
the budget: it makes a service due at once, and what is due is asked for as fast as the budget allows.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import ListServices, Metrics
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import STOOD_STILL, stood_still, stop
from nacos_proxy.upstream.contract import Watchable

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.poller")


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """`budget` requests a second in all; `tick` the longest sleep; `quiet` seconds without a call until a probe.

    Where the last call failed the next one comes after `doubt` seconds: an idle upstream's end is known soon. A poll
    waits while `at_once` fetches are under way, a renewal while `renew_at_once` are: the slower the upstream answers,
    the slower it is asked, and connections are left to others.
    """

    budget: float = 200.0
    at_once: int = 32
    tick: float = 0.1
    quiet: float = 5.0
    doubt: float = 1.0
    discover_every: float = 5.0
    discover_most: int = 5_000
    discover_page: int = 500
    renew_within: float = 5.0
    renew_at_once: int = 16
    send_pause: float = 0.05
    late: float = 10.0


class Poller:
    """The background work of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: PollPolicy, push: Watchable | None = None) -> None:
        self.push_alive = False
        self.late = False  # more is due than the budget asks for
        self.on_push_lost: list[Callable[[], None]] = []  # what was prepared while push lived may be old from here on
        self.discovering: dict[tuple[str, str], int] = {}
        self._agent = agent
        self._policy = policy
        self._push = push
        self._tokens = policy.budget
        self._filled = 0.0
        self._last_call = -policy.quiet
        self._names_due: dict[tuple[str, str], float] = {}
        self._asked_names: set[tuple[str, str]] = set()
        self._told = -1
        self._listening: asyncio.Task[None] | None = None
        self._hears = False
        self._send_at = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._gate = asyncio.Semaphore(policy.renew_at_once)  # one for all rounds: the last one may be under way still
        self._running: asyncio.Task[None] | None = None
        self._behind: dict[asyncio.Task[None], None] = {}
        self._steps: dict[str, Callable[[float], None]] = {  # of each turn; one that fails does not rob the next
            "following push": self._follow_push,
            "outage": agent.outage.check_silence,
            "registrations": self._lapse,
            "sending on": self._send_on,
            "discovery": self._ask_names,
            "polls": self._poll,
            "polling pace": self._watch_budget,
        }

    def start(self) -> None:
        self._filled = self._agent.clock.now()
        keep = self._agent.supervisor.keep
        self._running = keep(self._run, name="poller")
        if (push := self._push) is not None:
            self._agent.catalog.cache.covers = push.covers
            self._hears = True
            self._listening = keep(lambda: self._listen(push), name="push")
        self._agent.on_recovery.append(self._renew_all)

    async def stop(self) -> None:
        for task in (self._running, self._listening, self._renewing, *self._behind):
            await stop(task)

    async def _run(self) -> None:
        clock = self._agent.clock
        due, ahead = clock.now(), clock.wall() - clock.now()
        while True:
            now, slept = clock.now(), clock.wall() - clock.now() - ahead
            ahead += slept  # the clock of a host that slept stood still, the calendar did not
            self._notice(stood_still(due, now), slept)
            for name, step in self._steps.items():
                self._agent.supervisor.call(name, step, now)
            due = now + self._policy.tick
            await clock.sleep_until(due)

    def _notice(self, gap: float, slept: float) -> None:
        if gap:
            log.warning("this process stood still for %.1f s: who is silent since may only be unheard", gap)
            self._agent.stood_still(gap)
        elif slept > STOOD_STILL:
            self._agent.suspect()

    def _lapse(self, now: float) -> None:
        agent = self._agent
        for registration in agent.catalog.registrations.expire(now):
            log.info("%s of %s beats no more: forgotten", registration.instance.address, registration.service)
            agent.outage.expired(registration)
            agent.registrations_changed(registration.service)

    def _poll(self, now: float) -> None:
        if not self._ask_due(now):
            self._ask_anything(now)

    @property
    def behind(self) -> float:
        """Seconds for which the service waits that is longest due; 0 while the upstream is away, which is not asked."""
        due = self._agent.catalog.cache.overdue_since()
        up = self._agent.catalog.breaker.up
        return max(0.0, self._agent.clock.now() - due) if up and due > -math.inf else 0.0

    def _watch_budget(self, now: float) -> None:
        late = self.behind > (self._policy.late / 2 if self.late else self._policy.late)
        if late != self.late:
            self.late = late
            if late:
                log.warning("polling is late: more is watched than poll_budget or the pace of the upstream allows")
            else:
                log.warning("polling keeps up again")

    def _do_behind(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._agent.supervisor.once(work, name=name)
        self._behind[task] = None
        task.add_done_callback(self._behind.pop)

    # polls

    def _ask_due(self, now: float) -> int:
        """Ask for what is due; how much that was."""
        agent, cache, breaker = self._agent, self._agent.catalog.cache, self._agent.catalog.breaker
        self._fill(now)
        if not breaker.allows(now):
            return 0
        left = min(int(self._tokens), max(0, self._policy.at_once - len(agent.fetching))) if breaker.up else 1
        keys = cache.due(now, left)
        for key in keys:
            entry = cache.get(key)
            agent.refresh(key, "poll" if entry is None else entry.fetch_cause)
        self._tokens -= len(keys)
        if keys:
            self._last_call = now
        return len(keys)

    def _fill(self, now: float) -> None:
        # no more at once than two ticks' worth: a hundred polls in one stretch are a tenth of a second for readers
        most = max(1.0, 2.0 * self._policy.budget * self._policy.tick)
        self._tokens = min(most, self._tokens + (now - self._filled) * self._policy.budget)
        self._filled = now

    def _ask_anything(self, now: float) -> None:
        """Nothing is due: is the upstream there? While it is down, as often as the breaker allows."""
        breaker = self._agent.catalog.breaker
        pause = 0.0 if not breaker.up else self._policy.doubt if breaker.failures else self._policy.quiet
        if breaker.allows(now) and now - self._last_call >= pause:
            self._last_call = now
            breaker.probing(now)
            self._do_behind(self._probe(), "probe")

    async def _probe(self) -> None:
        try:
            await self._agent.send(Metrics())
        except ProxyError as error:
            log.debug("probe: %s", error)

    # push

    def _follow_push(self, now: float) -> None:
        push, cache = self._push, self._agent.catalog.cache
        if push is None:
            return
        alive = push.alive and self._hears
        was = self.push_alive
        if alive != was:
            self.push_alive = alive
            if alive:
                log.info("push is alive: changes are told, polling slows down")
            else:
                log.warning("push is lost: polling keeps time")
        cache.set_push_alive(alive, now)
        if was and not alive:
            for listener in self.on_push_lost:
                self._agent.supervisor.call("push", listener)
        if self._told != cache.watched_changes:
            self._told = cache.watched_changes
            push.watch(cache.watched_keys())

    async def _listen(self, push: Watchable) -> None:
        self._hears = True
        try:
            async for key in push.changes():
                self.told(key)
        finally:
            self._hears = False

    def told(self, key: ServiceKey) -> None:
        """The service is said to have changed."""
        now = self._agent.clock.now()
        self._agent.catalog.cache.invalidate(key, now, "push")
        self._ask_due(now)

    # every service of a namespace

    def discover(self, namespace: str, group: str) -> None:
        """Someone listens to every service of a group: learn their names from the upstream, until `forget`."""
        self.discovering[(namespace, group)] = self.discovering.get((namespace, group), 0) + 1

    def forget(self, namespace: str, group: str) -> None:
        left = self.discovering.pop((namespace, group), 0) - 1
        if left > 0:
            self.discovering[(namespace, group)] = left

    def _ask_names(self, now: float) -> None:
        """The longest waiting first, and no more than half of the budget: a group costs at least a call each time."""
        self._names_due = {at: due for at, due in self._names_due.items() if at in self.discovering or due > now}
        if not self.discovering or not self._agent.catalog.breaker.up:
            return
        self._fill(now)
        due = [(self._names_due.get(at, 0.0), at) for at in self.discovering.keys() - self._asked_names]
        most = max(1, int(self._tokens / 2)) if self._tokens >= 1 else 0
        for _, at in sorted(group for group in due if group[0] <= now)[:most]:
            self._tokens -= 1
            self._names_due[at] = now + self._policy.discover_every
            self._do_behind(self._discover(*at), "discover")

    async def _discover(self, namespace: str, group: str) -> None:
        self._asked_names.add((namespace, group))
        try:
            names = await self._names(namespace, group)
        finally:
            self._asked_names.discard((namespace, group))
        cache, now = self._agent.catalog.cache, self._agent.clock.now()
        for name in names:
            cache.found(ServiceKey(namespace, group, name), now)

    async def _names(self, namespace: str, group: str) -> list[str]:
        size, most = self._policy.discover_page, self._policy.discover_most
        names: list[str] = []
        try:
            for page in range(1, most // size + 1):
                found = await self._agent.ask(ListServices(namespace, group, page, size))
                names += found.names
                if len(names) >= found.count or not found.names:
                    return names
            log.warning("%s %s has more than %d services: the rest is not followed", namespace, group, most)
        except ProxyError as error:
            log.info("the services of %s %s are not known: %s", namespace, group, error)
        return names

    # after an outage

    def _send_on(self, now: float) -> None:
        """What was accepted here goes out as soon as the upstream may take it."""
        outage, idle = self._agent.outage, self._renewing is None or self._renewing.done()
        if len(outage.journal) and self._agent.catalog.breaker.up and now >= self._send_at and idle:
            self._send_at = now + self._policy.doubt
            self._renewing = self._agent.supervisor.once(self._send_all(), name="send on")

    async def _send_one(self, place: RegistrationKey) -> None:
        await self._agent.outage.send_waiting(place)

    async def _send_all(self) -> None:
        await self._spread(list(self._agent.outage.journal), self._send_one, self._policy.send_pause)

    def _renew_all(self) -> None:
        """Anew where one is under way: what it has renewed may be lost again."""
        if self._renewing is not None:
            self._renewing.cancel()
        self._renewing = self._agent.supervisor.once(self._renew(), name="renew")

    async def _renew(self) -> None:
        """What was accepted here first: it is the younger."""
        await self._send_all()
        begin = self._agent.clock.now()
        waiting = [r for r in self._agent.catalog.registrations if r.instance.ephemeral and r.healthy(begin)]
        await self._spread(waiting, self._renew_one, self._policy.renew_within)

    async def _spread(self, items: Sequence[T], work: Callable[[T], Awaitable[None]], longest: float) -> None:
        """Spread over `renew_within` seconds, with `longest` at most between two; it ends where the upstream does."""
        clock, begin, gate = self._agent.clock, self._agent.clock.now(), self._gate
        pause = min(longest, self._policy.renew_within / max(1, len(items)))

        async def one(item: T) -> None:
            async with gate:
                await work(item)

        for number, item in enumerate(items):
            await clock.sleep_until(begin + number * pause)
            async with gate:
                if not self._agent.catalog.breaker.up:
                    return  # its next return begins anew
            self._do_behind(one(item), "renew")

    async def _renew_one(self, registration: Registration) -> None:
        try:
            await self._agent.renew(registration)
        except ProxyError as error:
            log.info("could not renew %s of %s: %s", registration.instance.address, registration.service, error)

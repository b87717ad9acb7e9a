"""Polls what is due, within a budget; listens to push; renews registrations and sends what waits after an outage.

The cache decides what is due. A push notification makes a service due at once, but does not exceed the budget.
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
    """`budget`: requests a second in all. `tick`: seconds between two turns. `late`: seconds overdue that are reported.

    A probe follows `probe_after` seconds without a call, or `retry_after` seconds after a call that failed, so that the
    loss of an idle upstream is noticed soon. A poll waits while `max_fetches` fetches are in flight, a renewal while
    `max_renewals` are: the slower the upstream answers, the less it is asked, and connections are left for clients.
    """

    budget: float = 200.0
    max_fetches: int = 32
    tick: float = 0.1
    probe_after: float = 5.0
    retry_after: float = 1.0
    discover_every: float = 5.0
    max_discovered: int = 5_000
    discover_page: int = 500
    renew_within: float = 5.0
    max_renewals: int = 16
    send_pause: float = 0.05
    late: float = 10.0


class Poller:
    """The background work of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: PollPolicy, push: Watchable | None = None) -> None:
        self.push_alive = False
        self.late = False  # more is due than the budget allows
        self.on_push_lost: list[Callable[[], None]] = []  # prepared answers may be out of date from then on
        self.discovering: dict[tuple[str, str], int] = {}
        self._agent = agent
        self._policy = policy
        self._push = push
        self._tokens = policy.budget
        self._filled = 0.0
        self._last_call = -policy.probe_after
        self._names_due: dict[tuple[str, str], float] = {}
        self._names_in_flight: set[tuple[str, str]] = set()
        self._push_changes = -1  # the number of changes of the watched services that push was notified of
        self._listening: asyncio.Task[None] | None = None
        self._hears = False
        self._send_at = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._renewals = asyncio.Semaphore(policy.max_renewals)  # shared by all rounds, because rounds may overlap
        self._running: asyncio.Task[None] | None = None
        self._background: dict[asyncio.Task[None], None] = {}
        self._steps: dict[str, Callable[[float], None]] = {  # of each turn; one that fails does not stop the next
            "following push": self._follow_push,
            "outage": agent.outage.check_silence,
            "registrations": self._expire_registrations,
            "sending on": self._send_waiting,
            "discovery": self._discover_due,
            "polls": self._poll,
            "polling pace": self._watch_budget,
        }

    def start(self) -> None:
        self._filled = self._agent.clock.now()
        keep = self._agent.supervisor.keep
        self._running = keep(self._run, name="poller")
        if (push := self._push) is not None:
            self._agent.catalog.cache.set_push_coverage(push.covers)
            self._hears = True
            self._listening = keep(lambda: self._listen(push), name="push")
        self._agent.on_recovery.append(self._renew_all)

    async def stop(self) -> None:
        for task in (self._running, self._listening, self._renewing, *self._background):
            await stop(task)

    async def _run(self) -> None:
        clock = self._agent.clock
        due, ahead = clock.now(), clock.wall() - clock.now()
        while True:
            now, slept = clock.now(), clock.wall() - clock.now() - ahead
            ahead += slept  # while a host sleeps, its monotonic clock stands still and the wall clock does not
            self._notice_gap(stood_still(due, now), slept)
            for name, step in self._steps.items():
                self._agent.supervisor.call(name, step, now)
            due = now + self._policy.tick
            await clock.sleep_until(due)

    def _notice_gap(self, gap: float, slept: float) -> None:
        if gap:
            log.warning("this process did not run for %.1f s: beats may have been missed in that time", gap)
            self._agent.stood_still(gap)
        elif slept > STOOD_STILL:
            self._agent.suspect()

    def _expire_registrations(self, now: float) -> None:
        agent = self._agent
        for registration in agent.catalog.registrations.expire(now):
            log.info("%s of %s has stopped beating: forgotten", registration.instance.address, registration.service)
            agent.outage.expired(registration)
            agent.registrations_changed(registration.service)

    def _poll(self, now: float) -> None:
        if not self._fetch_due(now):
            self._probe_if_idle(now)

    @property
    def behind(self) -> float:
        """Seconds for which the most overdue service has been due; 0 while the upstream is down and not polled."""
        due = self._agent.catalog.cache.overdue_since()
        up = self._agent.catalog.breaker.up
        return max(0.0, self._agent.clock.now() - due) if up and due > -math.inf else 0.0

    def _watch_budget(self, now: float) -> None:
        late = self.behind > (self._policy.late / 2 if self.late else self._policy.late)
        if late != self.late:
            self.late = late
            if late:
                log.warning("polling is late: more is watched than poll_budget or the speed of the upstream allows")
            else:
                log.warning("polling keeps up again")

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._agent.supervisor.once(work, name=name)
        self._background[task] = None
        task.add_done_callback(self._background.pop)

    # polls

    def _fetch_due(self, now: float) -> int:
        """Fetch services that are due. Returns their number."""
        agent, cache, breaker = self._agent, self._agent.catalog.cache, self._agent.catalog.breaker
        self._refill(now)
        if not breaker.allows(now):
            return 0
        left = min(int(self._tokens), max(0, self._policy.max_fetches - len(agent.fetching))) if breaker.up else 1
        keys = cache.due(now, left)
        for key in keys:
            entry = cache.get(key)
            agent.refresh(key, "poll" if entry is None else entry.fetch_cause)
        self._tokens -= len(keys)
        if keys:
            self._last_call = now
        return len(keys)

    def _refill(self, now: float) -> None:
        # At most two ticks' worth at once: a hundred polls in a row delay readers by a tenth of a second.
        max_tokens = max(1.0, 2.0 * self._policy.budget * self._policy.tick)
        self._tokens = min(max_tokens, self._tokens + (now - self._filled) * self._policy.budget)
        self._filled = now

    def _probe_if_idle(self, now: float) -> None:
        """Nothing is due: find out whether the upstream is up. While it is down, as often as the breaker allows."""
        breaker = self._agent.catalog.breaker
        pause = 0.0 if not breaker.up else self._policy.retry_after if breaker.failures else self._policy.probe_after
        if breaker.allows(now) and now - self._last_call >= pause:
            self._last_call = now
            breaker.call_started(now)
            self._in_background(self._probe(), "probe")

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
                log.info("push is available; polling less often")
            else:
                log.warning("push is unavailable; polling at the normal pace")
        cache.set_push_alive(alive, now)
        if was and not alive:
            for listener in self.on_push_lost:
                self._agent.supervisor.call("push", listener)
        if self._push_changes != cache.watched_changes:
            self._push_changes = cache.watched_changes
            push.watch(cache.watched_keys())

    async def _listen(self, push: Watchable) -> None:
        self._hears = True
        try:
            async for key in push.changes():
                self.notified(key)
        finally:
            self._hears = False

    def notified(self, key: ServiceKey) -> None:
        """Push says that the service has changed."""
        now = self._agent.clock.now()
        self._agent.catalog.cache.invalidate(key, now, "push")
        self._fetch_due(now)

    # every service of a namespace

    def discover(self, namespace: str, group: str) -> None:
        """A client watches all services of a group: ask the upstream for their names from now on, until `forget`."""
        self.discovering[(namespace, group)] = self.discovering.get((namespace, group), 0) + 1

    def forget(self, namespace: str, group: str) -> None:
        left = self.discovering.pop((namespace, group), 0) - 1
        if left > 0:
            self.discovering[(namespace, group)] = left

    def _discover_due(self, now: float) -> None:
        """The longest waiting first, with at most half of the budget: a group costs at least one call each time."""
        self._names_due = {
            group: due for group, due in self._names_due.items() if group in self.discovering or due > now
        }
        if not self.discovering or not self._agent.catalog.breaker.up:
            return
        self._refill(now)
        waiting = [
            (self._names_due.get(group, 0.0), group) for group in self.discovering.keys() - self._names_in_flight
        ]
        max_groups = max(1, int(self._tokens / 2)) if self._tokens >= 1 else 0
        for _, group in sorted((due, group) for due, group in waiting if due <= now)[:max_groups]:
            self._tokens -= 1
            self._names_due[group] = now + self._policy.discover_every
            self._in_background(self._discover(*group), "discover")

    async def _discover(self, namespace: str, group: str) -> None:
        self._names_in_flight.add((namespace, group))
        try:
            names = await self._names(namespace, group)
        finally:
            self._names_in_flight.discard((namespace, group))
        cache, now = self._agent.catalog.cache, self._agent.clock.now()
        for name in names:
            cache.discovered(ServiceKey(namespace, group, name), now)

    async def _names(self, namespace: str, group: str) -> list[str]:
        size, max_names = self._policy.discover_page, self._policy.max_discovered
        names: list[str] = []
        try:
            for page in range(1, max_names // size + 1):
                found = await self._agent.ask(ListServices(namespace, group, page, size))
                names += found.names
                if len(names) >= found.count or not found.names:
                    return names
            log.warning("%s %s has more than %d services: the others are not watched", namespace, group, max_names)
        except ProxyError as error:
            log.info("the services of %s %s could not be listed: %s", namespace, group, error)
        return names

    # after an outage

    def _send_waiting(self, now: float) -> None:
        """Send the writes that were accepted here, as soon as the upstream may take them."""
        outage, idle = self._agent.outage, self._renewing is None or self._renewing.done()
        if len(outage.journal) and self._agent.catalog.breaker.up and now >= self._send_at and idle:
            self._send_at = now + self._policy.retry_after
            self._renewing = self._agent.supervisor.once(self._send_all(), name="send on")

    async def _send_all(self) -> None:
        async def send(key: RegistrationKey) -> None:
            await self._agent.outage.send_waiting(key)

        await self._spread_out(list(self._agent.outage.journal), send, self._policy.send_pause)

    def _renew_all(self) -> None:
        """Start again if a round is in progress: what it has renewed may be lost again."""
        if self._renewing is not None:
            self._renewing.cancel()
        self._renewing = self._agent.supervisor.once(self._renew(), name="renew")

    async def _renew(self) -> None:
        """Send the writes that were accepted here first, because they are newer."""
        await self._send_all()
        now = self._agent.clock.now()
        alive = [r for r in self._agent.catalog.registrations if r.instance.ephemeral and r.healthy(now)]
        await self._spread_out(alive, self._renew_one, self._policy.renew_within)

    async def _spread_out(self, items: Sequence[T], work: Callable[[T], Awaitable[None]], max_pause: float) -> None:
        """Start `work` for each item over `renew_within` seconds, with a pause of at most `max_pause` in between.

        Ends if the upstream goes down.
        """
        clock, begin = self._agent.clock, self._agent.clock.now()
        pause = min(max_pause, self._policy.renew_within / max(1, len(items)))

        async def limited(item: T) -> None:
            async with self._renewals:
                await work(item)

        for number, item in enumerate(items):
            await clock.sleep_until(begin + number * pause)
            async with self._renewals:
                if not self._agent.catalog.breaker.up:
                    return  # its next return starts again
            self._in_background(limited(item), "renew")

    async def _renew_one(self, registration: Registration) -> None:
        try:
            await self._agent.renew(registration)
        except ProxyError as error:
            log.info("could not renew %s of %s: %s", registration.instance.address, registration.service, error)

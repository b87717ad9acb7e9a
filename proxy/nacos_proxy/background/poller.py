"""Polls due services within a budget, listens to push, and renews registrations and sends writes after an outage.

The cache decides which services are due. A pushed list costs no fetch. A push without one makes the service due at
once, but keeps to the budget.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nacos_proxy.catalog.registrations import Registration
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import Call, ListServices, Metrics
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import STOOD_STILL, stop, ticks
from nacos_proxy.upstream.contract import Changed, Confirmed, Doubted, Report, Watchable

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.poller")


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """`budget`: requests a second in all. `tick`: seconds between two turns. `late`: a longer delay (s) is reported.

    A probe follows `probe_after` seconds without a call, or `retry_after` seconds after a failed one, so that the loss
    of an idle upstream is noticed soon. A poll waits while `max_fetches` are in flight, a renewal while `max_renewals`
    are: a slow upstream gets fewer requests, and connections stay free for clients. `probe` is the call of a probe.
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
    probe: Call[Any] = field(default_factory=Metrics)


class Poller:
    """The background work of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: PollPolicy, push: Watchable | None = None) -> None:
        self.push_alive = False
        self.late = False  # more is due than the budget allows
        self.on_push_lost: list[Callable[[], None]] = []  # without push, prepared answers may be out of date
        self.discovering: dict[tuple[str, str], int] = {}
        self._agent = agent
        self._policy = policy
        self._push = push
        self._tokens = policy.budget
        self._filled = 0.0
        self._last_call = -policy.probe_after
        self._names_due: dict[tuple[str, str], float] = {}
        self._names_in_flight: set[tuple[str, str]] = set()
        self._push_changes = -1  # `watched_changes` when push last got the watched services
        self._listening: asyncio.Task[None] | None = None
        self._listens = False
        self._send_at = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._renewals = asyncio.Semaphore(policy.max_renewals)  # for all rounds, because they may overlap
        self._running: asyncio.Task[None] | None = None
        self._background: dict[asyncio.Task[None], None] = {}
        self._steps: dict[str, Callable[[float], None]] = {  # of each turn; an exception does not stop the next step
            "following push": self._follow_push,
            "outage": agent.outage.check_silence,
            "registrations": self._expire_registrations,
            "sending on": self._send_waiting,
            "discovery": self._discover_due,
            "polls": lambda now: None if self._fetch_due(now) else self._probe_if_idle(now),
            "polling pace": self._watch_budget,
        }

    def start(self) -> None:
        self._filled = self._agent.clock.now()
        keep = self._agent.supervisor.keep
        self._running = keep(self._run, name="poller")
        if (push := self._push) is not None:
            self._agent.catalog.cache.set_push_coverage(push.covers)
            self._listens = True
            self._listening = keep(lambda: self._listen(push), name="push")
        self._agent.on_recovery.append(self._renew_all)

    async def stop(self) -> None:
        for task in (self._running, self._listening, self._renewing, *self._background):
            await stop(task)

    async def _run(self) -> None:
        clock = self._agent.clock
        ahead = clock.wall() - clock.now()
        async for now, gap in ticks(clock, self._policy.tick):
            slept = clock.wall() - now - ahead
            ahead += slept  # while a host sleeps, only its wall clock goes on
            self._notice_gap(gap, slept)
            for name, step in self._steps.items():
                self._agent.supervisor.call(name, step, now)

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

    @property
    def behind(self) -> float:
        """Seconds for which the most overdue service has been due; 0 while the upstream is down."""
        due = self._agent.catalog.cache.overdue_since()
        up = self._agent.catalog.breaker.up
        return max(0.0, self._agent.clock.now() - due) if up and due > -math.inf else 0.0

    def _watch_budget(self, now: float) -> None:
        late = self.behind > (self._policy.late / 2 if self.late else self._policy.late)
        if late and not self.late:
            log.warning("polling is late: more is watched than poll_budget or the speed of the upstream allows")
        elif self.late and not late:
            log.warning("polling keeps up again")
        self.late = late

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._agent.supervisor.once(work, name=name)
        self._background[task] = None
        task.add_done_callback(self._background.pop)

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
        # At most the tokens of two ticks, because a hundred polls in a row delay readers by a tenth of a second.
        max_tokens = max(1.0, 2.0 * self._policy.budget * self._policy.tick)
        self._tokens = min(max_tokens, self._tokens + (now - self._filled) * self._policy.budget)
        self._filled = now

    def _probe_if_idle(self, now: float) -> None:
        """Nothing is due: probe whether the upstream is up. While it is down, the breaker limits how often."""
        breaker = self._agent.catalog.breaker
        pause = 0.0 if not breaker.up else self._policy.retry_after if breaker.failures else self._policy.probe_after
        if breaker.allows(now) and now - self._last_call >= pause:
            self._last_call = now
            breaker.call_started(now)
            self._in_background(self._probe(), "probe")

    async def _probe(self) -> None:
        try:
            await self._agent.send(self._policy.probe)
        except ProxyError as error:
            log.debug("probe: %s", error)

    def _follow_push(self, now: float) -> None:
        push, cache = self._push, self._agent.catalog.cache
        if push is None:
            return
        was, self.push_alive = self.push_alive, push.alive and self._listens
        if self.push_alive and not was:
            log.info("push is available; polling less often")
        cache.set_push_alive(self.push_alive, now)
        if was and not self.push_alive:
            log.warning("push is unavailable; polling at the normal pace")
            self._forget_prepared()
        if self._push_changes != cache.watched_changes:
            self._push_changes = cache.watched_changes
            push.watch(cache.watched_keys())

    async def _listen(self, push: Watchable) -> None:
        self._listens = True
        try:
            async for report in push.changes():
                self._take(report)
        finally:
            self._listens = False

    def _take(self, report: Report) -> None:
        match report:
            case Confirmed(lists, via):
                self._last_call = self._agent.clock.now()  # it answers, so no probe is due
                self._agent.confirm(lists, via)
            case Doubted(reason):
                self._agent.doubt(reason)
                self._forget_prepared()
            case Changed(key, pushed, more, whole):
                if pushed is None or not self._agent.accept_pushed(pushed, fetch_shows_more=more, whole=whole):
                    self.notified(key)

    def _forget_prepared(self) -> None:
        for listener in self.on_push_lost:
            self._agent.supervisor.call("push", listener)

    def notified(self, key: ServiceKey) -> None:
        """A push notification that does not say what has changed: fetch the service at once."""
        now = self._agent.clock.now()
        self._agent.catalog.cache.invalidate(key, now, "push")
        self._fetch_due(now)

    def discover(self, namespace: str, group: str) -> None:
        """A client watches all services of a group: list their names regularly until `forget`."""
        self.discovering[(namespace, group)] = self.discovering.get((namespace, group), 0) + 1

    def forget(self, namespace: str, group: str) -> None:
        left = self.discovering.pop((namespace, group), 0) - 1
        if left > 0:
            self.discovering[(namespace, group)] = left

    def _discover_due(self, now: float) -> None:
        """List the names of due groups, the longest waiting first, with at most half of the budget."""
        self._names_due = {key: due for key, due in self._names_due.items() if key in self.discovering or due > now}
        if not self.discovering or not self._agent.catalog.breaker.up:
            return
        self._refill(now)
        waiting = [(self._names_due.get(key, 0.0), key) for key in self.discovering.keys() - self._names_in_flight]
        max_groups = max(1, int(self._tokens / 2)) if self._tokens >= 1 else 0
        for _, key in sorted((due, key) for due, key in waiting if due <= now)[:max_groups]:
            self._tokens -= 1  # each list takes at least one call
            self._names_due[key] = now + self._policy.discover_every
            self._in_background(self._discover(*key), "discover")

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

    def _send_waiting(self, now: float) -> None:
        """Send the writes that this proxy accepted, as soon as the upstream may accept them."""
        outage, idle = self._agent.outage, self._renewing is None or self._renewing.done()
        if len(outage.journal) and self._agent.catalog.breaker.up and now >= self._send_at and idle:
            self._send_at = now + self._policy.retry_after
            self._renewing = self._agent.supervisor.once(self._send_all(), name="send on")

    async def _send_all(self) -> None:
        outage = self._agent.outage
        await self._spread_out(list(outage.journal), outage.send_waiting, self._policy.send_pause)

    def _renew_all(self) -> None:
        """Start a new round, even if one is in progress: the upstream may have lost again what that has renewed."""
        if self._renewing is not None:
            self._renewing.cancel()
        self._renewing = self._agent.supervisor.once(self._renew(), name="renew")

    async def _renew(self) -> None:
        """Send the waiting writes before the renewals, because they are newer."""
        await self._send_all()
        now = self._agent.clock.now()
        alive = [r for r in self._agent.catalog.registrations if r.instance.ephemeral and r.healthy(now)]
        await self._spread_out(alive, self._renew_one, self._policy.renew_within)

    async def _spread_out(self, items: Sequence[T], work: Callable[[T], Awaitable[object]], max_pause: float) -> None:
        """Start `work` for all items in `renew_within` s, at most `max_pause` apart. Stop if the upstream is down."""
        clock, begin = self._agent.clock, self._agent.clock.now()
        pause = min(max_pause, self._policy.renew_within / max(1, len(items)))

        async def limited(item: T) -> None:
            async with self._renewals:
                await work(item)

        for number, item in enumerate(items):
            await clock.sleep_until(begin + number * pause)
            async with self._renewals:
                if not self._agent.catalog.breaker.up:
                    return  # after its return, a new round begins
            self._in_background(limited(item), "renew")

    async def _renew_one(self, registration: Registration) -> None:
        try:
            await self._agent.renew(registration)
        except ProxyError as error:
            log.info("could not renew %s of %s: %s", registration.instance.address, registration.service, error)

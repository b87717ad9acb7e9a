"""Asks again for what is due, within a budget; listens to push; keeps registrations alive after an outage.

Not for: deciding what is due (the cache says so) or what a change means (the agent).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from proxy.agent import Agent
from proxy.calls import ListServices, Metrics
from proxy.catalog.ledger import Registration
from proxy.errors import ProxyError
from proxy.model import ServiceKey
from proxy.registry.base import Watchable
from proxy.runtime import spawn, stop

log = logging.getLogger("nacos_proxy.poller")


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """`budget` requests a second in all; `tick` the longest sleep; `quiet` seconds without a call until a probe."""

    budget: float = 200.0
    tick: float = 0.1
    quiet: float = 5.0
    discover_every: float = 5.0
    discover_most: int = 5_000
    renew_within: float = 5.0


class Poller:
    """The background work of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: PollPolicy, push: Watchable | None = None) -> None:
        self.push_alive = False
        self.discovering: dict[tuple[str, str], int] = {}
        self._agent = agent
        self._policy = policy
        self._push = push
        self._tokens = policy.budget
        self._filled = 0.0
        self._last_call = -policy.quiet
        self._discovered = -policy.discover_every
        self._tasks: list[asyncio.Task[None]] = []
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._filled = self._agent.clock.now()
        self._tasks.append(spawn(self._run(), name="poller"))
        if self._push is not None:
            self._tasks.append(spawn(self._listen(self._push), name="push"))
        self._agent.on_recovery.append(self._renew_all)

    async def stop(self) -> None:
        for task in (*self._tasks, self._renewing):
            await stop(task)

    async def _run(self) -> None:
        clock = self._agent.clock
        while True:
            now = clock.now()
            self._follow_push()
            self._poll(now)
            await clock.sleep_until(now + self._policy.tick)

    def _poll(self, now: float) -> None:
        agent, policy = self._agent, self._policy
        cache, breaker = agent.catalog.cache, agent.catalog.breaker
        self._tokens = min(policy.budget, self._tokens + (now - self._filled) * policy.budget)
        self._filled = now
        for registration in agent.catalog.ledger.lapse(now):
            cache.own(registration.service, agent.catalog.ledger.count(registration.service), now)
        if not breaker.allows(now):
            return
        most = int(self._tokens) if breaker.up else 1
        keys = cache.due(now, most)
        for key in keys:
            agent.refresh(key)
        self._tokens -= len(keys)
        if keys:
            self._last_call = now
        elif now - self._last_call >= (policy.quiet if breaker.up else 0.0):
            self._last_call = now
            breaker.probing(now)
            spawn(self._probe(), name="probe")
        if self.discovering and now - self._discovered >= policy.discover_every and breaker.up:
            self._discovered = now
            for namespace, group in self.discovering:
                spawn(self._discover(namespace, group), name="discover")

    async def _probe(self) -> None:
        try:
            await self._agent.send(Metrics())
        except ProxyError as error:
            log.debug("probe: %s", error)

    # push

    def _follow_push(self) -> None:
        alive = self._push is not None and self._push.alive
        if alive != self.push_alive:
            self.push_alive = alive
            if alive:
                log.info("push is alive: changes are told, polling slows down")
            else:
                log.warning("push is lost: polling keeps time")
        cache = self._agent.catalog.cache
        if self._push is not None:
            cache.pushing(alive, self._agent.clock.now())
            self._push.watch(cache.watched_keys())

    async def _listen(self, push: Watchable) -> None:
        async for key in push.changes():
            self._agent.catalog.cache.hasten(key, self._agent.clock.now())
            self._agent.refresh(key, "push")

    # every service of a namespace

    def discover(self, namespace: str, group: str) -> None:
        """Someone listens to every service of a group: learn their names from the upstream, until `forget`."""
        self.discovering[(namespace, group)] = self.discovering.get((namespace, group), 0) + 1
        self._discovered = -self._policy.discover_every

    def forget(self, namespace: str, group: str) -> None:
        left = self.discovering.pop((namespace, group), 0) - 1
        if left > 0:
            self.discovering[(namespace, group)] = left

    async def _discover(self, namespace: str, group: str) -> None:
        names: list[str] = []
        try:
            for page in range(1, self._policy.discover_most // 500 + 1):
                found = await self._agent.send(ListServices(namespace, group, page, 500))
                names += found.names
                if len(names) >= found.count or not found.names:
                    break
        except ProxyError as error:
            log.info("the services of %s %s are not known: %s", namespace, group, error)
        cache, now = self._agent.catalog.cache, self._agent.clock.now()
        for name in names:
            key = ServiceKey(namespace, group, name)
            if cache.get(key) is None:
                self._agent.refresh(key)
            cache.touch(key, now)

    # after an outage

    def _renew_all(self) -> None:
        if self._renewing is None or self._renewing.done():
            self._renewing = spawn(self._renew(), name="renew")

    async def _renew(self) -> None:
        clock, ledger = self._agent.clock, self._agent.catalog.ledger
        waiting = [r for r in ledger if r.instance.ephemeral and r.alive(clock.now())]
        pause = self._policy.renew_within / max(1, len(waiting))
        for registration in waiting:
            await self._renew_one(registration)
            await clock.sleep_until(clock.now() + pause)

    async def _renew_one(self, registration: Registration) -> None:
        try:
            await self._agent.renew(registration)
        except ProxyError as error:
            log.info("could not renew %s of %s: %s", registration.instance.address, registration.service, error)

"""Takes instances out of traffic, waits until their consumers have noticed, and deregisters them.

A drain goes on without the client that asked for it. It is on disk before it begins, and after a restart of this proxy
it goes on. `core.traffic` makes the writes, and keeps the heartbeats of the instance's own client away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.core.agent import Agent, Written
from nacos_proxy.core.traffic import LOOK_AFTER
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import BadCall, NothingKnown, ProxyError, Violation
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import stop

log = logging.getLogger("nacos_proxy.drains")

AGAIN = Backoff(initial=1.0, maximum=30.0)  # seconds between two attempts
STOPPING = "the proxy is stopping; it goes on with the drain after its start. Ask again then"


@dataclass(frozen=True, slots=True)
class DrainerPolicy:
    """`give_up`: seconds for which a refused or unanswered deregistration is tried again."""

    give_up: float = 600.0


async def _not_persisted() -> None:
    """Without a state file, nothing has to be on disk before an answer."""


class Drainer:
    """The drains of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: DrainerPolicy) -> None:
        self._agent = agent
        self._clock = agent.clock
        self._policy = policy
        self._table = agent.catalog.drains
        self._tasks: dict[RegistrationKey, asyncio.Task[Any]] = {}
        self._outcomes: dict[RegistrationKey, asyncio.Future[ProxyError | None]] = {}
        self._persist: Callable[[], Awaitable[None]] = _not_persisted
        self._stopped = False
        agent.traffic.on_registered.append(self._registered)

    def persist_with(self, persist: Callable[[], Awaitable[None]]) -> None:
        """From now on, begin a drain only when `persist` has returned."""
        self._persist = persist

    def start(self) -> None:
        """Go on with the drains that the state file knows."""
        for drain in self._table:
            if drain.ended_at is None:
                self._begin(drain, restored=True)

    async def stop(self) -> None:
        """Ends the work, not the drains."""
        self.end_waits()
        for task in list(self._tasks.values()):
            await stop(task)

    def end_waits(self) -> None:
        """This process is about to stop: answer those who wait for the end of a drain."""
        self._stopped = True
        for key in list(self._outcomes):
            self._tell(key, NothingKnown(STOPPING))

    def find(self, service: ServiceKey, ip: str, port: int) -> Drain | None:
        return self._table.find((service, ip, port), self._clock.now())

    @property
    def active(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    async def drain(self, registration: Registration, wait: float) -> Drain:
        """Take an instance out of traffic, and deregister it after `wait` seconds. Returns when that is done.

        Joins a drain under way. A cancelled caller does not stop it. Raises `BadCall` (409) if the drain is cancelled
        or the instance is registered again meanwhile; the upstream's error if it cannot be taken out of traffic, or if
        its deregistration has to be tried again.
        """
        drain, now = self._table.find(registration.key, self._clock.now()), self._clock.now()
        if drain is None:
            if not self._table.room:
                raise BadCall(
                    "", Violation.OTHER, "too many instances are drained already; try again later", status=429
                )
            drain = Drain(registration.service, registration.instance, wait, now + wait)
            self._table.add(drain, now)
            self._begin(drain)
        await self.ended(drain)
        return drain

    async def ended(self, drain: Drain) -> None:
        """Returns when a drain has ended. Raises as `drain`."""
        if drain.ended_at is not None:
            return
        if self._stopped:
            raise NothingKnown(STOPPING)
        outcome = self._outcomes.setdefault(drain.key, asyncio.get_running_loop().create_future())
        await asyncio.wait([outcome])
        if (error := outcome.result()) is not None:
            raise error.with_traceback(None)

    async def cancel(self, drain: Drain) -> Written[Instance] | None:
        """End a drain; bring the instance back as it was before. None if it is deregistered.

        Raises the upstream's error if it does not take it back: then the drain goes on.
        """
        self._end(drain, "the drain was cancelled")
        await self._persist()
        registration = self._agent.catalog.registrations.find(*drain.key)
        if registration is None:
            return None
        log.info("%s of %s is not drained any more: cancelled", drain.instance.address, drain.service)
        try:
            written = await self._agent.traffic.enable(registration, drain.instance.enabled)
        except ProxyError:
            self._table.add(drain, self._clock.now())
            self._begin(drain, restored=True)
            raise
        self._keep(drain.key, self._agent.traffic.settle(registration))
        return written

    # the steps

    def _begin(self, drain: Drain, *, restored: bool = False) -> None:
        self._keep(drain.key, self._run(drain, restored))

    def _keep(self, key: RegistrationKey, work: Coroutine[Any, Any, Any]) -> None:
        if (before := self._tasks.get(key)) is not None:
            before.cancel()
        task = self._tasks[key] = self._agent.supervisor.once(work, name="drain", for_request=True)
        task.add_done_callback(lambda _: self._done(key, task))

    def _done(self, key: RegistrationKey, task: asyncio.Task[Any]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]

    def _registered(self, drain: Drain) -> None:
        log.warning("%s of %s is not drained any more: it was registered", drain.instance.address, drain.service)
        self._end(drain, "the instance was registered again meanwhile")

    def _end(self, drain: Drain, why: str) -> None:
        self._table.remove(drain)
        if (task := self._tasks.pop(drain.key, None)) is not None:
            task.cancel()
        self._tell(drain.key, BadCall("", Violation.OTHER, why, status=409))

    def _tell(self, key: RegistrationKey, error: ProxyError | None) -> None:
        outcome = self._outcomes.pop(key, None)
        if outcome is not None:
            outcome.set_result(error)

    async def _run(self, drain: Drain, restored: bool) -> None:
        await self._persist()
        if not await self._taken_out(drain, restored):
            return
        if not restored:
            drain.until = self._clock.now() + drain.wait
            await self._save()
        if self._clock.now() + LOOK_AFTER < drain.until:
            await self._settle(drain)
        await self._clock.sleep_until(drain.until)
        await self._deregister(drain)
        drain.ended_at = self._clock.now()
        await self._save()
        self._tell(drain.key, None)

    async def _save(self) -> None:
        self._table.mark_changed()
        await self._persist()

    async def _taken_out(self, drain: Drain, restored: bool) -> bool:
        """False if that was refused: then the drain has ended. After a restart, it goes on all the same."""
        registration = self._agent.catalog.registrations.find(*drain.key)
        if registration is None:
            return True  # its client has deregistered it
        try:
            await self._agent.traffic.enable(registration, False)
        except ProxyError as error:
            log.warning("%s of %s cannot be disabled: %s", drain.instance.address, drain.service, error)
            if restored:
                return True
            self._table.remove(drain)
            await self._persist()
            self._tell(drain.key, error)
            return False
        log.info("%s of %s is taken out of traffic", drain.instance.address, drain.service)
        return True

    async def _settle(self, drain: Drain) -> None:
        """If the server still shows the instance, consumers begin to notice only now."""
        registration = self._agent.catalog.registrations.find(*drain.key)
        modified = None if registration is None else await self._agent.traffic.settle(registration)
        if modified is not None:
            drain.modified, drain.until = modified, self._clock.now() + drain.wait
            await self._save()

    async def _deregister(self, drain: Drain) -> None:
        """Returns when the upstream has accepted it, or after `give_up` seconds."""
        began, failures = self._clock.now(), 0
        while True:
            try:
                await self._agent.traffic.deregister(drain)
            except ProxyError as error:
                drain.error = str(error)
                if not failures:
                    log.warning("%s of %s cannot be deregistered: %s", drain.instance.address, drain.service, error)
                self._tell(drain.key, error)
                if self._clock.now() - began >= self._policy.give_up:
                    return
            else:
                drain.error = ""
                log.info("%s of %s was drained and deregistered", drain.instance.address, drain.service)
                return
            await self._clock.sleep_until(self._clock.now() + AGAIN.delay(failures))
            failures += 1

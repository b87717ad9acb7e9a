"""Traffic: take instances that are registered here out of traffic, and keep those out that go down.

To take one out is to register it again as disabled: each server since 1.x takes that from whoever may register, and
keeps nothing of it once the instance is deregistered. A modification would: for a minute, the next instance at this
address would be disabled, too. But if somebody modified the instance before, only another modification counts
(nacos-http.md 5.4; tried with 1.4.8, 2.5.1, 3.0.3 and r-nacos).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

from nacos_proxy.catalog.drains import Drain, Drains
from nacos_proxy.catalog.registrations import Registration, RegistrationKey, Registrations
from nacos_proxy.core.commit import Committer, Written
from nacos_proxy.core.send import Sender
from nacos_proxy.core.write import Writer
from nacos_proxy.model.calls import Beat, BeatResult, Deregister, Fetch, Register, Update, Write
from nacos_proxy.model.effects import completed
from nacos_proxy.model.errors import ABSENT, ProxyError, Refused
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import Clock, outlive

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.drains")

# Seconds after a registration until `settle` looks at what the server made of it: it lists it by now (nacos-http.md,
# facts 1 and 13), and readers here still see the pending write.
LOOK_AFTER = 2.5


@dataclass(slots=True, eq=False, repr=False)
class Traffic:
    """`on_registered` is called when a client registers an instance whose drain thereby ends."""

    _drains: Drains
    _registrations: Registrations
    _sender: Sender
    _writer: Writer
    _committer: Committer
    _clock: Clock
    on_registered: list[Callable[[Drain], object]] = field(default_factory=lambda: [])
    _locks: WeakValueDictionary[RegistrationKey, asyncio.Lock] = field(default_factory=lambda: WeakValueDictionary())

    def intercept(self, call: Write[Any]) -> Coroutine[Any, Any, Written[Any]] | None:
        """The answer to a client's write about an instance that is drained; None for all other writes."""
        if (drain := self.drain_of(call)) is None:
            return None
        return self._answer(call, drain) if isinstance(call, Beat) else self._register(cast(Register, call), drain)

    def drain_of(self, call: Write[Any]) -> Drain | None:
        """The drain of the instance that a client registers or beats for."""
        if not self._drains or not isinstance(call, Beat | Register):
            return None
        key = (call.service, call.ip, call.port) if isinstance(call, Beat) else _key_of(call)
        return self._drains.find(key, self._clock.now())

    async def _answer(self, beat: Beat, drain: Drain) -> Written[BeatResult]:
        """A beat would make it healthy, or even register it; "not found" would make its client register it."""
        if self._find(drain.key) is not None:
            self._registrations.record_write(beat, self._clock.now())
        self._committer.counts.local_beats += 1
        return Written(BeatResult(interval=beat_interval(drain.instance.metadata)), "drained")

    async def _register(self, call: Register, drain: Drain) -> Written[None]:
        self._drains.remove(drain)
        for listener in self.on_registered:
            listener(drain)
        return await self._in_turn(drain.key, lambda: self._writer.write(call))

    def drains(self, key: RegistrationKey) -> bool:
        """Whether an instance is being drained, and is not deregistered yet."""
        drain = self._drains.find(key, self._clock.now())
        return drain is not None and drain.ended_at is None

    async def _in_turn(self, key: RegistrationKey, work: Callable[[], Awaitable[T]]) -> T:
        """One write about an instance at a time: a late one must not undo the next one.

        A cancelled caller does not stop it. Raises what `work` raises.
        """

        async def in_turn() -> T | ProxyError:
            async with self._locks.setdefault(key, asyncio.Lock()):
                try:
                    return await work()
                except ProxyError as error:
                    return error

        result = await outlive(in_turn(), name="traffic")
        if isinstance(result, ProxyError):
            raise result
        return result

    async def enable(self, registration: Registration, enabled: bool) -> Written[Instance]:
        """Register an instance of ours as enabled or disabled. Raises the upstream's error."""

        async def register() -> Written[Instance]:
            instance = replace(registration.instance, enabled=enabled)
            registration.toggling = True
            try:
                written = await self._writer.write(Register(registration.service, instance))
            finally:
                registration.toggling = False
            return Written(instance, written.how)

        return await self._in_turn(registration.key, register)

    async def enforce(self, registration: Registration) -> Instance | None:
        """Modify an instance if the server does not show it as enabled or disabled as we registered it.

        Returns how the server showed it if it had to be modified. Raises the upstream's error.
        """
        service, i = registration.service, registration.instance
        listed = (await self._sender.send(Fetch(service))).find(i.ip, i.port, i.cluster)

        async def modify() -> Instance | None:
            enabled = registration.instance.enabled
            if (listed is not None and listed.enabled) is enabled or self._find(registration.key) is not registration:
                return None
            shown = listed or replace(i, enabled=not enabled)
            call = Update(service, i.ip, i.port, i.cluster, enabled=enabled, partial=True)
            await self._writer.write(completed(call, shown))
            return shown

        return await self._in_turn(registration.key, modify)

    async def settle(self, registration: Registration) -> Instance | None:
        """`enforce`, when the server lists what `enable` registered. A failure is only logged."""
        await self._clock.sleep_until(self._clock.now() + LOOK_AFTER)
        try:
            return await self.enforce(registration)
        except ProxyError as error:
            address, service = registration.instance.address, registration.service
            log.warning("it is not known whether %s of %s gets traffic: %s", address, service, error)
            return None

    async def deregister(self, drain: Drain) -> None:
        """Deregister a drained instance, unless its drain has ended. Raises the upstream's error."""
        i = drain.instance
        call = Deregister(drain.service, i.ip, i.port, i.cluster, i.ephemeral)

        async def deregister() -> None:
            if not self._is_current(drain):
                return
            await self._writer.write(call)
            if drain.modified is not None:
                # Servers 2.x keep a modification for a minute. Unless it is undone, the next instance here is disabled.
                await self._restore(drain.service, drain.modified)
                await self._writer.write(call)  # servers without such a memory take the modification as a registration

        await self._in_turn(drain.key, deregister)

    def _find(self, key: RegistrationKey) -> Registration | None:
        return self._registrations.find(*key)

    def _is_current(self, drain: Drain) -> bool:
        return self._drains.find(drain.key, self._clock.now()) is drain

    async def _restore(self, service: ServiceKey, shown: Instance) -> None:
        """Undo a modification of `enforce`. Raises the upstream's error, but not if it does not know the instance."""
        i = shown
        try:
            await self._writer.write(
                Update(service, i.ip, i.port, i.cluster, i.weight, i.enabled, i.metadata, i.ephemeral)
            )
        except Refused as error:
            if error.reason not in ABSENT:
                raise


def _key_of(call: Register) -> RegistrationKey:
    return (call.service, call.instance.ip, call.instance.port)

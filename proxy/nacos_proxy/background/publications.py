"""Publishes the ephemeral instances of gRPC connections at the upstream, and beats for them.

Towards the upstream they are ordinary registrations: one over a gRPC connection of ours would die with this process.
When a connection is gone, its instances are deregistered at once. When this process stops or is killed, none is: after
the next start they beat on, until their clients are back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from nacos_proxy.catalog.publications import Owner, PublishedInstances
from nacos_proxy.catalog.registrations import CONNECTION, Registration, RegistrationKey
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.addresses import address_of
from nacos_proxy.model.calls import Beat, Deregister, Register, Write
from nacos_proxy.model.errors import BadCall, ProxyError, Refused, Unreachable, UpstreamError, Violation
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import at_most, outlive, spawn, stop, ticks

log = logging.getLogger("nacos_proxy.publications")

MAX_UNCERTAIN = 100  # refused instances of a connection that are remembered; more lapse

Persist = Callable[[Collection[RegistrationKey]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PublicationsPolicy:
    """`orphaned`: seconds for which instances beat on without their clients, after a start or a reconnect that we want.

    At most `max_beats` beats and `max_writes` other writes are under way. `max_start`, `max_stop`: seconds that a start
    waits for the first beats, and a stop for the deregistrations under way.
    """

    max_instances: int = 16_000
    orphaned: float = 60.0
    tick: float = 0.25
    max_beats: int = 32
    max_writes: int = 16
    max_start: float = 1.0
    max_stop: float = 2.0


async def _not_persisted(keys: Collection[RegistrationKey]) -> None:
    """Without a state file, nothing has to be on disk before an answer."""


class Publications:
    """The published instances of one agent: `restore`, `start`, then `stop`.

    An owner is a connection. `failing`: the instances whose last beat was refused, and why.
    """

    def __init__(self, agent: Agent, policy: PublicationsPolicy) -> None:
        self.failing: dict[RegistrationKey, str] = {}
        self._agent = agent
        self._policy = policy
        self._table = PublishedInstances(policy.max_instances)
        # One write about an instance at a time: a late beat or deregistration must not undo what followed it.
        self._locks: WeakValueDictionary[object, asyncio.Lock] = WeakValueDictionary()
        self._writes = asyncio.Semaphore(policy.max_writes)
        self._unconfirmed: set[RegistrationKey] = set()  # the upstream may have lost them before the start
        # Refused, but the upstream may have accepted them: an answer was lost.
        self._uncertain: dict[Owner, dict[RegistrationKey, Instance]] = {}
        self._calls: Counter[Owner] = Counter()  # under way
        self._ended: set[Owner] = set()  # connections that ended while calls of theirs were under way
        self._beating: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._persist: Persist = _not_persisted
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def persist_with(self, persist: Persist) -> None:
        """From now on, answer a call only when `persist` has returned."""
        self._persist = persist

    def restore(self) -> int:
        """Beat on for the instances that the state file knows. Returns their number."""
        now, registrations = self._agent.clock.now(), self._agent.catalog.registrations
        for registration in registrations:
            if registration.of_connection:
                self._table.orphan(registration.key, now + self._policy.orphaned)
                self._unconfirmed.add(registration.key)
        return self._table.orphans

    async def start(self) -> None:
        """Returns when the restored instances have beaten once, at the latest after `max_start`."""
        self._task = self._agent.supervisor.keep(self._run, name="publications")
        self._start_beats(self._agent.clock.now())
        first_beats = spawn(self._first_beats(), name="first beats")
        await at_most(self._agent.clock, self._policy.max_start, first_beats)
        await stop(first_beats)

    async def _first_beats(self) -> None:
        while self._beating:
            await asyncio.wait(self._beating)

    async def stop(self) -> None:
        """Ends the beats. Deregisters nothing; connections that end from now on do not count."""
        self._stopped = True
        await stop(self._task)
        for task in list(self._beating):
            await stop(task)
        if self._leaving:
            await asyncio.wait(list(self._leaving), timeout=self._policy.max_stop)
        for task in list(self._leaving):
            await stop(task)

    # what connections ask for

    async def publish(
        self, owner: Owner, service: ServiceKey, instances: Iterable[Instance], *, client: str = ""
    ) -> None:
        """Replace what the owner publishes for the service. `client`: its address, for the limit.

        Registers the new instances, then deregisters the rest, and those that were refused before, because the
        upstream may have accepted them all the same. If one is refused, the old value stays. While the upstream is
        down, only instances that are registered and alive here are accepted. A cancelled caller does not stop it.

        Raises `BadCall` (429) beyond the limit, and the upstream's error for a registration.
        """
        wanted = {(service, i.ip, i.port): i for i in instances}
        await self._call(owner, service, lambda: self._publish(owner, service, wanted, client))

    async def withdraw(self, owner: Owner, service: ServiceKey, named: Iterable[Instance] = ()) -> None:
        """Deregister all that the owner publishes for the service; nothing is a success. Raises the upstream's error.

        `named`: what the client named. An orphaned instance among them goes, too.
        """
        named_keys = [(service, i.ip, i.port) for i in named]
        await self._call(owner, service, lambda: self._withdraw_all(owner, service, named_keys))

    def end(self, owner: Owner, *, back_soon: bool = False) -> None:
        """The connection is gone: deregister its instances in the background, except those of another connection.

        `back_soon`: it was closed here, and its client connects again. Its instances beat on, as after a start.
        """
        if self._stopped:
            return
        if self._calls[owner]:
            self._ended.add(owner)
        left = dict(self._table.values(owner))
        for key in left:
            self._table.remove(owner, key)
            if back_soon:
                self._table.orphan(key, self._agent.clock.now() + self._policy.orphaned)
        if back_soon:
            self._uncertain.pop(owner, None)  # they lapse, unless the client publishes them again
            return
        if not left and owner not in self._uncertain:
            return
        task = self._agent.supervisor.once(self._leave(owner, left), name="connection's end")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def of(self, owner: Owner) -> Mapping[ServiceKey, tuple[Instance, ...]]:
        """What the owner publishes."""
        found: dict[ServiceKey, list[Instance]] = {}
        for (service, *_), instance in self._table.values(owner).items():
            found.setdefault(service, []).append(instance)
        return {service: tuple(instances) for service, instances in found.items()}

    def count(self, owner: Owner) -> int:
        """How many instances the owner publishes."""
        return len(self._table.values(owner))

    @property
    def orphans(self) -> int:
        """How many instances beat without their client."""
        return self._table.orphans

    def __len__(self) -> int:
        return len(self._table)

    # steps of these

    async def _call(self, owner: Owner, service: ServiceKey, work: Callable[[], Awaitable[ProxyError | None]]) -> None:
        """The calls of one owner about one service run one after the other, and not after its end."""

        async def in_turn() -> ProxyError | None:
            try:
                async with self._lock((owner, service)):
                    return None if owner in self._ended else await work()
            finally:
                self._call_ended(owner)

        self._calls[owner] += 1
        if (error := await outlive(in_turn(), name="publication")) is not None:
            raise error

    def _call_ended(self, owner: Owner) -> None:
        self._calls[owner] -= 1
        if not self._calls[owner]:
            del self._calls[owner]
            self._ended.discard(owner)

    async def _publish(
        self, owner: Owner, service: ServiceKey, wanted: Mapping[RegistrationKey, Instance], client: str
    ) -> ProxyError | None:
        before = self._table.value(owner, service)
        added = [key for key in wanted if key not in before]
        if not self._table.room(client, len(added)):
            return self._too_many()
        if (error := self._away(wanted)) is not None:
            return error
        new = [key for key, instance in wanted.items() if before.get(key) != instance or not self._is_as(key, instance)]
        orphaned = {key: until for key in new if (until := self._table.orphaned_until(key)) is not None}
        for key in new:
            self._table.add(owner, client, key, wanted[key])
        outcomes = await self._each(new, lambda key: self._register(owner, key, wanted[key]))
        if (error := _first(outcomes)) is not None:
            await self._put_back(owner, client, before, new, orphaned)
            created = [(key, e) for key, e in zip(new, outcomes, strict=True) if key not in before | orphaned]
            self._remember_uncertain(owner, {key: wanted[key] for key, e in created if _may_have_arrived(e)})
            if owner in self._ended:
                await self._settle_uncertain(owner)
            return error
        gone = [key for key in before if key not in wanted]
        _log_left(gone, await self._withdraw(owner, gone), "they are no longer published")
        await self._settle_uncertain(owner, service)
        await self._persist([*new, *gone])
        return None

    async def _withdraw_all(
        self, owner: Owner, service: ServiceKey, named: Iterable[RegistrationKey]
    ) -> ProxyError | None:
        orphaned = (key for key in named if self._table.orphaned_until(key) is not None)
        keys = [*self._table.value(owner, service), *orphaned]
        errors = await self._withdraw(owner, keys)
        await self._settle_uncertain(owner, service)
        await self._persist(keys)
        return _first(errors)

    def _too_many(self) -> BadCall:
        text = f"{len(self._table)} instances are published through this proxy; this client may not publish more"
        return BadCall("instances", Violation.OTHER, text, status=429)

    def _away(self, wanted: Mapping[RegistrationKey, Instance]) -> Unreachable | None:
        """While the upstream is down, a client that comes back finds its instances; others have to try again."""
        breaker = self._agent.catalog.breaker
        if breaker.up or all(self._is_as(key, instance) for key, instance in wanted.items()):
            return None
        return Unreachable(breaker.reason, arrived=False)

    def _is_as(self, key: RegistrationKey, instance: Instance) -> bool:
        """Whether exactly this instance is registered and beats from here."""
        known = self._registration(key)
        return known is not None and known.instance == instance and known.healthy(self._agent.clock.now())

    async def _register(self, owner: Owner, key: RegistrationKey, instance: Instance) -> None:
        async with self._lock(key):
            if key not in self._table.values(owner):
                return  # the connection ended meanwhile
            if self._agent.traffic.drains(key):  # its client only connected again, and repeats what it publishes
                self._mark(key)
                return
            registrations = self._agent.catalog.registrations
            if not registrations.room and registrations.find(*key) is None:
                raise self._too_many()  # it would get no beats
            if self._agent.catalog.breaker.up or not self._is_as(key, instance):
                known = self._registration(key)
                if known is not None and known.instance.cluster != instance.cluster:
                    await self._write(_deregistration(known))  # servers 1.x keep one instance for each cluster
                await self._write(Register(key[0], instance))
            self._mark(key)

    def _mark(self, key: RegistrationKey) -> None:
        """The instance was just registered: from now on it beats from here."""
        registration = self._agent.catalog.registrations.find(*key)
        if registration is not None:
            registration.check, registration.beats = CONNECTION, True
            self._unconfirmed.discard(key)
            self._agent.registrations_changed(key[0])
            self._table.schedule(key, self._agent.clock.now(), registration.instance.metadata)

    async def _put_back(
        self,
        owner: Owner,
        client: str,
        before: Mapping[RegistrationKey, Instance],
        new: Collection[RegistrationKey],
        orphaned: Mapping[RegistrationKey, float],
    ) -> None:
        """A registration was refused: undo the others. What was orphaned is so again: its client will try again."""
        kept = [key for key in new if key in before and key in self._table.values(owner)]
        for key in kept:
            self._table.add(owner, client, key, before[key])
        for key in new:
            if key in orphaned:
                self._table.remove(owner, key)
                self._table.orphan(key, orphaned[key])
        undone = await self._each(kept, lambda key: self._register(owner, key, before[key]))
        undone += await self._withdraw(owner, [key for key in new if key not in before and key not in orphaned])
        if (error := _first(undone)) is not None:
            log.warning("could not undo a part of what was refused: %s", error)
        await self._persist(new)

    async def _withdraw(self, owner: Owner, keys: Collection[RegistrationKey]) -> list[ProxyError | None]:
        left = {key: self._table.remove(owner, key) for key in keys}
        return await self._each(keys, lambda key: self._deregister(key, left[key]))

    async def _leave(self, owner: Owner, left: Mapping[RegistrationKey, Instance]) -> None:
        _log_left(
            left, await self._each(left, lambda key: self._deregister(key, left[key])), "their connection is gone"
        )
        await self._settle_uncertain(owner)
        await self._persist(left)

    def _remember_uncertain(self, owner: Owner, refused: Mapping[RegistrationKey, Instance]) -> None:
        if refused:
            known = {**self._uncertain.pop(owner, {}), **refused}
            self._uncertain[owner] = dict(list(known.items())[-MAX_UNCERTAIN:])

    async def _settle_uncertain(self, owner: Owner, service: ServiceKey | None = None) -> None:
        """The owner publishes something else for the service, or has gone: the upstream must not list what it refused.

        Not before: perhaps the instance lives, was registered before this process began, and its client tries again.
        """
        known = self._uncertain.pop(owner, {})
        over = {key: instance for key, instance in known.items() if service in (None, key[0])}
        self._remember_uncertain(owner, {key: known[key] for key in known if key not in over})
        _log_left(
            over, await self._each(over, lambda key: self._deregister_unknown(key, over[key])), "they were refused"
        )

    async def _deregister_unknown(self, key: RegistrationKey, instance: Instance) -> None:
        async with self._lock(key):
            if key not in self._table and self._agent.catalog.registrations.find(*key) is None:
                await self._write(Deregister(key[0], instance.ip, instance.port, instance.cluster, instance.ephemeral))

    async def _deregister(self, key: RegistrationKey, left: Instance | None) -> None:
        """A connection no longer publishes `left` (None: it was orphaned)."""
        async with self._lock(key):
            registration = self._registration(key)
            if registration is None:
                return  # deregistered, or registered by HTTP since
            if (newest := self._table.newest(key)) is None:
                self._give_up(registration)
                await self._write(_deregistration(registration))
            elif registration.instance == left != newest:
                try:
                    await self._write(Register(key[0], newest))
                except ProxyError as error:
                    log.warning("%s keeps the value of a connection that is gone: %s", _shown(key), error)
                else:
                    self._mark(key)

    def _give_up(self, registration: Registration) -> None:
        """It does not beat any more, so it lapses, unless it is deregistered now."""
        self._forget(registration.key)
        registration.check = None
        self._agent.registrations_changed(registration.service)

    def _forget(self, key: RegistrationKey) -> None:
        self._table.forget(key)
        self.failing.pop(key, None)
        self._unconfirmed.discard(key)

    def _registration(self, key: RegistrationKey) -> Registration | None:
        """The registration, unless someone deregistered it, or registered it by HTTP since."""
        registration = self._agent.catalog.registrations.find(*key)
        return registration if registration is not None and registration.of_connection else None

    async def _write(self, call: Write[Any]) -> None:
        async with self._writes:
            await self._agent.write(call)

    async def _each(
        self, keys: Iterable[RegistrationKey], step: Callable[[RegistrationKey], Awaitable[None]]
    ) -> list[ProxyError | None]:
        """The error of each step, in order. Raises anything else."""
        outcomes = await asyncio.gather(*(step(key) for key in keys), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, ProxyError):
                raise outcome
        return [outcome if isinstance(outcome, ProxyError) else None for outcome in outcomes]

    def _lock(self, key: object) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    # beats

    async def _run(self) -> None:
        async for now, gap in ticks(self._agent.clock, self._policy.tick):
            if gap:
                self._table.shift(gap)
            self._let_lapse(now)
            self._start_beats(now)

    def _let_lapse(self, now: float) -> None:
        lapsed = [found for key in self._table.take_lapsed(now) if (found := self._registration(key)) is not None]
        for registration in lapsed:
            self._give_up(registration)
        if lapsed:
            text = "%d instances (%s, ...) lapse: their clients have not come back"
            log.warning(text, len(lapsed), _shown(lapsed[0].key))

    def _start_beats(self, now: float) -> None:
        while len(self._beating) < self._policy.max_beats and (key := self._table.take_due(now)) is not None:
            task = self._agent.supervisor.once(self._beat(key), name="publication's beat")
            self._beating.add(task)
            task.add_done_callback(self._beat_ended)

    def _beat_ended(self, task: asyncio.Task[None]) -> None:
        self._beating.discard(task)
        if not self._stopped:
            self._start_beats(self._agent.clock.now())

    async def _beat(self, key: RegistrationKey) -> None:
        started = self._agent.clock.now()
        async with self._lock(key):
            registration = self._registration(key)
            if registration is None:
                self._forget(key)  # a beat would register it again
                return
            i = registration.instance
            if key in self._unconfirmed:
                await self._confirm(registration)
            try:
                await self._agent.write(Beat(key[0], i.ip, i.port, i.cluster, i.ephemeral, i))
            except ProxyError as error:
                if not self.failing:
                    log.warning("the beats of %s, and perhaps others, do not get through: %s", _shown(key), error)
                self.failing[key] = str(error)
            else:
                if self.failing.pop(key, None) is not None and not self.failing:
                    log.warning("all beats get through again")
            finally:
                self._table.schedule(key, started, i.metadata)

    async def _confirm(self, registration: Registration) -> None:
        """Unlike a beat, this shows a lost instance to readers at once."""
        try:
            await self._agent.renew(registration)
        except ProxyError as error:
            log.info("%s may be lost: %s", _shown(registration.key), error)
        else:
            self._unconfirmed.discard(registration.key)


def _deregistration(registration: Registration) -> Deregister:
    i = registration.instance
    return Deregister(registration.service, i.ip, i.port, i.cluster, i.ephemeral)


def _may_have_arrived(error: ProxyError | None) -> bool:
    """Whether the upstream may list what it refused. An answer 500 may be the second one, after one that was lost."""
    return isinstance(error, UpstreamError) and (error.arrived or (isinstance(error, Refused) and error.status >= 500))


def _first(outcomes: Iterable[ProxyError | None]) -> ProxyError | None:
    return next((outcome for outcome in outcomes if outcome is not None), None)


def _log_left(keys: Iterable[RegistrationKey], errors: Iterable[ProxyError | None], why: str) -> None:
    failed = [(key, error) for key, error in zip(keys, errors, strict=True) if error is not None]
    if failed:
        text = "%d instances (%s, ...) are left to lapse: %s, but: %s"
        log.warning(text, len(failed), _shown(failed[0][0]), why, failed[0][1])


def _shown(key: RegistrationKey) -> str:
    return f"{address_of(key[1], key[2])} of {key[0]}"

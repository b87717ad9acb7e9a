"""Reregistration: register an instance again if it beats through this proxy and the upstream has lost it.

The client does not notice: the proxy answers its beat as if the upstream had never lost the instance. An instance that
its owner deregistered, or that is drained, is not registered again.

Below an upper proxy, a list that lacks an instance means little: the upper one brings back what Nacos has lost, and
drains and deregistrations made there are to last. So lists count only after the upper one was away or is another run,
and then a beat decides: the upper one accepts it for an instance that is drained there.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nacos_proxy.catalog.drains import Drains
from nacos_proxy.catalog.registrations import Registration, RegistrationKey, Registrations
from nacos_proxy.core.commit import Committer
from nacos_proxy.core.send import Sender
from nacos_proxy.model.calls import BEAT_NOT_FOUND, BEAT_OK, Beat, BeatResult, Deregister, GetInstance, Register
from nacos_proxy.model.errors import ABSENT, ProxyError, Reason, Refused, is_unavailable
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import Instance, Snapshot
from nacos_proxy.runtime import Clock, Supervisor, stop

log = logging.getLogger("nacos_proxy.healing")

LISTED_WITHIN = 5.0  # seconds until every server lists an instance that it accepted (nacos-http.md, fact 1)
MAX_LOOKUPS = 16  # instances looked up for one list; if it lacks more, they are more likely lost than disabled
HIDDEN_FOR = 30.0  # seconds for which an existing instance that no list shows counts as disabled


@dataclass(slots=True, eq=False, repr=False)
class Reregistration:
    """Keeps registrations alive at the upstream. One task at a time registers the `_lost` ones again.

    `_below_proxy`: the upstream is another proxy.
    """

    _registrations: Registrations
    _drains: Drains
    _sender: Sender
    _committer: Committer
    _clock: Clock
    _supervisor: Supervisor
    _below_proxy: bool = False
    _deregistering: Counter[RegistrationKey] = field(default_factory=lambda: Counter())
    _lost: dict[RegistrationKey, Registration] = field(default_factory=lambda: {})
    _task: asyncio.Task[None] | None = None

    @contextmanager
    def deregistering(self, call: Deregister) -> Generator[None, None, None]:
        """Until the deregistration ends, a beat of the unknown instance does not register it again."""
        key = (call.service, call.ip, call.port)
        self._deregistering[key] += 1
        try:
            yield
        finally:
            self._deregistering[key] -= 1
            if not self._deregistering[key]:
                del self._deregistering[key]

    def _wanted(self, key: RegistrationKey) -> Registration | None:
        """The registration of an ephemeral instance, unless its owner has deregistered it or is doing so now.

        None also if it is drained.
        """
        known = self._registrations.find(*key)
        unwanted = known is None or known.deregistering or not known.instance.ephemeral or key in self._deregistering
        return None if unwanted or self._drains.find(key, self._clock.now()) else known

    def _is_alive(self, registration: Registration) -> bool:
        """Whether the client still beats. If not, a beat of ours would make its instance healthy for everybody."""
        return self._wanted(registration.key) is registration and registration.healthy(self._clock.now())

    async def reregister(self, beat: Beat, result: BeatResult) -> BeatResult | None:
        """Register the instance of a beat again if the upstream does not know it.

        Returns the new answer to the beat. None if the upstream's own answer stands, also because it refuses the
        registration: the client then learns that it is not registered, and knows best what to do. Raises other errors.
        """
        if result.code != BEAT_NOT_FOUND or (known := self._wanted((beat.service, beat.ip, beat.port))) is None:
            return None
        try:
            registered = await self._register_again(known)
        except Refused as error:
            log.warning("%s of %s is lost and cannot be registered again: %s", beat.ip, beat.service, error)
            return None
        return replace(result, code=BEAT_OK, interval=beat_interval(known.instance.metadata)) if registered else None

    async def missing_from(self, snapshot: Snapshot, *, suspicious: bool) -> dict[tuple[str, int], float]:
        """Starts to reregister the instances that the upstream has lost. Returns since when lists lack each address.

        Readers should go on seeing these instances. Lists also lack disabled instances, so each missing one is looked
        up first. While `suspicious` (the upstream was away), a lookup proves nothing, and an instance also counts as
        lost if it lacks its data or is unhealthy because its beats did not get through. An instance that was just
        registered does not count, because servers list it late.
        """
        missing = [r for r in self._registrations.of_service(snapshot.key) if self._is_missing(snapshot, r, suspicious)]
        if missing and not suspicious:
            looked_up, rest = missing[:MAX_LOOKUPS], missing[MAX_LOOKUPS:]
            hidden = await asyncio.gather(*(self._is_hidden(known) for known in looked_up))
            missing = [known for known, exists in zip(looked_up, hidden, strict=True) if not exists] + rest
        now = self._clock.now()
        self._lost.update((known.key, known) for known in missing)
        if missing and (self._task is None or self._task.done()):
            self._task = self._supervisor.once(self._reregister_lost(), name="bring back")
        return {known.key[1:]: now if suspicious else known.missed_since for known in missing}

    def expects_more(self, snapshot: Snapshot, *, suspicious: bool) -> bool:
        """Whether `missing_from` would find an instance that the upstream may have lost."""
        return any(self._is_missing(snapshot, r, suspicious) for r in self._registrations.of_service(snapshot.key))

    def _is_missing(self, snapshot: Snapshot, known: Registration, suspicious: bool) -> bool:
        now, i = self._clock.now(), known.instance
        listed = snapshot.find(i.ip, i.port)
        if listed is not None:
            known.hidden_until = -math.inf
        settled = now - known.registered_at > LISTED_WITHIN
        expected = known.beats and known.healthy(now) and settled and self._wanted(known.key)
        hidden = not suspicious and (self._below_proxy or now < known.hidden_until or not i.enabled)
        lost = listed is None or (suspicious and (_lacks_data(listed, i) or not listed.healthy))
        if not expected or hidden or not lost:
            known.missed_since = math.inf
            return False
        known.missed_since = min(known.missed_since, now)
        return True

    async def _is_hidden(self, known: Registration) -> bool:
        """Whether the upstream has an instance that it does not list. If so, do not look it up again for a while."""
        try:
            exists = await self._look_up(known) is not None or await self._knows_beat(known)
        except ProxyError:
            exists = False
        if exists:
            known.hidden_until, known.missed_since = self._clock.now() + HIDDEN_FOR, math.inf
        return exists

    async def _look_up(self, known: Registration) -> Instance | None:
        """The upstream's instance; None if we lack the right to see it. Raises `Refused` if there is none."""
        i = known.instance
        try:
            return await self._sender.send(GetInstance(known.service, i.ip, i.port, i.cluster))
        except Refused as error:
            if error.reason in ABSENT and not _lacks_rights(error):
                raise
            return None

    async def _knows_beat(self, known: Registration) -> bool:
        """Whether the upstream accepts a beat. If the client fell silent, sends no beat and returns True."""
        i = known.instance
        beat = Beat(known.service, i.ip, i.port, i.cluster, i.ephemeral)
        return not self._is_alive(known) or (await self._sender.send(beat)).code == BEAT_OK

    async def _reregister_lost(self) -> None:
        while self._lost:
            key, registration = next(iter(self._lost.items()))
            try:
                await self.renew(registration)
            except ProxyError as error:
                log.info("%s of %s is lost: %s", registration.instance.address, registration.service, error)
                if is_unavailable(error):  # after the outage, lists show again what is lost
                    self._lost.clear()
            finally:
                self._lost.pop(key, None)

    async def renew(self, registration: Registration) -> bool:
        """Make sure that the upstream has the instance. True if it had lost it. Raises the upstream's error."""
        if not self._is_alive(registration) or await self._exists(registration) or not self._is_alive(registration):
            return False
        return await self._register_again(registration)

    async def _exists(self, registration: Registration) -> bool:
        """Whether the upstream has the instance with its data.

        Look it up first, because r-nacos creates an instance for any beat. If the upstream shows it as unhealthy, or
        does not let us see it, or is a proxy that may have drained it, a beat decides.
        """
        try:
            found = await self._look_up(registration)
        except Refused:
            if not self._below_proxy:
                return False
            found = None
        if found is not None and _lacks_data(found, registration.instance):
            return False
        return (found is not None and found.healthy) or await self._knows_beat(registration)

    async def _register_again(self, known: Registration) -> bool:
        call, i = Register(known.service, known.instance), known.instance
        await self._sender.send(call)
        if self._wanted(known.key) is None:
            await self._sender.send(Deregister(known.service, i.ip, i.port, i.cluster, i.ephemeral))
            return False
        log.info("registered %s of %s again: the upstream had lost it", i.address, known.service)
        self._committer.counts.healed += 1
        self._sender.suspect()  # it may have lost more
        self._committer.show(call)
        return True

    async def close(self) -> None:
        await stop(self._task)


def _lacks_rights(error: ProxyError) -> bool:
    """Whether an instance was not found only because we may not see hidden ones (v3 without admin)."""
    return isinstance(error.__cause__, Refused) and error.__cause__.reason is Reason.NO_RIGHT


def _lacks_data(found: Instance, known: Instance) -> bool:
    """Whether a light beat may have created the instance without its data, as on r-nacos."""
    return bool(known.metadata and not found.metadata) or found.weight == 1.0 != known.weight

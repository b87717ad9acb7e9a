"""Reregistration: an instance that beats through this proxy and that the upstream has lost is registered again.

The client notices nothing: its beat is answered as if the instance had been there. Only the owner can end this: what he
deregisters stays away.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from nacos_proxy.catalog.registrations import Registration, RegistrationKey, Registrations
from nacos_proxy.core.commit import Committer
from nacos_proxy.core.send import Sender
from nacos_proxy.model.calls import BEAT_NOT_FOUND, BEAT_OK, Beat, BeatResult, Deregister, GetInstance, Register
from nacos_proxy.model.errors import ABSENT, ProxyError, Reason, Refused, is_unavailable
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import Instance, Snapshot
from nacos_proxy.runtime import Clock, Supervisor, stop

log = logging.getLogger("nacos_proxy.healing")

LISTED_WITHIN = 5.0  # seconds until every server lists what it accepted (nacos-http.md, fact 1)
MAX_LOOKUPS = 16  # instances looked up for one list; if it lacks more, they are more likely lost than disabled
HIDDEN_FOR = 30.0  # seconds for which an instance that exists and is not listed is taken for disabled


class Reregistration:
    """Keeps registrations alive at the upstream."""

    def __init__(
        self,
        registrations: Registrations,
        sender: Sender,
        committer: Committer,
        clock: Clock,
        supervisor: Supervisor,
    ) -> None:
        self._registrations = registrations
        self._sender = sender
        self._committer = committer
        self._clock = clock
        self._supervisor = supervisor
        self._deregistering: Counter[RegistrationKey] = Counter()
        self._lost: dict[RegistrationKey, Registration] = {}  # to be registered again, one after the other
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def deregistering(self, call: Deregister) -> Generator[None, None, None]:
        """While a deregistration is in flight, a beat that finds nothing does not register the instance again."""
        key = (call.service, call.ip, call.port)
        self._deregistering[key] += 1
        try:
            yield
        finally:
            self._deregistering[key] -= 1
            if not self._deregistering[key]:
                del self._deregistering[key]

    def _wanted(self, key: RegistrationKey) -> Registration | None:
        """The registration, unless its owner has ended it or is ending it, or it is persistent."""
        known = self._registrations.find(*key)
        unwanted = known is None or known.deregistering or not known.instance.ephemeral or key in self._deregistering
        return None if unwanted else known

    def _is_alive(self, registration: Registration) -> bool:
        """Nothing is sent for a client that fell silent: a beat of ours would make it healthy again for everybody."""
        return self._wanted(registration.key) is registration and registration.healthy(self._clock.now())

    async def reregister(self, beat: Beat, result: BeatResult) -> BeatResult | None:
        """Register again if the upstream does not know the instance of a beat. None if its own answer stands.

        Raises what the upstream says to the new registration. A refusal is not raised: the client, which then hears
        that it is not registered, knows best what to do.
        """
        known = self._wanted((beat.service, beat.ip, beat.port))
        if result.code != BEAT_NOT_FOUND or known is None:
            return None
        try:
            back = await self._register_again(known)
        except Refused as error:
            log.warning("%s of %s is lost and cannot be registered again: %s", beat.ip, beat.service, error)
            return None
        return replace(result, code=BEAT_OK, interval=beat_interval(known.instance.metadata)) if back else None

    async def missing_from(self, snapshot: Snapshot, *, suspicious: bool) -> dict[tuple[str, int], float]:
        """Addresses that beat through this proxy and are missing from a list, and since when they are missing.

        The upstream has lost them; they are registered again, and readers should not see them go in the meantime.
        Lists do not show disabled instances either, so what is missing is looked up first. While `suspicious`, because
        the upstream was away, a lookup proves nothing. Then an instance also counts as lost if it lacks its data or is
        unhealthy, because its beats did not get through. What was registered just now is not missing yet: a server
        lists it late.
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

    def _is_missing(self, snapshot: Snapshot, known: Registration, suspicious: bool) -> bool:
        now, i = self._clock.now(), known.instance
        listed = snapshot.find(i.ip, i.port)
        if listed is not None:
            known.hidden_until = -math.inf
        expected = (
            known.beats and known.healthy(now) and now - known.registered_at > LISTED_WITHIN and self._wanted(known.key)
        )
        hidden = not suspicious and (now < known.hidden_until or not i.enabled)
        lost = listed is None or (suspicious and (_lacks_data(listed, i) or not listed.healthy))
        if not expected or hidden or not lost:
            known.missed_since = math.inf
            return False
        known.missed_since = min(known.missed_since, now)
        return True

    async def _is_hidden(self, known: Registration) -> bool:
        """Whether the upstream has an instance that it does not list. If so, it is not looked up again for a while."""
        try:
            exists = await self._look_up(known) is not None or await self._knows_beat(known)
        except ProxyError:
            exists = False
        if exists:
            known.hidden_until, known.missed_since = self._clock.now() + HIDDEN_FOR, math.inf
        return exists

    async def _look_up(self, known: Registration) -> Instance | None:
        """The instance as the upstream shows it, None if it may not show it. Raises `Refused` if it has none."""
        i = known.instance
        try:
            return await self._sender.send(GetInstance(known.service, i.ip, i.port, i.cluster))
        except Refused as error:
            if error.reason in ABSENT and not _lacks_rights(error):
                raise
            return None

    async def _knows_beat(self, known: Registration) -> bool:
        """Whether the upstream accepts a beat. None is sent for a client that fell silent meanwhile."""
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
                if is_unavailable(error):  # its return starts all this again
                    self._lost.clear()
            finally:
                self._lost.pop(key, None)

    async def renew(self, registration: Registration) -> bool:
        """Make sure that the upstream still has it; True if it had to be registered again. Raises what it says."""
        if not self._is_alive(registration) or await self._exists(registration) or not self._is_alive(registration):
            return False
        return await self._register_again(registration)

    async def _exists(self, registration: Registration) -> bool:
        """Whether the upstream has it, with its data.

        It is looked up first, because r-nacos makes an instance of any beat. A beat follows if the upstream takes it
        for unhealthy, or decides if it may not be looked up.
        """
        try:
            found = await self._look_up(registration)
        except Refused:
            return False
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
    """Whether an instance was not found only for lack of rights to see hidden ones (v3 without admin)."""
    return isinstance(error.__cause__, Refused) and error.__cause__.reason is Reason.NO_RIGHT


def _lacks_data(found: Instance, known: Instance) -> bool:
    """Whether a light beat may have made the instance: r-nacos does that, and keeps metadata over a restart."""
    return bool(known.metadata and not found.metadata) or found.weight == 1.0 != known.weight

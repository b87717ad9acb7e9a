"""Keeps alive what was registered through this proxy: registers again what was lost.

Not for: what happens while the upstream is away (`outage`), whom to ask on its return (the poller). A client that
beats is answered as if nothing had been; the last word is always that of its owner: what he deregisters stays away.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from nacos_proxy.catalog.registrations import Registration, RegistrationKey, Registrations
from nacos_proxy.core.queries import Sender
from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    BeatResult,
    Deregister,
    GetInstance,
    Register,
)
from nacos_proxy.model.errors import (
    ABSENT,
    ProxyError,
    Reason,
    Refused,
    away,
)
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import Instance, Snapshot
from nacos_proxy.runtime import Clock, Supervisor, stop

R = TypeVar("R")
HostPort = tuple[str, int]

log = logging.getLogger("nacos_proxy.healing")


LISTED_WITHIN = 5.0  # seconds until every server lists what it took
LOOKED_UP = 16  # instances that one list lacks; where it lacks more it is more likely that they are lost
HIDDEN_FOR = 30.0  # seconds for which an instance that exists and is not listed is believed to be disabled


def _untold(error: ProxyError) -> bool:
    """Whether an instance was not found for want of rights to look at those that lists hide (v3 without admin)."""
    return isinstance(error.__cause__, Refused) and error.__cause__.reason is Reason.NO_RIGHT


def _poorer(shown: Instance, known: Instance) -> bool:
    """Whether it may be what a server made of a light beat: r-nacos does so, and keeps metadata over a restart."""
    return bool(known.metadata and not shown.metadata) or shown.weight == 1.0 != known.weight


class Reregistration:
    """Of one ledger. `registered` is told of what the upstream took back."""

    def __init__(
        self,
        ledger: Registrations,
        upstream: Sender,
        registered: Callable[[Register], None],
        clock: Clock,
        supervisor: Supervisor,
    ) -> None:
        self._ledger = ledger
        self._upstream = upstream
        self._registered = registered
        self._clock = clock
        self._supervisor = supervisor
        self._leaving: Counter[RegistrationKey] = Counter()
        self._lost: dict[RegistrationKey, Registration] = {}  # to be brought back, one after the other
        self._bringing_back: asyncio.Task[None] | None = None

    @contextmanager
    def leaving(self, call: Deregister) -> Generator[None, None, None]:
        """While a deregistration is under way, a beat that finds nothing is no reason to register again."""
        place = (call.service, call.ip, call.port)
        self._leaving[place] += 1
        try:
            yield
        finally:
            self._leaving[place] -= 1
            if not self._leaving[place]:
                del self._leaving[place]

    def _wanted(self, place: RegistrationKey) -> Registration | None:
        known = self._ledger.find(*place)
        unwanted = known is None or known.left or not known.instance.ephemeral or place in self._leaving
        return None if unwanted else known

    def _lives(self, registration: Registration) -> bool:
        """Nothing is sent for a client that fell silent: a beat of ours would make it well again for everybody."""
        return self._wanted(registration.key) is registration and registration.healthy(self._clock.now())

    async def heal(self, beat: Beat, result: BeatResult) -> BeatResult | None:
        """What to answer where the upstream does not know the instance and we do; None where its own answer stands.

        Raises what the upstream says to the new registration, but for a refusal: then the client, which hears that it
        is not registered, knows best what to do.
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

    async def lost(self, word: Snapshot, *, doubtful: bool) -> dict[HostPort, float]:
        """What beats through this proxy and is not in a list: the upstream has lost it, and gets it back.

        With since when it is missed, for readers, who are not to see it go in between. Lists do not show an instance
        that somebody disabled either, so what is missing is looked up first. While `doubtful`, the upstream having
        been away, that tells nothing; then it is lost also where its data is, or its health, by the beats that did
        not get there. What was registered only now is not missed yet: a server lists it late (nacos-http.md, fact 1).
        """
        missing = [known for known in self._ledger.of(word.key) if self._lacks(word, known, doubtful)]
        if missing and not doubtful:
            looked_up, rest = missing[:LOOKED_UP], missing[LOOKED_UP:]
            hidden = await asyncio.gather(*(self._is_hidden(known) for known in looked_up))
            missing = [known for known, there in zip(looked_up, hidden, strict=True) if not there] + rest
        now = self._clock.now()
        self._lost.update((known.key, known) for known in missing)
        if missing and (self._bringing_back is None or self._bringing_back.done()):
            self._bringing_back = self._supervisor.once(self._bring_back(), name="bring back")
        return {known.key[1:]: now if doubtful else known.missed_since for known in missing}

    def _lacks(self, word: Snapshot, known: Registration, doubtful: bool) -> bool:
        now, i = self._clock.now(), known.instance
        shown = word.find(i.ip, i.port)
        if shown is not None:
            known.hidden_until = -math.inf
        lost = known.beaten and known.healthy(now) and now - known.since > LISTED_WITHIN and self._wanted(known.key)
        hidden = not doubtful and (now < known.hidden_until or not i.enabled)
        if not lost or hidden or not (shown is None or (doubtful and (_poorer(shown, i) or not shown.healthy))):
            known.missed_since = math.inf
            return False
        known.missed_since = min(known.missed_since, now)
        return True

    async def _is_hidden(self, known: Registration) -> bool:
        """Whether the upstream has what it does not list, in which case it is not looked up again for a while."""
        try:
            there = await self._shown(known) is not None or await self._takes_a_beat(known)
        except ProxyError:
            there = False
        if there:
            known.hidden_until, known.missed_since = self._clock.now() + HIDDEN_FOR, math.inf
        return there

    async def _shown(self, known: Registration) -> Instance | None:
        """As the upstream shows it, None where it may not be looked at. Raises `Refused` where it is not there."""
        i = known.instance
        try:
            return await self._upstream.send(GetInstance(known.service, i.ip, i.port, i.cluster))
        except Refused as error:
            if error.reason in ABSENT and not _untold(error):
                raise
            return None

    async def _takes_a_beat(self, known: Registration) -> bool:
        """Whether the upstream knows it. Nothing is asked for a client that fell silent meanwhile."""
        i = known.instance
        beat = Beat(known.service, i.ip, i.port, i.cluster, i.ephemeral)
        return not self._lives(known) or (await self._upstream.send(beat)).code == BEAT_OK

    async def _bring_back(self) -> None:
        while self._lost:
            place, registration = next(iter(self._lost.items()))
            try:
                await self.renew(registration)
            except ProxyError as error:
                log.info("%s of %s is lost: %s", registration.instance.address, registration.service, error)
                if away(error):  # its return begins anew
                    self._lost.clear()
            finally:
                self._lost.pop(place, None)

    async def renew(self, registration: Registration) -> bool:
        """Make sure that the upstream still has it; True where it had to be registered again. Raises what it says."""
        if not self._lives(registration) or await self._is_there(registration) or not self._lives(registration):
            return False
        return await self._register_again(registration)

    async def _is_there(self, registration: Registration) -> bool:
        """Whether the upstream has it, with its data. It is looked at first, since r-nacos makes one of any beat.

        A beat follows where it is thought to be unwell, and tells where it cannot be looked at.
        """
        try:
            shown = await self._shown(registration)
        except Refused:
            return False
        if shown is not None and _poorer(shown, registration.instance):
            return False
        return (shown is not None and shown.healthy) or await self._takes_a_beat(registration)

    async def close(self) -> None:
        """Ends what is under way."""
        await stop(self._bringing_back)

    async def _register_again(self, known: Registration) -> bool:
        call, i = Register(known.service, known.instance), known.instance
        await self._upstream.send(call)
        if self._wanted(known.key) is None:
            await self._upstream.send(Deregister(known.service, i.ip, i.port, i.cluster, i.ephemeral))
            return False
        log.info("registered %s of %s again: the upstream had lost it", i.address, known.service)
        self._registered(call)
        return True

"""Keeps alive what was registered through this proxy: registers again what was lost, answers beats meanwhile.

Not for: when the upstream counts as away (the agent), whom to ask after an outage (the poller). A client that beats is
answered as if nothing had been; the last word is always that of the instance's owner: what he deregisters stays away.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from proxy.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    BeatResult,
    Call,
    Deregister,
    GetInstance,
    Register,
    beat_interval,
)
from proxy.catalog.ledger import Ledger, Place, Registration
from proxy.errors import ProxyError, Reason, Refused
from proxy.model import Instance, Snapshot
from proxy.runtime import Clock, spawn, stop

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.healing")


LISTED_WITHIN = 5.0  # seconds until every server lists what it took
_ABSENT = (Reason.INSTANCE_NOT_FOUND, Reason.NO_INSTANCES, Reason.SERVICE_NOT_FOUND)


def _bare(instance: Instance) -> bool:
    return not instance.metadata and instance.weight == 1.0


class Sender(Protocol):
    """Who sends a call to the upstream."""

    async def send(self, call: Call[R]) -> R: ...


class Healing:
    """Of one ledger. `registered` is told of what the upstream took back."""

    def __init__(self, ledger: Ledger, upstream: Sender, registered: Callable[[Register], None], clock: Clock) -> None:
        self._ledger = ledger
        self._upstream = upstream
        self._registered = registered
        self._clock = clock
        self._leaving: Counter[Place] = Counter()
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

    def _wanted(self, place: Place) -> Registration | None:
        known = self._ledger.find(*place)
        return None if known is None or not known.instance.ephemeral or place in self._leaving else known

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

    def locally(self, beat: Beat) -> BeatResult | None:
        """The answer to a beat while the upstream is away; None for an instance that was not registered here."""
        known = self._ledger.find(beat.service, beat.ip, beat.port)
        if known is None:
            return None
        self._ledger.wrote(beat, self._clock.now())
        return BeatResult(interval=beat_interval(known.instance.metadata))

    def misses(self, word: Snapshot) -> bool:
        """Whether a list lacks what beats through this proxy: then the upstream has lost it, and gets it back.

        What was registered only now is not missed yet: a server lists it late (DESIGN fact 1).
        """
        now = self._clock.now()
        lost = [
            known
            for known in self._ledger.of(word.key)
            if known.beaten and known.healthy(now) and now - known.since > LISTED_WITHIN and self._wanted(known.place)
            and word.find(known.instance.ip, known.instance.port) is None
        ]  # fmt: skip
        if lost and (self._bringing_back is None or self._bringing_back.done()):
            self._bringing_back = spawn(self._bring_back(lost), name="bring back")
        return bool(lost)

    async def _bring_back(self, lost: Sequence[Registration]) -> None:
        for registration in lost:
            try:
                await self.renew(registration)
            except ProxyError as error:
                log.info("%s of %s is lost: %s", registration.instance.address, registration.service, error)

    async def renew(self, registration: Registration) -> bool:
        """Make sure that the upstream still has it; True where it had to be registered again. Raises what it says."""
        place = registration.place
        if self._wanted(place) is not registration:
            return False
        there = await self._is_there(registration)
        if there or self._wanted(place) is not registration:
            return False
        return await self._register_again(registration)

    async def _is_there(self, registration: Registration) -> bool:
        """Whether the upstream has it, with its data: r-nacos makes one without any from a light beat.

        It is looked at first, since a beat would do just that. Where it cannot be looked at, a beat tells.
        """
        service, i = registration.service, registration.instance
        try:
            shown = await self._upstream.send(GetInstance(service, i.ip, i.port, i.cluster))
        except Refused as error:
            if error.reason in _ABSENT:
                return False
            beat = Beat(service, i.ip, i.port, i.cluster, i.ephemeral)
            return (await self._upstream.send(beat)).code == BEAT_OK
        return not _bare(shown) or _bare(i)

    async def close(self) -> None:
        """Ends what is under way."""
        await stop(self._bringing_back)

    async def _register_again(self, known: Registration) -> bool:
        call, i = Register(known.service, known.instance), known.instance
        await self._upstream.send(call)
        if self._wanted(known.place) is None:
            await self._upstream.send(Deregister(known.service, i.ip, i.port, i.cluster, i.ephemeral))
            return False
        log.info("registered %s of %s again: the upstream had lost it", i.address, known.service)
        self._registered(call)
        return True

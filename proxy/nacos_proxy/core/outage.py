"""While the upstream is away: what is accepted here, what time does to instances, and what is sent on its return.

Not for: which writes wait (`catalog.journal`), when the upstream counts as up (`catalog.breaker`), how many are sent at
once (the poller). Only ephemeral instances: their clients are on this host, and their beats and times tell the rest.
Readers see what was accepted as they see any write, by the overlay; a list of the upstream's never undoes it before
the upstream has heard of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.circuit_breaker import Breaker
from nacos_proxy.catalog.journal import (
    Journal,
    JournalPolicy,
    Local,
    Waiting,
    place_of,
)
from nacos_proxy.catalog.pending_writes import UNHEARD, Pending
from nacos_proxy.catalog.registrations import Registration, RegistrationKey, Registrations
from nacos_proxy.core.counts import Counts
from nacos_proxy.model.calls import (
    Beat,
    BeatResult,
    Call,
    Deregister,
    Register,
    SetHealth,
    Write,
)
from nacos_proxy.model.errors import (
    BadCall,
    ProxyError,
    Refused,
    away,
)
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.limits import check_instance  # fmt: skip
from nacos_proxy.model.services import Change, Instance, ServiceKey
from nacos_proxy.runtime import Clock

R = TypeVar("R")
How = Literal["upstream", "healed", "local"]

log = logging.getLogger("nacos_proxy.outage")

# A node that has just come back refuses what it takes a moment later: its word counts when it was said so often.
REFUSALS = 3
_OF_THE_CALL = (500, 501)  # also said of a call that is wrong: of the upstream it tells nothing


@dataclass(frozen=True, slots=True)
class Written(Generic[R]):
    """The result of a write and who gave it: the upstream, the upstream after we healed the loss, or we alone."""

    result: R
    how: How = "upstream"


class Desk(Protocol):
    """What the agent does for it."""

    async def send(self, call: Call[R]) -> R: ...

    def took(self, call: Write[Any], result: object, *, local: bool = False) -> None:
        """A write was accepted: it is remembered and shown."""
        ...

    def owned(self, service: ServiceKey) -> None:
        """What is remembered of its instances has changed."""
        ...


class Outage:
    """Of one agent, to which `show` gives changes.

    `kept` returns when the journal is on disk. `checks` says whether the upstream applies Nacos's check of an instance.

    `writes` False: nothing but beats of what was registered here is answered in place of the upstream.
    """

    def __init__(
        self, desk: Desk, ledger: Registrations, cache: Cache, breaker: Breaker, show: Callable[[Change | None], None],
        counts: Counts, clock: Clock, *, writes: bool, checks: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.journal = Journal(JournalPolicy())
        self.kept: Callable[[], Awaitable[None]] | None = None
        self.checks = checks
        self._desk = desk
        self._ledger = ledger
        self._cache = cache
        self._breaker = breaker
        self._show = show
        self._counts = counts
        self._clock = clock
        self._writes = writes
        self._sending: WeakValueDictionary[RegistrationKey, asyncio.Lock] = WeakValueDictionary()
        self._refusals: dict[RegistrationKey, int] = {}
        self._silent: dict[RegistrationKey, bool] = {}  # what is shown unwell for its silence; True: no longer shown
        self._look_at = -math.inf

    # accepting

    async def first(self, call: Write[Any]) -> Written[Any] | ProxyError | None:
        """What to answer in place of the upstream; None where it is to be asked, which has heard of what was before."""
        if not self._breaker.up:
            return await self._accept(call)
        if isinstance(call, Local) and (place := place_of(call)) in self.journal:
            if isinstance(call, Beat):
                self._ledger.wrote(call, self._clock.now())
            await self.send_on(place)
            if place in self.journal:  # order is kept
                return await self._accept(call)
        return None

    async def instead(self, call: Write[Any], error: ProxyError) -> Written[Any] | ProxyError | None:
        """What to answer where the upstream gave none; None where its failure is the answer."""
        if not away(error):
            return None
        known = self._ledger.find(*place_of(call)) if isinstance(call, Local) else None
        of_the_call = isinstance(error, Refused) and error.status in _OF_THE_CALL
        if not of_the_call or (isinstance(call, Beat) and known is not None):
            if (local := await self._accept(call)) is not None:
                return local
        if isinstance(call, Deregister) and known is not None:
            known.left = True
        return None

    async def _accept(self, call: Write[Any]) -> Written[Any] | ProxyError | None:
        if isinstance(call, Beat) and (beaten := self.beaten(call)) is not None:
            return beaten
        if not self._writes or not isinstance(call, Local) or not self._ours(call) or not self.journal.room:
            return None
        made = _made_by(call)
        try:
            if made is not None and self.checks():
                check_instance(made)
        except BadCall as error:
            return error
        result = BeatResult(interval=beat_interval(made.metadata)) if isinstance(call, Beat) and made else None
        self._take(call, result)
        if self.kept is not None:
            await self.kept()
        return Written(result, "local")

    def _take(self, call: Local, result: object) -> None:
        self._desk.took(call, result, local=True)
        self._silent.pop(place_of(call), None)
        self._refusals.pop(place_of(call), None)
        self._look_at = -math.inf
        self.journal.add(call, self._clock.wall())
        Counts.add(self._counts.outage, "accepted")

    def beaten(self, beat: Beat) -> Written[BeatResult] | None:
        """The answer to a beat that is given here; None where no such instance is registered here."""
        if (known := self._ledger.find(beat.service, beat.ip, beat.port)) is None:
            return None
        self._ledger.wrote(beat, self._clock.now())
        self._counts.local_beats += 1
        self.heard(known)
        return Written(BeatResult(interval=beat_interval(known.instance.metadata)), "local")

    def _ours(self, call: Local) -> bool:
        """Whether it is about an ephemeral instance, and about one that is known where it needs one."""
        place = place_of(call)
        known = self._known(place)
        if known is not None and not known.ephemeral:
            return False
        if isinstance(call, Register | Beat):
            made = _made_by(call)
            room = self._ledger.room or self._ledger.find(*place) is not None
            return made is not None and made.ephemeral and room
        return call.ephemeral and (known is not None or isinstance(call, Deregister))

    def _known(self, place: RegistrationKey) -> Instance | None:
        registration, entry = self._ledger.find(*place), self._cache.get(place[0])
        if registration is not None:
            return registration.instance
        return None if entry is None or entry.visible is None else entry.visible.find(place[1], place[2])

    # silence

    @property
    def _away(self) -> bool:
        """Whether the upstream's last word was none."""
        return not self._breaker.up or self._breaker.failures > 0

    def turn(self, now: float) -> None:
        """While the upstream is away, clients that fell silent turn unwell here, as they would there."""
        if not self._away:
            self._release(now)
            return
        if now < self._look_at:
            return
        self._look_at = math.inf
        for registration in self._ledger:
            if registration.healthy(now):
                self._look_at = min(self._look_at, registration.unhealthy_at)
            elif registration.alive(now):
                self._look_at = min(self._look_at, registration.expires_at)
                self._mark(registration, gone=False)
            else:  # a managed one: the others are forgotten by now
                self._mark(registration, gone=True)

    def lapsed(self, registration: Registration) -> None:
        """Forgotten for its silence: while the upstream is away it is gone here, too."""
        waited = registration.key in self.journal
        self.journal.lapsed(registration.key)
        if self._away:
            self._mark(registration, gone=True)
        if waited:
            self._ended(registration.key, "lapsed", shown=self._away)

    def _mark(self, registration: Registration, *, gone: bool) -> None:
        place, (service, i) = registration.key, (registration.service, registration.instance)
        if self._silent.get(place) is gone:
            return
        self._silent[place] = gone
        left = Deregister(service, i.ip, i.port, i.cluster)
        unwell = SetHealth(service, i.ip, i.port, i.cluster, False)
        change = self._cache.wrote(left if gone else unwell, self._clock.now(), self._wall_ms(), local=True)
        if change is not None:
            log.info("%s of %s beats no more: %s here", i.address, service, "gone" if gone else "unwell")
        self._show(change)

    def heard(self, registration: Registration) -> None:
        """Its client lives: its silence is forgotten."""
        gone = self._silent.pop(registration.key, None)
        self._look_at = min(self._look_at, registration.unhealthy_at)
        if gone and self._writes:
            self._take(Register(registration.service, registration.instance), None)
        elif gone is not None:
            self._revise(registration.key, lambda p: None if gone or isinstance(p.write, SetHealth) else p)

    def _release(self, now: float) -> None:
        """The upstream is back: its word counts again, as soon as it had the time to say one."""
        for place in self._silent:
            if place not in self.journal:
                self._revise(place, lambda p: replace(p, since=now))
        self._silent.clear()
        self._look_at = -math.inf

    # the return

    async def send_on(self, place: RegistrationKey) -> bool:
        """Send what waits of a place, in order. False where the upstream does not take it now: the rest waits on."""
        turn = self._sending.setdefault(place, asyncio.Lock())
        async with turn:
            while writes := self.journal.of(place):
                if not await self._send(place, writes[0]):
                    return False
        return True

    async def _send(self, place: RegistrationKey, write: Local) -> bool:
        known = self._ledger.find(*place)
        if isinstance(write, Register | Beat) and (known is None or not known.healthy(self._clock.now())):
            self.journal.lapsed(place)
            self._ended(place, "lapsed")
            return True
        try:
            await self._desk.send(cast("Write[Any]", write))
        except Refused as error:
            tries = self._refusals[place] = self._refusals.get(place, 0) + 1
            if (away(error) and error.status not in _OF_THE_CALL) or tries < REFUSALS:
                return False
            log.error("what was accepted here is refused, and undone: %s of %s: %s", write, place[0], error)
            self._undo(place, write)
            return True
        except ProxyError as error:
            log.info("%s %s of %s waits on: %s", type(write).__name__, place[1], place[0], error)
            return False
        self.journal.done(place, write)
        self._ended(place, "sent")
        return True

    def _undo(self, place: RegistrationKey, write: Local) -> None:
        self.journal.done(place, write)
        if isinstance(write, Register | Beat):
            self.journal.lapsed(place)
            if self._ledger.wrote(Deregister(*place), self._clock.now()):  # healing would try it again and again
                self._desk.owned(place[0])
        self._ended(place, "refused")

    def _ended(self, place: RegistrationKey, outcome: str, *, shown: bool = False) -> None:
        """What waits no more: the upstream's lists settle it, or (unless `shown`) it is no longer shown."""
        self._refusals.pop(place, None)
        Counts.add(self._counts.outage, outcome)
        if shown:
            return
        waiting, now = self.journal.of(place), self._clock.now()

        def revised(pending: Pending) -> Pending | None:
            if any(pending.write is write for write in waiting):
                return pending
            return replace(pending, since=now) if outcome == "sent" else None

        self._revise(place, revised)

    def _revise(self, place: RegistrationKey, revised: Callable[[Pending], Pending | None]) -> None:
        def ours(pending: Pending) -> Pending | None:
            return revised(pending) if pending.address == place[1:] and pending.since == UNHEARD else pending

        self._show(self._cache.revise(place[0], ours, self._clock.now(), self._wall_ms()))

    def _wall_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    # from disk

    def restore(self, place: RegistrationKey, waiting: Waiting) -> None:
        """What waited when the last process ended; of the registrations only those that can still live."""
        now, age = self._clock.now(), max(0.0, self._clock.wall() - waiting.at)
        self.journal.restore(place, waiting)
        for write in waiting.writes:
            if (made := _made_by(write)) is None:
                self._ledger.wrote(write, now)
            elif (new := Registration(place[0], made, now - age, since=now - age)).alive(now):
                self._ledger.restore(new)
            if made is None or self._ledger.find(*place) is not None:
                self._show(self._cache.wrote(write, now, self._wall_ms(), local=True))
        self._desk.owned(place[0])

    def __repr__(self) -> str:
        return f"<Outage {self.journal!r}, {len(self._silent)} silent>"


def _made_by(write: Local) -> Instance | None:
    """The instance that a write brings about where there is none."""
    if isinstance(write, Register):
        return write.instance
    return write.full if isinstance(write, Beat) else None

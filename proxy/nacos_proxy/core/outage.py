"""Outage: accept writes while the upstream is away, watch for silent clients, and send the writes after its return.

This covers ephemeral instances only: their clients run on this host, and their beats show whether they are alive.
Readers see an accepted write as a pending write. Until the upstream has received it, no list can undo it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakValueDictionary

from nacos_proxy.catalog.journal import Journal, JournalEntry, LocalWrite, registration_key
from nacos_proxy.catalog.pending_writes import UNSENT, Pending
from nacos_proxy.catalog.registrations import Registration, RegistrationKey
from nacos_proxy.core.commit import Catalog, Committer, Counts, Written
from nacos_proxy.core.send import Sender
from nacos_proxy.model.calls import Beat, BeatResult, Deregister, Register, SetHealth, Write
from nacos_proxy.model.errors import BadCall, ProxyError, Refused, is_loop, is_unavailable
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.limits import check_instance
from nacos_proxy.model.services import Instance
from nacos_proxy.runtime import Clock

log = logging.getLogger("nacos_proxy.outage")

REFUSALS = 3  # in a row undo a write; a node that just came back may refuse what it accepts a moment later
_ABOUT_THE_CALL = (500, 501)  # also the answer to a wrong call, so it says nothing about the upstream


async def _not_persisted() -> None:
    """Without a state file, nothing has to be on disk before an answer."""


@dataclass(slots=True, eq=False, repr=False)
class Outage:
    """Writes that wait for the upstream are in `journal`. `_checks()`: whether Nacos's parameter check applies now.

    Unless `_accept_writes`, the proxy answers only beats of instances that were registered here.
    """

    _catalog: Catalog
    _sender: Sender
    _committer: Committer
    _clock: Clock
    _accept_writes: bool
    _checks: Callable[[], bool]
    journal: Journal = field(default_factory=Journal)
    _persist_journal: Callable[[], Awaitable[None]] = _not_persisted
    _locks: WeakValueDictionary[RegistrationKey, asyncio.Lock] = field(default_factory=lambda: WeakValueDictionary())
    _refusals: dict[RegistrationKey, int] = field(default_factory=lambda: {})
    # instances that readers see as unhealthy because their clients are silent; True: readers no longer see them
    _silent: dict[RegistrationKey, bool] = field(default_factory=lambda: {})
    _next_check: float = -math.inf

    def persist_with(self, persist_journal: Callable[[], Awaitable[None]]) -> None:
        """From now on, answer a write only when `persist_journal` has returned."""
        self._persist_journal = persist_journal

    def lets_pass(self, call: Write[Any]) -> bool:
        """Whether the upstream counts as up, and has all earlier writes about the instance."""
        waits = bool(self.journal) and isinstance(call, LocalWrite) and registration_key(call) in self.journal
        return self._catalog.breaker.up and not waits

    async def before_sending(self, call: Write[Any]) -> Written[Any] | ProxyError | None:
        """The answer in place of the upstream's. None: send the call, as `lets_pass` says."""
        if self.lets_pass(call):
            return None
        if not self._catalog.breaker.up:
            return await self._accept(call)
        if isinstance(call, LocalWrite) and (key := registration_key(call)) in self.journal:
            if isinstance(call, Beat):
                self._catalog.registrations.record_write(call, self._clock.now())
            await self.send_waiting(key)
            if key in self.journal:  # this write must not overtake it
                return await self._accept(call)
        return None

    async def after_failure(self, call: Write[Any], error: ProxyError) -> Written[Any] | ProxyError | None:
        """The answer in place of the upstream's, which failed; None if its error is the answer."""
        if not is_unavailable(error) or is_loop(error):
            return None
        known = self._catalog.registrations.find(*registration_key(call)) if isinstance(call, LocalWrite) else None
        about_the_call = isinstance(error, Refused) and error.status in _ABOUT_THE_CALL
        if not about_the_call or (isinstance(call, Beat) and known is not None):
            if (local := await self._accept(call)) is not None:
                return local
        if isinstance(call, Deregister) and known is not None:
            known.deregistering = True
        return None

    async def _accept(self, call: Write[Any]) -> Written[Any] | ProxyError | None:
        if isinstance(call, Beat) and (answer := self.answer_beat(call)) is not None:
            return answer
        if not self._accept_writes or not isinstance(call, LocalWrite) or not self._acceptable(call):
            return None
        created = _created_by(call)
        try:
            if created is not None and self._checks():
                check_instance(created)
        except BadCall as error:
            return error
        result = BeatResult(interval=beat_interval(created.metadata)) if isinstance(call, Beat) and created else None
        self._journal(call, result)
        await self._persist_journal()
        return Written(result, "local")

    def _journal(self, call: LocalWrite, result: object) -> None:
        self._committer.accepted(call, result, local=True)
        self._silent.pop(registration_key(call), None)
        self._refusals.pop(registration_key(call), None)
        self._next_check = -math.inf
        self.journal.add(call, self._clock.wall())
        Counts.add(self._committer.counts.outage, "accepted")

    def answer_beat(self, beat: Beat) -> Written[BeatResult] | None:
        """The answer to a beat of an instance that is registered here; None for other beats."""
        if (known := self._catalog.registrations.find(beat.service, beat.ip, beat.port)) is None:
            return None
        self._catalog.registrations.record_write(beat, self._clock.now())
        self._committer.counts.local_beats += 1
        self._end_silence(known)
        return Written(BeatResult(interval=beat_interval(known.instance.metadata)), "local")

    def _acceptable(self, call: LocalWrite) -> bool:
        """Whether the call is about an ephemeral instance that is known, or that the call creates or removes."""
        if not self.journal.room:
            return False
        key = registration_key(call)
        known = self._known(key)
        if known is not None and not known.ephemeral:
            return False
        if isinstance(call, Register | Beat):
            created = _created_by(call)
            room = self._catalog.registrations.room or self._catalog.registrations.find(*key) is not None
            return created is not None and created.ephemeral and room
        return call.ephemeral and (known is not None or isinstance(call, Deregister))

    def _known(self, key: RegistrationKey) -> Instance | None:
        registration, entry = self._catalog.registrations.find(*key), self._catalog.cache.get(key[0])
        if registration is not None:
            return registration.instance
        return None if entry is None or entry.visible is None else entry.visible.find(key[1], key[2])

    @property
    def _upstream_away(self) -> bool:
        """Whether the upstream did not answer the last call."""
        return not self._catalog.breaker.up or self._catalog.breaker.failures > 0

    def check_silence(self, now: float) -> None:
        """While the upstream is away, show instances of silent clients as unhealthy, as the upstream would."""
        if not self._upstream_away:
            self._end_all_silence(now)
            return
        if now < self._next_check:
            return
        self._next_check = math.inf
        for registration in self._catalog.registrations:
            if registration.healthy(now):
                self._next_check = min(self._next_check, registration.unhealthy_at)
            elif registration.alive(now):
                self._next_check = min(self._next_check, registration.expires_at)
                self._show_silent(registration, gone=False)
            else:  # the proxy beats for it; all others have been forgotten by now
                self._show_silent(registration, gone=True)

    def expired(self, registration: Registration) -> None:
        """A registration was forgotten because its client fell silent: while the upstream is away, hide it."""
        waited = registration.key in self.journal
        self.journal.expired(registration.key)
        if self._upstream_away:
            self._show_silent(registration, gone=True)
        if waited:
            self._ended(registration.key, "lapsed", still_shown=self._upstream_away)

    def _show_silent(self, registration: Registration, *, gone: bool) -> None:
        key, service, i = registration.key, registration.service, registration.instance
        if self._silent.get(key) is gone:
            return
        self._silent[key] = gone
        deregister = Deregister(service, i.ip, i.port, i.cluster)
        unhealthy = SetHealth(service, i.ip, i.port, i.cluster, False)
        if self._committer.show(deregister if gone else unhealthy, local=True) is not None:
            text = "%s of %s has stopped beating: %s here until the upstream answers again"
            log.info(text, i.address, service, "removed" if gone else "unhealthy")

    def _end_silence(self, registration: Registration) -> None:
        """The client of a registration beats again."""
        gone = self._silent.pop(registration.key, None)
        self._next_check = min(self._next_check, registration.unhealthy_at)
        if gone and self._accept_writes:
            check = registration.check
            self._journal(Register(registration.service, registration.instance), None)
            registration.check = check  # unlike a registration of a client, this one keeps it
        elif gone is not None:
            self._revise(registration.key, lambda p: None if gone or isinstance(p.write, SetHealth) else p)

    def _end_all_silence(self, now: float) -> None:
        """The upstream is back: from now on its lists can end the changes that silence made here."""
        for key in self._silent:
            if key not in self.journal:
                self._revise(key, lambda p: replace(p, since=now))
        self._silent.clear()
        self._next_check = -math.inf

    async def send_waiting(self, key: RegistrationKey) -> bool:
        """Send an instance's waiting writes, in order. False if the upstream does not accept one now."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            while writes := self.journal.of(key):
                if not await self._send(key, writes[0]):
                    return False
        return True

    async def _send(self, key: RegistrationKey, write: LocalWrite) -> bool:
        known = self._catalog.registrations.find(*key)
        if isinstance(write, Register | Beat) and (known is None or not known.healthy(self._clock.now())):
            self.journal.expired(key)
            self._ended(key, "lapsed")
            return True
        try:
            await self._sender.send(cast("Write[Any]", write))
        except Refused as error:
            refusals = self._refusals[key] = self._refusals.get(key, 0) + 1
            if (is_unavailable(error) and error.status not in _ABOUT_THE_CALL) or refusals < REFUSALS:
                return False
            text = "the upstream refuses a write that was accepted during the outage; it is undone: %s of %s: %s"
            log.error(text, write, key[0], error)
            self._undo(key, write)
            return True
        except ProxyError as error:
            log.info("%s %s of %s waits for the upstream: %s", type(write).__name__, key[1], key[0], error)
            return False
        self.journal.done(key, write)
        self._ended(key, "sent")
        return True

    def _undo(self, key: RegistrationKey, write: LocalWrite) -> None:
        self.journal.done(key, write)
        if isinstance(write, Register | Beat):
            self.journal.expired(key)
            # Otherwise reregistration would try again and again.
            if self._catalog.registrations.record_write(Deregister(*key), self._clock.now()):
                self._committer.registrations_changed(key[0])
        self._ended(key, "refused")

    def _ended(self, key: RegistrationKey, outcome: str, *, still_shown: bool = False) -> None:
        """A write no longer waits. If it was sent, the upstream's lists will confirm it; else hide it from readers."""
        self._refusals.pop(key, None)
        Counts.add(self._committer.counts.outage, outcome)
        if still_shown:
            return
        waiting, now = self.journal.of(key), self._clock.now()

        def revised(pending: Pending) -> Pending | None:
            if any(pending.write is write for write in waiting):
                return pending
            return replace(pending, since=now) if outcome == "sent" else None

        self._revise(key, revised)

    def _revise(self, key: RegistrationKey, revised: Callable[[Pending], Pending | None]) -> None:
        def of_this_instance(pending: Pending) -> Pending | None:
            return revised(pending) if pending.address == key[1:] and pending.since == UNSENT else pending

        self._committer.revise(key[0], of_this_instance)

    def restore(self, key: RegistrationKey, waiting: JournalEntry) -> None:
        """Restore the writes that waited when the last process ended, without registrations that have expired."""
        now, age = self._clock.now(), max(0.0, self._clock.wall() - waiting.at)
        self.journal.restore(key, waiting)
        for write in waiting.writes:
            if (created := _created_by(write)) is None:
                self._catalog.registrations.record_write(write, now)
            elif (new := Registration(key[0], created, now - age, registered_at=now - age)).alive(now):
                self._catalog.registrations.restore(new)
            if created is None or self._catalog.registrations.find(*key) is not None:
                self._committer.show(write, local=True)
        self._committer.registrations_changed(key[0])


def _created_by(write: LocalWrite) -> Instance | None:
    """The instance that a write creates if there is none."""
    if isinstance(write, Register):
        return write.instance
    return write.full if isinstance(write, Beat) else None

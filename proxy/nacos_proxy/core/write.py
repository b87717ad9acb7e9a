"""Write: send a call that changes something to the upstream, and show the change to the next read here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from nacos_proxy.core.commit import Catalog, Committer, Counts, Written
from nacos_proxy.core.outage import Outage
from nacos_proxy.core.queries import Queries
from nacos_proxy.core.reregistration import Reregistration
from nacos_proxy.core.send import Sender
from nacos_proxy.model.calls import Beat, Deregister, GetInstance, Register, Write
from nacos_proxy.model.errors import ABSENT, ProxyError, Refused, UpstreamError
from nacos_proxy.runtime import Clock, Deadlines, Supervisor, spawn

R = TypeVar("R")


@dataclass(slots=True, eq=False, repr=False)
class _Caller:
    """Who waits for `answer`. `served`: it has one of this proxy's own, and does not need the upstream's."""

    answer: asyncio.Future[Written[Any]]
    served: bool = False

    def give(self, written: Written[Any]) -> None:
        if not self.answer.done():
            self.answer.set_result(written)

    def fail(self, error: BaseException) -> None:
        if self.answer.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.answer.cancel()
        else:
            self.answer.set_exception(error)


class _Forwarded(NamedTuple):
    """A write on its way to the upstream. Once accepted, readers see it as `shown_as`.

    `registered`: it is a beat of an instance that is registered here.
    """

    call: Write[Any]
    caller: _Caller
    shown_as: Write[Any]
    registered: bool


@dataclass(slots=True, eq=False, repr=False)
class Writer:
    """Sends writes. If the upstream does not answer the beat of a known instance in `_cold_wait` s, the proxy does."""

    _catalog: Catalog
    _sender: Sender
    _queries: Queries
    _outage: Outage
    _reregistration: Reregistration
    _committer: Committer
    _clock: Clock
    _supervisor: Supervisor
    _cold_wait: float
    _late: Deadlines[tuple[Beat, _Caller]] = field(init=False)

    def __post_init__(self) -> None:
        self._late = Deadlines(self._clock, self._cold_wait, self._answer_late)

    async def write(self, call: Write[R]) -> Written[R]:
        """Returns the upstream's answer; the next read here shows the write. A cancelled caller does not stop it."""
        return await self.begin(call)

    def begin(self, call: Write[R]) -> asyncio.Future[Written[R]]:
        """As `write`, without waiting. Cancelling the future does not stop the write."""
        caller = _Caller(asyncio.get_running_loop().create_future())
        if not self._begin_at_once(call, caller):
            spawn(self._run(self._write(call, caller), caller), name="write")
        if isinstance(call, Beat):
            self._late.add(caller.answer, (call, caller))
        return caller.answer

    def _begin_at_once(self, call: Write[Any], caller: _Caller) -> bool:
        """Sends a beat or a registration without a task, unless something has to be awaited before."""
        if not isinstance(call, (Beat, Register)) or not self._outage.lets_pass(call):
            return False
        registered, shown_as = self._is_registered_beat(call), call
        if isinstance(call, Beat) and call.full is not None:
            if not registered:
                return False
            shown_as = replace(call, full=None)
        return self._sender.begin(call, partial(self._answered, _Forwarded(call, caller, shown_as, registered)))

    def _answered(self, forwarded: _Forwarded, result: Any, rest: Awaitable[Any] | None) -> None:
        if rest is not None:
            spawn(self._run(self._outcome(forwarded, rest), forwarded.caller), name="write")
            return
        self._accepted(forwarded, result)
        forwarded.caller.give(Written(result))

    async def _run(self, writing: Awaitable[Written[Any] | ProxyError], caller: _Caller) -> None:
        try:
            written = await writing
        except BaseException as error:
            caller.fail(error)
            raise
        if isinstance(written, ProxyError):
            caller.fail(written)
        else:
            caller.give(written)

    def _answer_late(self, late: tuple[Beat, _Caller]) -> None:
        """The upstream did not answer a beat in time."""
        call, caller = late
        if (local := self._outage.answer_beat(call)) is not None:
            caller.served = True
            caller.give(local)

    async def _write(self, call: Write[Any], caller: _Caller) -> Written[Any] | ProxyError:
        breaker, now = self._catalog.breaker, self._clock.now()
        if (local := await self._outage.before_sending(call)) is None:
            return await self._forward(call, caller)
        # While the upstream is down, this beat also serves as a probe: it may get through where other calls do not.
        if isinstance(call, Beat) and not breaker.up and breaker.allows(now):
            breaker.call_started(now)
            caller.served = True
            self._supervisor.once(self._forward(call, caller), name="beat behind its answer", for_request=True)
        return local

    async def _forward(self, call: Write[Any], caller: _Caller) -> Written[Any] | ProxyError:
        shown_as = call
        if isinstance(call, Beat) and call.full is not None and not await self._beat_registers(call):
            shown_as = replace(call, full=None)
        sending = self._deregister(call) if isinstance(call, Deregister) else self._sender.send(call)
        return await self._outcome(_Forwarded(call, caller, shown_as, self._is_registered_beat(call)), sending)

    async def _deregister(self, call: Deregister) -> None:
        with self._reregistration.deregistering(call):
            await self._sender.send(call)

    async def _outcome(self, forwarded: _Forwarded, sending: Awaitable[Any]) -> Written[Any] | ProxyError:
        call = forwarded.call
        try:
            written: Written[Any] = Written(await sending)
            if isinstance(call, Beat) and (result := await self._reregistration.reregister(call, written.result)):
                written = Written(result, "healed")
        except ProxyError as error:
            Counts.add(self._committer.counts.writes, type(error).__name__)
            if isinstance(error, UpstreamError) and error.arrived:
                self._catalog.cache.invalidate(call.service, self._clock.now())
            return error if forwarded.caller.served else await self._outage.after_failure(call, error) or error
        self._accepted(forwarded, written.result)
        return written

    def _accepted(self, forwarded: _Forwarded, result: Any) -> None:
        Counts.add(self._committer.counts.writes, "ok")
        # A late answer to a beat must not restore an instance that was deregistered meanwhile.
        if not forwarded.registered or self._is_registered_beat(forwarded.call):
            # The upstream has accepted the write, so the caller must not see an exception of this step.
            self._supervisor.call(
                "write", self._committer.accepted, forwarded.call, result, shown_as=forwarded.shown_as
            )

    def _is_registered_beat(self, call: Write[Any]) -> bool:
        registrations = self._catalog.registrations
        return isinstance(call, Beat) and registrations.find(call.service, call.ip, call.port) is not None

    async def close(self) -> None:
        await self._late.close()

    async def _beat_registers(self, beat: Beat) -> bool:
        """Whether a full beat registers its instance: neither the proxy nor the upstream knows it yet."""
        if self._is_registered_beat(beat):
            return False
        try:
            await self._queries.ask(GetInstance(beat.service, beat.ip, beat.port, beat.cluster))
        except ProxyError as error:
            return isinstance(error, Refused) and error.reason in ABSENT
        return False

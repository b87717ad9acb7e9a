"""The only module that reads the time or starts a task. All others get the time, or a `Clock`, as an argument.

Background work runs under a `Supervisor`: an exception is logged and counted, and the work goes on. It belongs to no
client's request (`request_context`), even if a request starts it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from nacos_proxy.model.backoff import Backoff

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.runtime")

_running: set[asyncio.Task[Any]] = set()


class Clock(Protocol):
    """Time for code that may await. Pure code gets `now` as an argument."""

    def now(self) -> float:
        """Seconds of a monotonic clock."""
        ...

    def wall(self) -> float:
        """Seconds since 1970."""
        ...

    async def sleep_until(self, moment: float) -> None:
        """Returns when `now()` has reached `moment`."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.monotonic)  # itself, because a request calls it a dozen times
    wall = staticmethod(time.time)

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))


async def in_turns(items: Sequence[T], max_turn: int) -> AsyncIterator[T]:
    """Yields the items. After every `max_turn` of them, other tasks run, which would otherwise wait too long."""
    for number, item in enumerate(items, 1):
        yield item
        if number % max_turn == 0:
            await asyncio.sleep(0)


STEADY = 60.0  # seconds without a failure after which a loop counts as healthy again
RESTART = Backoff(initial=1.0, maximum=10.0)  # seconds until a failed loop starts again
STOOD_STILL = 1.0  # seconds that a loop's turn may be late; if it is later, this process did not run


def stood_still(due: float, now: float) -> float:
    """Seconds for which this process did not run, given a turn that was `due`; 0 if it did.

    In that time it heard no client, so clients that seem silent may be alive.
    """
    return now - due if now - due > STOOD_STILL else 0.0


async def ticks(clock: Clock, interval: float) -> AsyncIterator[tuple[float, float]]:
    """Every `interval` seconds the time, and for how long this process did not run before (`stood_still`)."""
    due = clock.now()
    while True:
        now = clock.now()
        yield now, stood_still(due, now)
        due = now + interval
        await clock.sleep_until(due)


def spawn(coroutine: Coroutine[Any, Any, Any], *, name: str, for_request: bool = True) -> asyncio.Task[Any]:
    """Start a task, keep a reference to it until it ends, and log its failure with the traceback.

    `for_request`: it works for the client's request that its starter works for, if there is one.
    """
    return _start(coroutine, name, _log_failure, for_request=for_request)


def _start(
    coroutine: Coroutine[Any, Any, T], name: str, ended: Callable[[asyncio.Task[T]], object], *, for_request: bool
) -> asyncio.Task[T]:
    """`ended` must forget the task. It is the only callback, because each costs a turn of its own."""
    create = asyncio.get_running_loop().create_task
    task = create(coroutine, name=name) if for_request else Context().run(create, coroutine, name=name)
    _running.add(task)
    task.add_done_callback(ended)
    return task


def outlive(coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Future[T]:
    """The outcome of a task that goes on if its waiter is cancelled: a `shield` without its callbacks."""
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    spawn(_forward(coroutine, outcome), name=name)
    return outcome


async def at_most(clock: Clock, max_delay: float, done: asyncio.Future[Any]) -> None:
    """Returns when `done` is done, at the latest after `max_delay` seconds. Does not cancel `done`."""
    timer = spawn(clock.sleep_until(clock.now() + max_delay), name="timer")
    try:
        await asyncio.wait({done, timer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()


class Deadlines(Generic[T]):
    """Calls `due(item)` when an item's future is not done `delay` seconds after `add`.

    One task sleeps for all items, because a timer for each would cost more than the rest of a short call.
    """

    def __init__(self, clock: Clock, delay: float, due: Callable[[T], object]) -> None:
        self._clock = clock
        self._delay = delay
        self._due = due
        self._items: deque[tuple[float, asyncio.Future[Any], T]] = deque()  # all have the same delay, so it is sorted
        self._sleeping: asyncio.Task[None] | None = None

    def add(self, done: asyncio.Future[Any], item: T) -> None:
        items = self._items
        while items and items[0][1].done():
            items.popleft()
        items.append((self._clock.now() + self._delay, done, item))
        if self._sleeping is None or self._sleeping.done():
            self._sleeping = spawn(self._run(), name="deadlines", for_request=False)

    async def _run(self) -> None:
        while self._items:
            moment, done, item = self._items[0]
            if done.done():
                self._items.popleft()
            elif moment > self._clock.now():
                await self._clock.sleep_until(moment)
            else:
                self._items.popleft()
                try:
                    self._due(item)
                except Exception:  # the other items wait for their turn
                    log.exception("a deadline failed")

    async def close(self) -> None:
        await stop(self._sleeping)


async def _forward(coroutine: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        result = await coroutine
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    except BaseException as error:
        if not outcome.done():
            outcome.set_exception(error)
        raise
    if not outcome.done():
        outcome.set_result(result)


def _log_failure(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task %s failed: %r", task.get_name(), error, exc_info=error)


@dataclass(slots=True)
class _Failing:
    """The last failure of a name, its time, and the kinds of exceptions that were logged."""

    text: str
    at: float
    logged: set[type[Exception]] = field(default_factory=lambda: set())


class Supervisor:
    """Runs background work and followers, by name. `failures` counts the exceptions of each since the start.

    It logs each kind of exception with its traceback once, until the name has not failed for `STEADY` seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self.failures: Counter[str] = Counter()
        self._clock = clock
        self._failing: dict[str, _Failing] = {}

    @property
    def failing(self) -> Mapping[str, str]:
        """The names that failed within the last `STEADY` seconds, and why."""
        return {name: failing.text for name, failing in self._failing.items()}

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> asyncio.Task[None]:
        """Start a loop. If it fails, it starts again after a pause, until it returns or its task is cancelled."""
        return spawn(self._keep(work, name), name=name, for_request=False)

    def once(self, work: Coroutine[Any, Any, T], *, name: str, for_request: bool = False) -> asyncio.Task[T]:
        """Start work that ends by itself. A failure is counted and logged. `for_request` as in `spawn`."""
        return _start(work, name, self._ended, for_request=for_request)

    def call(self, name: str, function: Callable[..., Any], *args: Any, **more: Any) -> None:
        """Call a follower. Its exception affects neither the caller nor later followers."""
        try:
            function(*args, **more)
        except Exception as error:
            self.failed(name, error)

    def failed(self, name: str, error: Exception) -> None:
        """Count and log a failure."""
        self.failures[name] += 1
        known = self._failing.get(name)
        if known is None:
            known = self._failing[name] = _Failing("", 0.0)
            spawn(self._await_quiet(name, known), name=f"failures of {name}", for_request=False)
        known.text, known.at = f"{type(error).__name__}: {error}", self._clock.now()
        if type(error) not in known.logged:
            known.logged.add(type(error))
            log.error("%s failed and goes on: %r", name, error, exc_info=error)

    async def _await_quiet(self, name: str, failing: _Failing) -> None:
        while (quiet := failing.at + STEADY) > self._clock.now():
            await self._clock.sleep_until(quiet)
        del self._failing[name]
        log.warning("%s has not failed for %.0f s", name, STEADY)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        _running.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.failed(task.get_name(), error)

    async def _keep(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        failures = 0
        while True:
            begun = self._clock.now()
            if await self._succeeds(work(), name):
                return
            now = self._clock.now()
            failures = 0 if now - begun > STEADY else failures
            await self._clock.sleep_until(now + RESTART.delay(failures))
            failures += 1

    async def _succeeds(self, work: Coroutine[Any, Any, None], name: str) -> bool:
        """Whether `work` ended without an exception. If it cancels itself, that is a failure, too."""
        task = _start(work, name, _running.discard, for_request=False)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            await stop(task)
            self._ended(task)
            raise
        error = RuntimeError("cancelled from within") if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.failed(name, error)
        elif error is not None:
            raise error
        return error is None


async def stop(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it has ended; no effect on None or a task that is done."""
    if task is None or task.done():
        return
    task.cancel()
    await asyncio.wait([task])

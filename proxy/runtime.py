"""The one place that reads the time or starts a task. Everything else is told the time, or is handed a `Clock`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger("nacos_proxy.runtime")

_running: set[asyncio.Task[Any]] = set()


class Clock(Protocol):
    """Time for the edges. The pure core gets `now` as an argument."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970."""
        ...

    async def sleep_until(self, moment: float) -> None:
        """Returns when `now()` has reached `moment`, at once if it has passed."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))


STOOD_STILL = 1.0  # seconds that a loop's turn may be late; beyond, this process did not run


def stood_still(due: float, now: float) -> float:
    """For how long this process did not run, by a turn that was `due`: what is silent since may only be unheard."""
    return now - due if now - due > STOOD_STILL else 0.0


def spawn(coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """Start a task that is kept alive until it ends, and whose failure is logged with its cause."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


def outlive(coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Future[T]:
    """What a task gives that goes on where whoever waits for it is cancelled: a `shield` without its callbacks."""
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    spawn(_tell(coroutine, outcome), name=name)
    return outcome


async def _tell(coroutine: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
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


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task %s failed: %r", task.get_name(), error, exc_info=error)


async def stop(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it has ended; harmless for None and for one that is done."""
    if task is None or task.done():
        return
    task.cancel()
    await asyncio.wait([task])

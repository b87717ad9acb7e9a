"""Tasks that are kept and whose failure is told; the machine's clocks."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from proxy.runtime import SystemClock, outlive, spawn, stood_still, stop
from tests.helpers.clock import settle


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_task_that_nobody_holds_lives_until_it_ends() -> None:
    done: list[int] = []
    gate = asyncio.Event()

    async def work() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: gate.set())
        held = weakref.ref(future)
        asyncio.get_running_loop().call_soon(lambda: (gc.collect(), held() and held().set_result(None)))  # type: ignore[union-attr]
        await future
        done.append(1)

    spawn(work(), name="work")
    await gate.wait()
    await settle()
    assert done == [1]


async def test_a_failure_is_logged_with_the_name_of_the_task_and_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    with caplog.at_level(logging.ERROR, "nacos_proxy.runtime"):
        spawn(fail(), name="the failing one")
        await settle()
    (record,) = caplog.records
    assert record.getMessage() == "task the failing one failed: ValueError('outer')"
    assert record.exc_info is not None and isinstance(record.exc_info[1], ValueError)
    assert isinstance(record.exc_info[1].__cause__, KeyError)


async def test_neither_a_result_nor_a_cancellation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def give() -> int:
        return 7

    task, cancelled = spawn(give(), name="give"), spawn(forever(), name="forever")
    await settle()
    cancelled.cancel()
    await settle()
    assert (task.result(), cancelled.cancelled(), caplog.records) == (7, True, [])


async def test_stop_waits_until_the_task_has_cleaned_up() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            await settle()
            steps.append("cleaned up")

    task = spawn(work(), name="work")
    await settle()
    await stop(task)
    assert (steps, task.done()) == (["cleaned up"], True)


async def test_stop_is_harmless_where_there_is_nothing_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    async def give() -> int:
        return 7

    done = spawn(give(), name="give")
    await settle()
    await stop(None)
    await stop(done)
    await stop(done)
    assert (done.result(), caplog.records) == (7, [])


async def test_stop_does_not_raise_what_a_task_fails_with_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        try:
            await forever()
        finally:
            raise OSError("no space left")

    task = spawn(work(), name="work")
    await settle()
    with caplog.at_level(logging.ERROR, "nacos_proxy.runtime"):
        await stop(task)
    assert [r.getMessage() for r in caplog.records] == ["task work failed: OSError('no space left')"]


async def test_what_outlives_its_waiter_gives_its_result_to_one_that_waits_still() -> None:
    gate, done = asyncio.Event(), list[int]()

    async def work() -> int:
        await gate.wait()
        done.append(1)
        return 7

    async def wait() -> int:
        return await outlive(work(), name="work")

    gone, waiting = spawn(wait(), name="gone"), spawn(wait(), name="waiting")
    await settle()
    await stop(gone)
    gate.set()
    assert await waiting == 7
    assert gone.cancelled() and done == [1, 1]


async def test_what_outlives_its_waiter_fails_for_both(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> int:
        raise OSError("no space left")

    with caplog.at_level(logging.ERROR, "nacos_proxy.runtime"), pytest.raises(OSError, match="no space left"):
        await outlive(work(), name="work")
    await settle()
    assert [r.getMessage() for r in caplog.records] == ["task work failed: OSError('no space left')"]


async def test_who_waits_for_a_task_that_is_cancelled_is_cancelled_too() -> None:
    waiting = outlive(forever(), name="forever")
    await settle()
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "forever"]
    await stop(task)
    assert waiting.cancelled()


async def test_a_task_that_never_began_is_stopped_too() -> None:
    task = spawn(forever(), name="forever")
    await stop(task)
    assert task.cancelled()


async def test_the_machines_clock_never_goes_back_and_does_not_sleep_for_what_has_passed() -> None:
    clock = SystemClock()
    before = clock.now()
    await clock.sleep_until(before - 100)
    await clock.sleep_until(before + 0.001)
    assert clock.now() >= before + 0.001
    assert clock.wall() > 1_700_000_000


def test_only_a_turn_that_is_late_by_more_than_a_second_says_that_the_process_stood_still() -> None:
    assert stood_still(10.0, 11.0) == 0.0
    assert stood_still(10.0, 9.0) == 0.0
    assert stood_still(10.0, 12.5) == 2.5

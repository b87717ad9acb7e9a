"""Tasks and their supervision, and the system clock."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import weakref

import pytest

from nacos_proxy.runtime import (
    RESTART,
    STEADY,
    Deadlines,
    Supervisor,
    SystemClock,
    at_most,
    in_turns,
    outlive,
    spawn,
    stood_still,
    stop,
    ticks,
)
from tests.helpers.clock import FakeClock, settle


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_spawn_keeps_a_task_alive_until_it_ends() -> None:
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


async def test_spawn_logs_a_failure_with_the_name_of_the_task_and_its_cause(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_at_most_returns_in_time_and_lets_the_task_go_on() -> None:
    clock, done = FakeClock(), asyncio.get_running_loop().create_future()
    waiting = spawn(at_most(clock, 2.0, done), name="waiting")
    await clock.advance(1.9)
    assert not waiting.done()
    await clock.advance(0.2)
    assert waiting.done() and not done.done()
    done.set_result(None)
    await at_most(clock, 2.0, done)


async def test_deadlines_call_for_what_is_not_done_in_time() -> None:
    clock, due = FakeClock(), list[str]()
    deadlines, loop = Deadlines(clock, 2.0, due.append), asyncio.get_running_loop()
    early, late, later = loop.create_future(), loop.create_future(), loop.create_future()
    deadlines.add(early, "early")
    await clock.advance(0.5)
    deadlines.add(late, "late")
    early.set_result(None)
    await clock.advance(1.9)
    assert due == []
    deadlines.add(later, "later")
    await clock.advance(0.2)
    assert due == ["late"]
    await clock.advance(2.0)
    assert due == ["late", "later"] and clock.next == float("inf"), "nothing sleeps while nothing waits"
    deadlines.add(loop.create_future(), "never")
    await settle()
    await deadlines.close()
    await clock.advance(9.0)
    assert due == ["late", "later"]


async def test_deadlines_call_for_the_others_after_an_exception(caplog: pytest.LogCaptureFixture) -> None:
    clock, due = FakeClock(), list[str]()

    def fall(item: str) -> None:
        due.append(item)
        raise RuntimeError(item)

    deadlines, loop = Deadlines(clock, 2.0, fall), asyncio.get_running_loop()
    for item in "abc":
        deadlines.add(loop.create_future(), item)
    await clock.advance(2.1)
    assert due == ["a", "b", "c"]
    assert caplog.messages == ["a deadline failed"] * 3


async def test_spawn_logs_neither_a_result_nor_a_cancellation(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_stop_has_no_effect_on_none_or_a_task_that_is_done(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_outlive_gives_its_result_to_a_waiter_that_is_left() -> None:
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


async def test_outlive_raises_for_its_waiter_and_logs_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> int:
        raise OSError("no space left")

    with caplog.at_level(logging.ERROR, "nacos_proxy.runtime"), pytest.raises(OSError, match="no space left"):
        await outlive(work(), name="work")
    await settle()
    assert [r.getMessage() for r in caplog.records] == ["task work failed: OSError('no space left')"]


async def test_outlive_cancels_its_waiter_if_the_task_is_cancelled() -> None:
    waiting = outlive(forever(), name="forever")
    await settle()
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "forever"]
    await stop(task)
    assert waiting.cancelled()


async def test_stop_ends_a_task_that_never_began() -> None:
    task = spawn(forever(), name="forever")
    await stop(task)
    assert task.cancelled()


async def test_system_clock_is_monotonic_and_does_not_sleep_until_a_past_moment() -> None:
    clock = SystemClock()
    before = clock.now()
    await clock.sleep_until(before - 100)
    await clock.sleep_until(before + 0.001)
    assert clock.now() >= before + 0.001
    assert clock.wall() > 1_700_000_000


def test_stood_still_is_zero_unless_a_turn_is_more_than_a_second_late() -> None:
    assert stood_still(10.0, 11.0) == 0.0
    assert stood_still(10.0, 9.0) == 0.0
    assert stood_still(10.0, 12.5) == 2.5


async def test_in_turns_lets_other_tasks_run() -> None:
    taken: list[str] = []

    async def others() -> None:
        while len(taken) < 12:
            taken.append("other")
            await asyncio.sleep(0)

    other = spawn(others(), name="others")
    async for item in in_turns(range(7), 3):
        taken.append(str(item))
    await stop(other)
    assert "".join(word[0] for word in taken) == "012o345o6"


# supervision


async def test_keep_restarts_a_loop_that_fails_after_growing_pauses() -> None:
    clock, begun = FakeClock(), list[float]()
    supervisor = Supervisor(clock)

    async def work() -> None:
        begun.append(clock.now() - 1000)
        raise OSError("no space left")

    task = supervisor.keep(work, name="disk")
    await clock.advance(40)
    assert begun == [0, 1, 3, 7, 15, 25, 35]
    assert max(b - a for a, b in itertools.pairwise(begun)) == RESTART.maximum
    assert supervisor.failures == {"disk": 7}
    assert supervisor.failing == {"disk": "OSError: no space left"}
    await stop(task)


async def test_keep_restarts_a_loop_soon_that_ran_well_for_long() -> None:
    clock, begun = FakeClock(), list[float]()

    async def work() -> None:
        begun.append(clock.now() - 1000)
        if len(begun) == 4:
            await clock.sleep_until(clock.now() + STEADY + 1)
        raise OSError("no space left")

    task = Supervisor(clock).keep(work, name="disk")
    await clock.advance(70)
    assert begun == [0, 1, 3, 7, 69]
    await stop(task)


async def test_keep_restarts_a_loop_that_is_cancelled_from_within() -> None:
    clock, begun = FakeClock(), list[float]()
    supervisor = Supervisor(clock)

    async def work() -> None:
        begun.append(clock.now())
        cancelled = spawn(forever(), name="what it waits for")
        await settle(1)
        cancelled.cancel()
        await cancelled

    task = supervisor.keep(work, name="poller")
    await clock.advance(2)
    assert len(begun) == 2
    assert supervisor.failing == {"poller": "RuntimeError: cancelled from within"}
    await stop(task)
    assert task.cancelled()


async def test_keep_ends_when_the_loop_returns_or_is_stopped() -> None:
    clock, ended = FakeClock(), list[str]()
    supervisor = Supervisor(clock)

    async def give() -> None:
        ended.append("returned")

    async def wait() -> None:
        try:
            await forever()
        finally:
            ended.append("stopped")

    done, waiting = supervisor.keep(give, name="give"), supervisor.keep(wait, name="wait")
    await settle()
    assert done.done()
    await stop(waiting)
    assert (ended, supervisor.failures) == (["returned", "stopped"], {})


async def test_failed_logs_each_kind_once_until_the_name_was_quiet(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    supervisor = Supervisor(clock)

    def fail(error: Exception) -> None:
        raise error

    with caplog.at_level(logging.WARNING, "nacos_proxy.runtime"):
        for _ in range(3):
            supervisor.call("events", fail, KeyError("a"))
            supervisor.call("events", fail, ValueError("b"))
        assert [r.getMessage() for r in caplog.records] == [
            "events failed and goes on: KeyError('a')",
            "events failed and goes on: ValueError('b')",
        ]
        assert all(r.exc_info is not None for r in caplog.records)
        await clock.advance(STEADY - 1)
        supervisor.call("events", fail, KeyError("a"))
        await clock.advance(STEADY - 1)
        assert supervisor.failing == {"events": "KeyError: 'a'"}
        await clock.advance(1)
        assert supervisor.failing == {}
        assert caplog.records[-1].getMessage() == "events has not failed for 60 s"
        supervisor.call("events", fail, KeyError("a"))
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR", "WARNING", "ERROR"]
    assert supervisor.failures == {"events": 8}


async def test_once_affects_nobody_else_if_its_work_fails(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(FakeClock())

    async def fail() -> None:
        raise OSError("no space left")

    with caplog.at_level(logging.ERROR, "nacos_proxy.runtime"):
        tasks = [supervisor.once(fail(), name="fetch") for _ in range(3)]
        await settle()
    assert all(task.done() for task in tasks)
    assert len(caplog.records) == 1 and supervisor.failures == {"fetch": 3}


async def test_ticks_begin_at_once_and_say_for_how_long_the_process_did_not_run() -> None:
    clock = FakeClock()
    begin, seen = clock.now(), list[tuple[float, float]]()

    async def turns() -> None:
        async for now, gap in ticks(clock, 0.5):
            seen.append((now - begin, gap))

    task = spawn(turns(), name="turns")
    await clock.advance(0.5)
    clock.jump(10.5)
    await clock.advance(0)
    await stop(task)
    assert seen == [(0.0, 0.0), (0.5, 0.0), (11.0, 10.0)]

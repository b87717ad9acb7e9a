"""`Pushes`: turns, acknowledgements, repeats."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nacos_proxy.frontends.grpc.pushes import PreparedMessages, Pushes, PushesPolicy
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Supervisor
from nacos_proxy.wire.nacos.base import ReadService
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle

READ = ReadService(KEY)


@dataclass(eq=False)
class Reader:
    """A `Subscriber`. It lists whether each push was under a new id; `takes`: whether it is sent."""

    got: list[bool] = field(default_factory=list)
    takes: bool = True

    def push(self, *, anew: bool) -> bool:
        if self.takes:
            self.got.append(anew)
        return self.takes


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pushes(clock: FakeClock) -> Pushes:
    return Pushes(Supervisor(clock), clock.now, PushesPolicy(turn=10))


async def moved(pushes: Pushes, clock: FakeClock, seconds: float) -> None:
    clock.jump(seconds)
    pushes.tick()
    await settle()


async def test_add_pushes_once_however_often_it_is_called(pushes: Pushes) -> None:
    reader = Reader()
    for _ in range(3):
        pushes.add(reader)
    await settle()
    assert (reader.got, pushes.counts["sent"]) == ([False], 1)
    pushes.add(reader)
    await settle()
    assert reader.got == [False, False]


async def test_acknowledged_keeps_the_place_in_the_queue_that_a_later_change_has(pushes: Pushes) -> None:
    reader = Reader()
    pushes.add(reader)
    await settle()
    pushes.add(reader)
    pushes.acknowledged(reader)  # of the first push; the second change is not sent yet
    await settle()
    assert reader.got == [False, False]


async def test_add_lets_other_tasks_run_between_turns(pushes: Pushes) -> None:
    readers = [Reader() for _ in range(35)]
    for reader in readers:
        pushes.add(reader)
    sent: list[int] = []
    while len(readers) > sum(len(reader.got) for reader in readers):
        await settle(1)
        sent.append(sum(len(reader.got) for reader in readers))
    assert sent == [10, 20, 30, 35]


async def test_an_exception_of_one_subscriber_harms_no_other(pushes: Pushes, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Reader):
        def push(self, *, anew: bool) -> bool:
            raise KeyError(anew)

    reader = Reader()
    pushes.add(Broken())
    pushes.add(reader)
    await settle()
    assert reader.got == [False] and "pushes failed" in caplog.text


async def test_tick_repeats_what_was_not_acknowledged(pushes: Pushes, clock: FakeClock) -> None:
    silent, alive, slow = Reader(), Reader(), Reader(takes=False)
    for reader in (silent, alive, slow):
        pushes.add(reader)
    await settle()
    pushes.forget(alive)
    await moved(pushes, clock, 4.9)
    assert pushes.counts["late"] == 0
    await moved(pushes, clock, 0.2)
    assert (pushes.counts["late"], silent.got) == (1, [False])
    await moved(pushes, clock, 1.0)
    assert (silent.got, alive.got, slow.got) == ([False, True], [False], [])
    for _ in range(12):
        await moved(pushes, clock, 1.0)
    assert silent.got == [False, True, True, True]


async def test_tick_lets_other_tasks_run_between_repeats(pushes: Pushes, clock: FakeClock) -> None:
    readers = [Reader() for _ in range(35)]
    for reader in readers:
        pushes.add(reader)
    await settle()
    await moved(pushes, clock, 5.0)
    clock.jump(1.0)
    pushes.tick()
    assert not any(True in reader.got for reader in readers)
    await settle()
    assert all(reader.got == [False, True] for reader in readers)


async def test_tick_does_not_repeat_a_subscriber_that_has_ended(pushes: Pushes, clock: FakeClock) -> None:
    reader = Reader()
    pushes.add(reader)
    await settle()
    await moved(pushes, clock, 5.0)
    pushes.forget(reader)
    await moved(pushes, clock, 5.0)
    assert reader.got == [False]


async def test_a_change_meanwhile_replaces_the_repeat(pushes: Pushes, clock: FakeClock) -> None:
    reader = Reader()
    pushes.add(reader)
    await settle()
    await moved(pushes, clock, 5.0)
    pushes.add(reader)
    await settle()
    await moved(pushes, clock, 1.0)
    assert reader.got == [False, False]


async def test_shift_forgives_the_time_in_which_the_process_stood_still(pushes: Pushes, clock: FakeClock) -> None:
    reader = Reader()
    pushes.add(reader)
    await settle()
    clock.jump(60)
    pushes.shift(60)
    pushes.tick()
    assert pushes.counts["late"] == 0
    await moved(pushes, clock, 5.0)
    assert pushes.counts["late"] == 1


# --- prepared messages -----------------------------------------------------------------------------------------------


def test_push_is_encoded_once_for_all_sessions_that_show_the_same() -> None:
    prepared, now = PreparedMessages(1 << 20), snapshot(instance())
    first = prepared.push(READ, now)
    assert prepared.push(READ, now)[1] is first[1]
    assert prepared.push(ReadService(KEY, "c"), now)[0] != first[0]
    later = prepared.push(READ, snapshot(instance(), instance("10.0.0.2")))
    assert later[0] != first[0] and b"10.0.0.2" in later[1]
    back = prepared.push(READ, now)
    assert back[0] not in (first[0], later[0])
    again = prepared.push(READ, now, other_than=back[0])
    assert again[0] != back[0]
    assert prepared.push(READ, now, other_than=back[0])[1] is again[1], "a repeat is encoded once, too"


def test_prepared_messages_are_bounded_in_bytes() -> None:
    prepared = PreparedMessages(20_000)
    lists: list[Snapshot] = [snapshot(instance(), service=key(f"s{n}")) for n in range(100)]
    ids = [prepared.push(ReadService(one.key), one)[0] for one in lists]
    assert prepared.push(ReadService(lists[-1].key), lists[-1])[0] == ids[-1]
    assert prepared.push(ReadService(lists[0].key), lists[0])[0] != ids[0]
    large = ReadService(KEY, "c" * 30_000)
    assert prepared.push(large, lists[0])[0] != prepared.push(large, lists[0])[0], "too large to be kept"


def test_answer_is_written_once_for_each_snapshot() -> None:
    prepared, first, later = PreparedMessages(1 << 20), snapshot(instance()), snapshot()
    texts = iter([b"one", b"two"])
    answers = [prepared.answer(READ, it, lambda: next(texts)) for it in (first, first, later, later)]
    assert answers == [b"one", b"one", b"two", b"two"]

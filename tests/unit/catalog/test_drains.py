"""The states of a drain, and how many are remembered."""

from __future__ import annotations

from nacos_proxy.catalog.drains import HELD_FOR, Drain, Drains
from tests.helpers.build import KEY, instance


def drain(number: int = 1, until: float = 20.0) -> Drain:
    return Drain(KEY, instance(f"10.0.0.{number}"), 20.0, until)


def test_drain_state_follows_from_its_times() -> None:
    one = drain()
    assert [one.state(now) for now in (0.0, 19.9, 20.0)] == ["draining", "draining", "deregistering"]
    one.ended_at = 20.5
    assert one.state(21.0) == "drained"


def test_drains_find_one_until_its_heartbeats_count_again() -> None:
    drains, one = Drains(), drain()
    drains.add(one, 0.0)
    assert drains.find(one.key, 1e6) is one, "it has not ended"
    one.ended_at = 20.0
    assert drains.find(one.key, 20.0 + HELD_FOR - 1) is one
    assert drains.find(one.key, 20.0 + HELD_FOR) is None


def test_drains_remove_only_the_one_that_is_current() -> None:
    drains, first, second = Drains(), drain(), drain()
    drains.add(first, 0.0)
    drains.add(second, 0.0)
    drains.remove(first)
    assert [*drains] == [second] and len(drains) == 1
    drains.changed = False
    drains.remove(first)
    assert not drains.changed


def test_drains_have_room_for_so_many_that_have_not_ended() -> None:
    drains = Drains(2)
    for number in range(2):
        assert drains.room
        drains.add(drain(number), 0.0)
    assert not drains.room
    next(iter(drains)).ended_at = 1.0
    assert drains.room


def test_drains_forget_what_ended_long_ago_and_first_if_there_are_too_many() -> None:
    drains = Drains(2)
    for number in range(5):
        one = drain(number)
        drains.add(one, 0.0)
        one.ended_at = float(number)
    drains.add(drain(9), 10.0)
    assert [one.instance.ip[-1] for one in drains] == ["3", "4", "9"]
    drains.add(drain(8), 5.0 + HELD_FOR)
    assert [one.instance.ip[-1] for one in drains] == ["9", "8"]

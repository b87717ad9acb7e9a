"""Whoever has how much due, each client has its turn, and each lane of it."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.turns import Lane, Turns
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import key

# Of each client: how many wait in each of its lanes.
WAITING = st.dictionaries(
    st.sampled_from("abcde"), st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=5
)


def filled(waiting: dict[str, list[int]]) -> Turns[ServiceKey]:
    turns, number = Turns[ServiceKey](), 0
    for client, lanes in waiting.items():
        for lane, size in enumerate(lanes):
            for _ in range(size):
                turns.put(key(f"s{number}"), number, [(client, lane)])
                number += 1
    return turns


def taken(turns: Turns[ServiceKey], most: int = 10_000) -> list[tuple[int, Lane]]:
    found: list[tuple[int, Lane]] = []
    while len(found) < most and (turn := turns.take()) is not None:
        found.append((int(turn[0].name[1:]), turn[1]))
    return found


@given(WAITING)
def test_while_all_wait_clients_and_their_lanes_have_equal_shares(waiting: dict[str, list[int]]) -> None:
    order = taken(filled(waiting))
    assert len(order) == sum(map(sum, waiting.values()))
    clients, lanes, left = Counter[object](), Counter[Lane](), {c: list(sizes) for c, sizes in waiting.items()}
    for _, (client, lane) in order:
        clients[client] += 1
        lanes[client, lane] += 1
        left[client][lane] -= 1
        if all(any(sizes) for sizes in left.values()):
            assert max(clients.values()) - min(clients[c] for c in waiting) <= 1
        if all(left[client]):
            shares = [lanes[client, n] for n in range(len(waiting[client]))]
            assert max(shares) - min(shares) <= 1


@given(WAITING)
def test_a_lane_keeps_its_order(waiting: dict[str, list[int]]) -> None:
    order = taken(filled(waiting))
    for client, lanes in waiting.items():
        for lane in range(len(lanes)):
            numbers = [number for number, at in order if at == (client, lane)]
            assert numbers == sorted(numbers)


@given(WAITING, st.integers(0, 100))
def test_who_comes_late_waits_for_one_turn_of_each_client_and_of_each_lane_of_its_own(
    waiting: dict[str, list[int]], before: int
) -> None:
    turns = filled(waiting)
    taken(turns, before)
    turns.put(key("s9999"), 0, [("new", 0)])
    turns.put(key("s9998"), 0, [("a", "new")])
    order = [number for number, _ in taken(turns)]
    assert order.index(9999) <= len(waiting) + 1
    assert order.index(9998) <= (len(waiting) + 1) * (len(waiting.get("a", [])) + 1)


@given(WAITING)
def test_a_service_of_several_waits_where_it_waits_least(waiting: dict[str, list[int]]) -> None:
    turns = filled(waiting)
    lanes: list[Lane] = [(client, lane) for client, sizes in waiting.items() for lane in range(len(sizes))]
    turns.put(key("s9999"), 0, [*lanes, ("idle", 0)])
    assert next(lane for number, lane in taken(turns) if number == 9999) == ("idle", 0)


@given(WAITING, st.sets(st.integers(0, 200)))
def test_what_was_dropped_or_put_twice_leaves_no_trace(waiting: dict[str, list[int]], dropped: set[int]) -> None:
    turns = filled(waiting)
    everything = range(len(turns))
    for number in dropped:
        turns.drop(key(f"s{number}"))
    for number in everything:
        if number not in dropped:
            turns.put(key(f"s{number}"), 0, [("other", 0)])
    assert len(turns) == len(set(everything) - dropped)
    assert sorted(number for number, _ in taken(turns)) == sorted(set(everything) - dropped)
    assert (len(turns), turns.take(), turns.oldest(but=None)) == (0, None, math.inf)


def test_oldest_ignores_the_excluded_lane() -> None:
    turns = Turns[ServiceKey]()
    turns.put(key("a"), 3, [("x", "unlikely")])
    turns.put(key("b"), 5, [("x", 1)])
    turns.put(key("c"), 4, [("y", 1)])
    assert turns.oldest(but="unlikely") == 4
    assert turns.oldest(but=None) == 3


def test_who_comes_to_what_waits_adds_a_lane_and_takes_no_place_away() -> None:
    turns = Turns[ServiceKey]()
    for number in range(5):
        turns.put(key(f"s{number}"), number, [("a", 0)])
    for stream in range(20):  # again and again
        assert turns.join(key("s4"), ("b", stream))
    assert not turns.join(key("none"), ("b", 0))
    order = taken(turns)
    assert [number for number, _ in order] == [0, 4, 1, 2, 3] and len(turns) == 0
    turns.put(key("s0"), 0, [("a", 0)])
    turns.join(key("s0"), ("b", 0))
    turns.drop(key("s0"))
    assert (turns.take(), turns.oldest(0)) == (None, math.inf)


def test_a_listener_that_comes_and_goes_keeps_nobody_from_a_turn() -> None:
    turns, asked = Turns[ServiceKey](), 0
    for client in range(50):
        for number in range(4):
            turns.put(key(f"s{client}-{number}"), 0, [(f"c{client}", 0)])
    turns.put(key("x"), 0, [("victim", 0)])
    for stream in range(60):
        turns.join(key("x"), ("attacker", stream))
        turn = turns.take()
        asked += turn is not None and turn[0] == key("x")
    assert asked == 1

"""Clients take turns, and so do the lanes of a client, however much is due for one of them."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.fair_queue import FairQueue, Lane
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import key

# Of each client: how many wait in each of its lanes.
WAITING = st.dictionaries(
    st.sampled_from("abcde"), st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=5
)


def filled(waiting: dict[str, list[int]]) -> FairQueue[ServiceKey]:
    queue, number = FairQueue[ServiceKey](), 0
    for client, lanes in waiting.items():
        for lane, size in enumerate(lanes):
            for _ in range(size):
                queue.put(key(f"s{number}"), number, [(client, lane)])
                number += 1
    return queue


def taken(queue: FairQueue[ServiceKey], limit: int = 10_000) -> list[tuple[int, Lane]]:
    found: list[tuple[int, Lane]] = []
    while len(found) < limit and (turn := queue.take()) is not None:
        found.append((int(turn[0].name[1:]), turn[1]))
    return found


@given(WAITING)
def test_fair_queue_gives_clients_and_their_lanes_equal_shares(waiting: dict[str, list[int]]) -> None:
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
def test_fair_queue_take_keeps_the_order_within_a_lane(waiting: dict[str, list[int]]) -> None:
    order = taken(filled(waiting))
    for client, lanes in waiting.items():
        for lane in range(len(lanes)):
            numbers = [number for number, at in order if at == (client, lane)]
            assert numbers == sorted(numbers)


@given(WAITING, st.integers(0, 100))
def test_fair_queue_put_late_waits_for_one_turn_of_each_client_and_each_own_lane(
    waiting: dict[str, list[int]], before: int
) -> None:
    queue = filled(waiting)
    taken(queue, before)
    queue.put(key("s9999"), 0, [("new", 0)])
    queue.put(key("s9998"), 0, [("a", "new")])
    order = [number for number, _ in taken(queue)]
    assert order.index(9999) <= len(waiting) + 1
    assert order.index(9998) <= (len(waiting) + 1) * (len(waiting.get("a", [])) + 1)


@given(WAITING)
def test_fair_queue_put_chooses_the_emptiest_lane(waiting: dict[str, list[int]]) -> None:
    queue = filled(waiting)
    lanes: list[Lane] = [(client, lane) for client, sizes in waiting.items() for lane in range(len(sizes))]
    queue.put(key("s9999"), 0, [*lanes, ("idle", 0)])
    assert next(lane for number, lane in taken(queue) if number == 9999) == ("idle", 0)


@given(WAITING)
def test_fair_queue_put_ignores_what_waits_already(waiting: dict[str, list[int]]) -> None:
    queue = filled(waiting)
    everything = range(len(queue))
    for number in everything:
        queue.put(key(f"s{number}"), 0, [("other", 0)])
    assert len(queue) == len(everything)
    assert sorted(number for number, _ in taken(queue)) == list(everything)
    assert (len(queue), queue.take(), queue.oldest(but=None)) == (0, None, math.inf)


def test_fair_queue_oldest_ignores_the_excluded_lane() -> None:
    queue = FairQueue[ServiceKey]()
    queue.put(key("a"), 3, [("x", "unlikely")])
    queue.put(key("b"), 5, [("x", 1)])
    queue.put(key("c"), 4, [("y", 1)])
    assert queue.oldest(but="unlikely") == 4
    assert queue.oldest(but=None) == 3


def test_fair_queue_add_lane_keeps_the_place_in_the_other_lanes() -> None:
    queue = FairQueue[ServiceKey]()
    for number in range(5):
        queue.put(key(f"s{number}"), number, [("a", 0)])
    for stream in range(20):  # again and again
        assert queue.add_lane(key("s4"), ("b", stream))
    assert not queue.add_lane(key("none"), ("b", 0))
    order = taken(queue)
    assert [number for number, _ in order] == [0, 4, 1, 2, 3] and len(queue) == 0
    queue.put(key("s0"), 0, [("a", 0)])
    queue.add_lane(key("s0"), ("b", 0))
    assert queue.take() is not None
    assert (queue.take(), queue.oldest(0)) == (None, math.inf)


def test_fair_queue_add_lane_by_a_changing_listener_delays_nobody() -> None:
    queue, asked = FairQueue[ServiceKey](), 0
    for client in range(50):
        for number in range(4):
            queue.put(key(f"s{client}-{number}"), 0, [(f"c{client}", 0)])
    queue.put(key("x"), 0, [("victim", 0)])
    for stream in range(60):
        queue.add_lane(key("x"), ("attacker", stream))
        turn = queue.take()
        asked += turn is not None and turn[0] == key("x")
    assert asked == 1

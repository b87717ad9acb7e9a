"""Shares of what is bounded: whoever comes finds room, whatever a few others hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.shares import Shares


@given(st.integers(1, 10_000), st.integers(1, 14))
def test_who_takes_all_that_it_may_leaves_half_of_the_rest(most: int, clients: int) -> None:
    shares = Shares[int](most)
    for client in range(clients):
        free = most - shares.total
        while shares.room(client):
            shares.take(client, max(1, (most - shares.total - shares.held(client)) // 2))  # in steps, for speed
        assert shares.held(client) == (free + 1) // 2
    assert shares.total <= most
    assert all(shares.held(client) >= 1 for client in range(clients) if 2**client <= most)


@given(st.integers(1, 1_000), st.integers(1, 20))
def test_where_all_take_in_turn_each_has_as_much_as_is_left(most: int, clients: int) -> None:
    shares = Shares[int](most)
    while any(map(shares.room, range(clients))):
        for client in range(clients):
            if shares.room(client):
                shares.take(client)
    held = [shares.held(client) for client in range(clients)]
    assert sum(held) == shares.total <= most
    assert max(held) - min(held) <= 1
    assert abs(max(held) - most / (clients + 1)) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=30))
def test_what_is_given_back_is_free_again_and_who_has_nothing_is_forgotten(taken: list[tuple[str, int]]) -> None:
    shares, own = Shares[str](100), list[tuple[str, int]]()
    for who, units in taken:
        if shares.room(who, units):
            shares.take(who, units)
            own.append((who, units))
        assert shares.total <= 100
    for who, units in own:
        shares.give_back(who, units)
    assert [shares.held(who) for who in "abc"] == [0, 0, 0]
    assert repr(shares) == "<Shares 0 of 100, held by 0>"


def test_those_who_hold_already_count() -> None:
    shares = Shares(5, ("a", "a", "b"))
    assert (shares.total, shares.held("a"), shares.held("b")) == (3, 2, 1)
    assert [shares.room(who) for who in "abc"] == [False, True, True]

"""Shares of a bounded resource: there is room for one more holder, whatever a few others hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.shares import Shares


@given(st.integers(1, 10_000), st.integers(1, 14))
def test_shares_let_one_holder_take_half_of_what_is_free(capacity: int, clients: int) -> None:
    shares = Shares[int](capacity)
    for client in range(clients):
        free = capacity - shares.total
        while shares.room(client):
            shares.take(client, max(1, (capacity - shares.total - shares.held(client)) // 2))  # in steps, for speed
        assert shares.held(client) == (free + 1) // 2
    assert shares.total <= capacity
    assert all(shares.held(client) >= 1 for client in range(clients) if 2**client <= capacity)


@given(st.integers(1, 1_000), st.integers(1, 20))
def test_shares_are_equal_if_holders_take_turns(capacity: int, clients: int) -> None:
    shares = Shares[int](capacity)
    while any(map(shares.room, range(clients))):
        for client in range(clients):
            if shares.room(client):
                shares.take(client)
    held = [shares.held(client) for client in range(clients)]
    assert sum(held) == shares.total <= capacity
    assert max(held) - min(held) <= 1
    assert abs(max(held) - capacity / (clients + 1)) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=30))
def test_shares_give_back_frees_units_and_forgets_holders_without_any(taken: list[tuple[str, int]]) -> None:
    shares, own = Shares[str](100), list[tuple[str, int]]()
    for who, units in taken:
        if shares.room(who, units):
            shares.take(who, units)
            own.append((who, units))
        assert shares.total <= 100
    for who, units in own:
        shares.give_back(who, units)
    assert [shares.held(who) for who in "abc"] == [0, 0, 0]
    assert repr(shares) == "<Shares 0 of 100, 0 holders>"


def test_shares_count_the_initial_holders() -> None:
    shares = Shares(5, ("a", "a", "b"))
    assert (shares.total, shares.held("a"), shares.held("b")) == (3, 2, 1)
    assert [shares.room(who) for who in "abc"] == [False, True, True]

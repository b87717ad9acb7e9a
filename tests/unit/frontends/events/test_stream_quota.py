"""`StreamQuota`: its bounds, and that every place taken is freed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.frontends.events.stream_quota import StreamQuota, StreamQuotaPolicy
from nacos_proxy.model.errors import BadCall
from tests.helpers.build import key

POLICY = StreamQuotaPolicy(max_streams=4, streams_per_client=3, services_per_client=5)
_takes = st.tuples(st.sampled_from("abc"), st.frozensets(st.integers(0, 9).map(lambda n: key(f"s{n}")), max_size=4))


@given(st.lists(st.one_of(_takes, st.integers(0, 20))))
def test_take_never_exceeds_a_bound_and_leave_frees_it(steps: list[object]) -> None:
    """In `steps` a tuple takes a place; a number frees one of those taken."""
    seats, taken = StreamQuota(POLICY), []
    for step in steps:
        if isinstance(step, tuple):
            client, keys = step
            named = set().union(keys, *(k for c, k in taken if c == client))
            fits = len(taken) < 4 and Counter(c for c, _ in taken)[client] < 3 and len(named) <= 5
            try:
                seats.take(client, keys)
                taken.append((client, keys))
                assert fits
            except BadCall as error:
                assert not fits and error.status == 429
        elif taken and isinstance(step, int):
            seats.leave(*taken.pop(step % len(taken)))
        assert (seats.open, seats.clients) == (len(taken), dict(Counter(c for c, _ in taken)))
    for seat in taken:
        seats.leave(*seat)
    assert (seats.open, seats.clients, seats._services) == (0, {}, {})


def test_take_names_the_exceeded_bound_and_counts_the_refusal() -> None:
    seats = StreamQuota(StreamQuotaPolicy(max_streams=2, streams_per_client=1, services_per_client=1))
    with pytest.raises(BadCall, match="this client may have at most 1 watched services"):
        seats.take("a", {key("x"), key("y")})
    seats.take("a", {key("x")})
    with pytest.raises(BadCall, match="this client may have at most 1 open streams"):
        seats.take("a", {key("x")})
    seats.take("b", {key("x")})
    with pytest.raises(BadCall, match="the proxy may have at most 2 open streams"):
        seats.take("c", set())
    assert seats.refused == 3
    assert repr(seats) == "<StreamQuota 2 open by 2 clients>"

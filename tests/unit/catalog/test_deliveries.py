"""What waits for a webhook: at most one delivery per service, and always the newest state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.deliveries import Deliveries, Delivery, verdict
from nacos_proxy.model.services import Change, ServiceKey, Snapshot
from tests.helpers.build import instance, key, snapshot

EMPTY, A, B = snapshot(), snapshot(instance(port=1)), snapshot(instance(port=2))


def change(before: Snapshot, after: Snapshot) -> Change:
    return Change(before, after, "poll")


@pytest.mark.parametrize(
    ("status", "means"),
    [
        (200, "delivered"),
        (204, "delivered"),
        (301, "refused"),
        (400, "refused"),
        (404, "refused"),
        (408, "failed"),
        (410, "gone"),
        (429, "failed"),
        (500, "failed"),
        (503, "failed"),
    ],
)
def test_verdict(status: int, means: str) -> None:
    assert verdict(status) == means


def test_put_joins_changes_of_a_service_and_keeps_its_place() -> None:
    waiting, other = Deliveries(), snapshot(service=key("other"))
    waiting.put(Delivery(change(EMPTY, A), "e-1"))
    waiting.put(Delivery(other, "e-2"))
    waiting.put(Delivery(change(A, B), "e-3"))
    assert len(waiting) == 2
    assert waiting.take() == Delivery(change(EMPTY, B), "e-3")
    assert waiting.take() == Delivery(other, "e-2")
    assert waiting.take() is None


def test_put_after_a_snapshot_is_a_newer_snapshot() -> None:
    waiting = Deliveries()
    waiting.put(Delivery(A, "e-1"))
    waiting.put(Delivery(change(A, B), "e-2"))
    assert waiting.take() == Delivery(B, "e-2")


def test_put_of_what_undoes_a_change_leaves_nothing_unless_it_may_have_arrived() -> None:
    waiting = Deliveries()
    waiting.put(Delivery(change(A, B), "e-1"))
    waiting.put(Delivery(change(B, A), "e-2"))
    assert len(waiting) == 0
    waiting.put_back(Delivery(change(A, B), "e-3"))
    waiting.put(Delivery(change(B, A), "e-4"))
    assert waiting.take() == Delivery(A, "e-4", tried=True)


def test_put_back_joins_what_came_meanwhile_and_lets_others_go_first() -> None:
    waiting, other = Deliveries(), snapshot(service=key("other"))
    waiting.put(Delivery(change(A, B), "e-2"))
    waiting.put(Delivery(other, "e-3"))
    waiting.put_back(Delivery(change(EMPTY, A), "e-1"))
    assert waiting.take() == Delivery(other, "e-3")
    assert waiting.take() == Delivery(change(EMPTY, B), "e-2", tried=True)


SERVICES = [key("a"), key("b")]
STEPS = st.lists(
    st.tuples(st.sampled_from(SERVICES), st.integers(0, 2))
    | st.sampled_from(["arrives", "is lost", "arrives, and its answer is lost"]),
    max_size=60,
)


@given(STEPS)
def test_receiver_has_the_newest_state_in_the_end(steps: list[tuple[ServiceKey, int] | str]) -> None:
    waiting, told = Deliveries(), dict[ServiceKey, Snapshot]()
    now = {service: snapshot(service=service) for service in SERVICES}
    for service in SERVICES:
        waiting.put(Delivery(now[service], "e-0"))

    def attempt(outcome: str) -> None:
        if (taken := waiting.take()) is None:
            return
        if outcome != "is lost":
            told[taken.key] = taken.body.after if isinstance(taken.body, Change) else taken.body
        if outcome != "arrives":
            waiting.put_back(taken)

    for number, step in enumerate(steps):
        if isinstance(step, str):
            attempt(step)
            continue
        service, port = step
        after = snapshot(*(instance(port=port) for _ in range(bool(port))), service=service)
        if after != now[service]:
            waiting.put(Delivery(Change(now[service], after, "poll"), f"e-{number}"))
            now[service] = after
        assert len(waiting) <= len(SERVICES)
    while len(waiting):
        attempt("arrives")
    assert told == now

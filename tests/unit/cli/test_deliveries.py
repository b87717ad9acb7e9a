"""One delivery at a time for each service, always of the newest state, with the changes since the last one."""

from __future__ import annotations

import itertools
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.cli.deliveries import Deliveries
from nacos_proxy.cli.follow import Event
from nacos_proxy.model.backoff import Backoff

_ids = itertools.count(1)


def host(ip: str, weight: float = 1.0) -> dict[str, Any]:
    return {"ip": ip, "port": 80, "clusterName": "DEFAULT", "weight": weight}


def snapshot(*hosts: Any, name: str = "g@@orders", **more: Any) -> Event:
    return Event(f"e-{next(_ids)}", "snapshot", {"name": name, "namespaceId": "public", "hosts": [*hosts], **more})


def change(*hosts: Any, name: str = "g@@orders", **changes: Any) -> Event:
    whole = {"added": [], "modified": [], "removed": [], **changes, "source": "push"}
    return Event(f"e-{next(_ids)}", "change", {**snapshot(*hosts, name=name).data, **whole})


A, B, C = host("10.0.0.1"), host("10.0.0.2"), host("10.0.0.3")


def delivered(deliveries: Deliveries, *, success: bool = True, now: float = 0.0) -> Event:
    (event,) = deliveries.take(now, 9)
    deliveries.done(event, success, now)
    return event


def test_deliveries_give_the_snapshot_first_and_then_each_change_as_it_came() -> None:
    deliveries, first, second = Deliveries(), snapshot(A), change(A, B, added=[B])
    deliveries.add(first)
    assert delivered(deliveries) == first
    deliveries.add(second)
    assert delivered(deliveries) == second
    assert deliveries.take(0.0, 9) == []


def test_deliveries_merge_what_comes_during_a_run() -> None:
    deliveries = Deliveries()
    deliveries.add(snapshot(A, B))
    (first,) = deliveries.take(0.0, 9)
    heavier = host("10.0.0.1", 5.0)
    deliveries.add(change(A, B, C, added=[C]))
    deliveries.add(last := change(heavier, C, modified=[heavier], removed=[B]))
    assert deliveries.take(0.0, 9) == []
    deliveries.done(first, True, 0.0)
    event = delivered(deliveries)
    assert (event.id, event.kind, event.data["hosts"]) == (last.id, "change", [heavier, C])
    assert [event.data[name] for name in ("added", "modified", "removed")] == [[C], [heavier], [B]]


def test_deliveries_leave_out_what_was_undone_meanwhile() -> None:
    deliveries = Deliveries()
    deliveries.add(snapshot(A))
    (first,) = deliveries.take(0.0, 9)
    deliveries.add(change(A, B, added=[B]))
    deliveries.add(change(A, removed=[B]))
    deliveries.done(first, True, 0.0)
    assert deliveries.take(0.0, 9) == []


def test_deliveries_repeat_after_a_failure_with_the_newest_state() -> None:
    deliveries = Deliveries(Backoff(1.0, 60.0))
    deliveries.add(snapshot(A))
    delivered(deliveries)
    deliveries.add(change(A, B, added=[B]))
    delivered(deliveries, success=False, now=10.0)
    assert (deliveries.take(10.9, 9), deliveries.next()) == ([], 11.0)
    deliveries.add(change(B, removed=[A]))
    event = delivered(deliveries, success=False, now=11.0)
    assert [event.data[name] for name in ("hosts", "added", "removed")] == [[B], [B], [A]]
    assert deliveries.next() == 13.0
    again = delivered(deliveries, now=13.0)
    assert (again.data, again.id) == (event.data, event.id)
    assert deliveries.take(99.0, 9) == []


def test_deliveries_stop_to_repeat_what_was_undone() -> None:
    deliveries = Deliveries(Backoff(1.0, 60.0))
    deliveries.add(snapshot(A))
    delivered(deliveries)
    deliveries.add(change(A, B, added=[B]))
    delivered(deliveries, success=False)
    deliveries.add(change(A, removed=[B]))
    assert (deliveries.take(1.0, 9), deliveries.next()) == ([], math.inf)
    deliveries.add(last := change(B, added=[B], removed=[A]))
    assert delivered(deliveries, now=1.0) == last


def test_deliveries_give_a_change_before_any_success_as_a_snapshot() -> None:
    deliveries = Deliveries()
    deliveries.add(change(A, added=[A]))
    event = delivered(deliveries)
    assert (event.kind, event.data) == ("snapshot", snapshot(A).data)


def test_deliveries_give_a_snapshot_after_lost_events_only_if_it_differs() -> None:
    deliveries = Deliveries()
    deliveries.add(snapshot(A))
    delivered(deliveries)
    deliveries.add(snapshot(A, reset=True))
    assert deliveries.take(0.0, 9) == []
    deliveries.add(again := snapshot(B, reset=True))
    assert delivered(deliveries) == again


def test_deliveries_of_different_services_run_at_once_while_there_is_room() -> None:
    deliveries = Deliveries()
    for name in ("g@@a", "g@@b", "g@@c"):
        deliveries.add(snapshot(A, name=name))
    first = deliveries.take(0.0, 2)
    assert [event.data["name"] for event in first] == ["g@@a", "g@@b"]
    assert deliveries.next() < 0
    deliveries.done(first[0], True, 0.0)
    assert [event.data["name"] for event in deliveries.take(0.0, 2)] == ["g@@c"]


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcd")), st.sampled_from(["run", "fail", "wait"]))))
def test_deliveries_add_up_to_the_newest_state(steps: list[tuple[set[str], str]]) -> None:
    """Whatever fails or waits: who applies the changes of each success to the last one, has the newest state."""
    deliveries, known = Deliveries(Backoff(0.0, 0.0)), set[str]()

    def deliver(success: bool) -> None:
        nonlocal known
        for event in deliveries.take(0.0, 9):
            deliveries.done(event, success, 0.0)
            now = {host["ip"] for host in event.data["hosts"]}
            if success and event.kind == "change":
                applied = known | {host["ip"] for host in event.data["added"]}
                assert applied - {host["ip"] for host in event.data["removed"]} == now
            known = now if success else known

    before = set[str]()
    deliveries.add(snapshot())
    for ips, what in steps:
        added, removed = ([host(ip) for ip in sorted(some)] for some in (ips - before, before - ips))
        deliveries.add(change(*(host(ip) for ip in sorted(ips)), added=added, removed=removed))
        before = ips
        if what != "wait":
            deliver(what == "run")
    deliver(True)
    assert known == before

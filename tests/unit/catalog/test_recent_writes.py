"""A service stays recent for the grace after its last write; older ones are forgotten."""

from __future__ import annotations

from nacos_proxy.catalog.recent_writes import RecentWrites
from tests.helpers.build import key

A, B, C = key("a"), key("b"), key("c")


def test_recent_writes_keeps_a_service_for_the_grace_after_its_last_write() -> None:
    recent = RecentWrites(3.0)
    recent.add(A, 0)
    recent.add(B, 1)
    recent.add(A, 2)
    assert recent.keys(3.9) == [B, A]
    assert recent.keys(4.0) == [A]
    assert recent.keys(5.0) == []


def test_recent_writes_add_forgets_older_ones() -> None:
    recent = RecentWrites(3.0)
    recent.add(A, 0)
    recent.add(C, 10)
    assert repr(recent) == "<RecentWrites 1 services>"

"""Services stay recent for the grace after their last write, and nothing older is kept."""

from __future__ import annotations

from nacos_proxy.catalog.recent_writes import Recent
from tests.helpers.build import key

A, B, C = key("a"), key("b"), key("c")


def test_a_service_is_recent_until_the_grace_after_its_last_write_ends() -> None:
    recent = Recent(3.0)
    recent.note(A, 0)
    recent.note(B, 1)
    recent.note(A, 2)
    assert recent.keys(3.9) == [B, A]
    assert recent.keys(4.0) == [A]
    assert recent.keys(5.0) == []


def test_what_is_older_is_forgotten_with_the_next_write() -> None:
    recent = Recent(3.0)
    recent.note(A, 0)
    recent.note(C, 10)
    assert repr(recent) == "<Recent 1 services>"

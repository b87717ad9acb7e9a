"""Settling, retries, and what is told once."""

from __future__ import annotations

import math

import pytest

from nacos_proxy.cli.pauses import Debounce, Retries, Told, read_wait
from nacos_proxy.model.backoff import Backoff


def test_read_wait_reads_one_time_or_two() -> None:
    assert [read_wait("500ms"), read_wait("1s:1m")] == [(0.5, 2.0), (1.0, 60.0)]


@pytest.mark.parametrize("text", ["", "soon", "1s:", "2s:1s"])
def test_read_wait_refuses_what_is_no_wait(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_wait(text)


def test_debounce_waits_for_silence_but_not_longer_than_its_maximum() -> None:
    settling = Debounce(1.0, 2.5)
    assert settling.due == math.inf
    settling.changed(10.0)
    assert settling.due == 11.0
    settling.changed(10.9)
    assert settling.due == 11.9
    settling.changed(11.8)
    assert settling.due == 12.5
    settling.done()
    settling.changed(20.0)
    assert settling.due == 21.0


def test_retries_pause_longer_after_each_failure_until_done() -> None:
    retries = Retries(Backoff(1.0, 3.0))
    assert (retries.due_at("a"), retries.next()) == (-math.inf, math.inf)
    for pause in (1.0, 2.0, 3.0, 3.0):
        retries.failed("a", 100.0)
        assert retries.due_at("a") == 100.0 + pause
    retries.failed("b", 100.0)
    assert retries.next() == 101.0
    retries.hurry(50.0)
    assert (retries.due_at("a"), retries.due_at("c")) == (50.0, -math.inf)
    retries.done("a")
    retries.done("b")
    assert retries.next() == math.inf


def test_told_tells_a_failure_once_until_it_changes_or_is_over() -> None:
    said = list[str]()
    told = Told(said.append)
    told.over("a", "well again")
    for text in ("broken", "broken", "worse"):
        told.failing("a", text)
    assert (said, "a" in told) == (["broken", "worse"], True)
    told.over("a", "well again")
    told.failing("a", "worse")
    assert said == ["broken", "worse", "well again", "worse"]


def test_told_only_ends_the_others_of_a_kind() -> None:
    said = list[str]()
    told = Told(said.append)
    for what in (("held", 1, "a"), ("held", 1, "b"), ("held", 2, "a"), "proxy"):
        told.failing(what, "text")
    told.only(("held", 1), [("held", 1, "b")])
    assert [what in told for what in (("held", 1, "a"), ("held", 1, "b"), ("held", 2, "a"), "proxy")] == [
        False, True, True, True
    ]  # fmt: skip

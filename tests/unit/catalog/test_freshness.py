"""Freshness by age, Cache-Control of requests, and the headers of answers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog import freshness as module
from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness, cache_headers, freshness
from nacos_proxy.model.errors import Unreachable
from tests.helpers.build import instance, snapshot

ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"
TTL, STALE_IF_ERROR = 10.0, 60.0


def cached(state: Freshness = Freshness.FRESH, age: float = 3.0, ttl: float = 7.0, **fields: object) -> CacheResult:
    return CacheResult(state, snapshot(instance()), age, ttl, **fields)  # type: ignore[arg-type]


def status_of(given: CacheResult) -> str:
    return dict(cache_headers(given))["cache-status"]


# the table


def rows(text: str) -> list[list[str]]:
    """The rows of the freshness table in a text, its head and rule left out."""
    lines = [line.strip().strip("|") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.count("|") == 2]
    first = cells.index(["age", "freshness", "what a read does"])
    return [row for row in cells[first + 1 :] if not set("".join(row)) <= set("-")][: len(Freshness)]


def test_freshness_table_in_the_docs_is_that_of_the_code() -> None:
    assert rows(ARCHITECTURE.read_text("utf-8")) == rows(module.__doc__ or "")


AGES = {
    "younger than the TTL": [0.0, 5.0, math.nextafter(TTL, 0)],
    "younger than the TTL + stale-if-error": [TTL, 30.0, math.nextafter(TTL + STALE_IF_ERROR, 0)],
    "older": [TTL + STALE_IF_ERROR, 1e9, math.inf],
    "nothing was ever fetched": [None],
}


def test_freshness_follows_its_table() -> None:
    table = {row[0]: row[1] for row in rows(module.__doc__ or "")}
    computed = {name: {freshness(age, TTL, STALE_IF_ERROR).name for age in ages} for name, ages in AGES.items()}
    assert computed == {name: {state} for name, state in table.items()}


@given(st.lists(st.floats(0, 1e6), min_size=2), st.floats(0, 1e5), st.floats(0, 1e5) | st.just(math.inf))
def test_freshness_never_improves_with_age(ages: list[float], ttl: float, stale_if_error: float) -> None:
    order = [Freshness.FRESH, Freshness.STALE, Freshness.EXPIRED]
    found = [order.index(freshness(age, ttl, stale_if_error)) for age in sorted(ages)]
    assert found == sorted(found)


def test_freshness_never_expires_without_a_limit() -> None:
    assert freshness(1e12, TTL, math.inf) is Freshness.STALE


# what a request wants


@pytest.mark.parametrize(
    ("header", "cache_control"),
    [
        ("", CacheControl()),
        ("no-cache", CacheControl(no_cache=True)),
        ("max-age=5", CacheControl(max_age=5.0)),
        ("Max-Age=5, private", CacheControl(max_age=5.0)),
        ('max-age="5"', CacheControl(max_age=5.0)),
        (" no-cache ,max-age=5", CacheControl(no_cache=True, max_age=5.0)),
        ("max-age=0", CacheControl(no_cache=True, max_age=0.0)),
        ("max-age=-1", CacheControl()),
        ("max-age=", CacheControl()),
        ("max-age=soon", CacheControl()),
        ("no-store, max-stale=3, x-no-cache", CacheControl()),
        (",,=,;", CacheControl()),
    ],
)
def test_cache_control_parse_ignores_unknown_directives(header: str, cache_control: CacheControl) -> None:
    assert CacheControl.parse(header) == cache_control


@given(st.text())
def test_cache_control_parse_accepts_any_text(header: str) -> None:
    CacheControl.parse(header)


@pytest.mark.parametrize(
    ("cache_control", "state", "content"),
    [
        (CacheControl(), Freshness.FRESH, True),
        (CacheControl(), Freshness.STALE, True),
        (CacheControl(), Freshness.EXPIRED, False),
        (CacheControl(), Freshness.MISSING, False),
        (CacheControl(no_cache=True), Freshness.FRESH, False),
        (CacheControl(max_age=3.0), Freshness.FRESH, True),
        (CacheControl(max_age=2.0), Freshness.FRESH, False),
        (CacheControl(max_age=3.0), Freshness.STALE, True),
        (CacheControl(max_age=100.0), Freshness.EXPIRED, False),
    ],
)
def test_cache_control_satisfied_by_a_result_that_is_fresh_enough(
    cache_control: CacheControl, state: Freshness, content: bool
) -> None:
    assert cache_control.satisfied_by(cached(state, age=3.0)) is content


# what an answer says


def test_cache_headers_of_a_hit_give_age_and_ttl() -> None:
    assert cache_headers(cached(age=3.9, ttl=6.1)) == (("age", "3"), ("cache-status", "nacos-proxy; hit; ttl=6"))


def test_cache_headers_of_a_read_that_waited_for_the_upstream_say_miss() -> None:
    assert status_of(cached(age=0.0, ttl=10.0, fetched=True)) == "nacos-proxy; fwd=miss; ttl=10"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "nacos-proxy; hit; ttl=-5; detail=revalidating"),
        ({"error": Unreachable("refused", arrived=False)}, "nacos-proxy; hit; ttl=-5; detail=upstream-error"),
        (
            {"error": Unreachable("refused", arrived=False), "fetched": True},
            "nacos-proxy; fwd=stale; ttl=-5; detail=upstream-error",
        ),
        ({"from_disk": True}, "nacos-proxy; hit; ttl=-5; detail=disk"),
        (
            {"from_disk": True, "error": Unreachable("refused", arrived=False)},
            "nacos-proxy; hit; ttl=-5; detail=disk",
        ),
    ],
)
def test_cache_headers_of_a_stale_answer_give_the_reason(fields: dict[str, object], status: str) -> None:
    assert status_of(cached(Freshness.STALE, age=15.0, ttl=-5.0, **fields)) == status


@given(st.sampled_from(list(Freshness)), st.floats(0, 1e9), st.floats(-1e9, 1e9), st.booleans(), st.booleans())
def test_cache_headers_conform_to_their_rfcs(
    state: Freshness, age: float, ttl: float, fetched: bool, from_disk: bool
) -> None:
    """RFC 9111 5.1: a number of whole seconds; RFC 9211 2: one item, either `hit` or `fwd`, an integer `ttl`."""
    headers = dict(cache_headers(cached(state, age, ttl, fetched=fetched, from_disk=from_disk)))
    assert re.fullmatch(r"\d+", headers["age"])
    assert re.fullmatch(r"nacos-proxy; (hit|fwd=(miss|stale)); ttl=-?\d+(; detail=[a-z-]+)?", headers["cache-status"])

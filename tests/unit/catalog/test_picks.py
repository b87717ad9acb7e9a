"""Whose turn it is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.load_balancing import Candidates
from nacos_proxy.catalog.picks import Pick, Picker, RecentPicks, Split, counts_of, sides_of
from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import Instance
from nacos_proxy.model.strategies import STRATEGIES, Strategy
from tests.helpers.build import KEY, instance, key

HOSTS = [instance(f"10.0.0.{n}") for n in range(4)]
CANDIDATES = Candidates(HOSTS)


def last_digits(hosts: list[Instance]) -> str:
    return "".join(host.ip[-1] for host in hosts)


def picker() -> Picker:
    return Picker(random.Random(1).random)


@given(st.sampled_from(STRATEGIES), st.integers(1, 6))
def test_picker_chooses_n_different_instances_with_every_strategy(strategy: Strategy, n: int) -> None:
    chosen = picker().choose(Pick(strategy, "a", n), [CANDIDATES], KEY, 0)
    assert len({host.key for host in chosen}) == len(chosen) == min(n, 4)


def test_picker_round_robin_goes_on_after_the_last_of_several() -> None:
    picks = picker()
    turns = [
        last_digits(picks.choose(Pick("round_robin", n=n), [CANDIDATES], KEY, turn))
        for n, turn in ((3, "a"), (2, "a"), (1, "b"), (1, "a"))
    ]
    assert turns == ["012", "30", "0", "1"]


def test_picker_round_robin_begins_with_the_next_one_even_if_all_are_picked() -> None:
    picks = picker()
    assert [last_digits(picks.choose(Pick("round_robin", n=9), [CANDIDATES], KEY, 0)) for _ in range(3)] == [
        *("0123", "1230", "2301")
    ]


def test_picker_least_recent_chooses_what_was_picked_longest_ago_among_those_that_are_left() -> None:
    picks, pick = picker(), Pick("least_recent")
    assert last_digits(picks.choose(Pick("least_recent", n=2), [CANDIDATES], KEY, 0)) == "01"
    only = Candidates(HOSTS[:2])
    assert last_digits([*picks.choose(pick, [only], KEY, "another view"), *picks.choose(pick, [only], KEY, 0)]) == "01"
    assert last_digits(picks.choose(Pick("least_recent", n=4), [CANDIDATES], KEY, 0)) == "2301"
    grown = Candidates([*HOSTS, instance("10.0.0.9")])
    assert last_digits(picks.choose(Pick("least_recent", n=2), [grown], KEY, 0)) == "92"
    assert last_digits(picks.choose(pick, [CANDIDATES], key("stock"), 0)) == "0", "each service by itself"


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), max_size=20))
def test_picker_least_recent_never_repeats_one_while_another_waits_longer(offers: list[set[int]]) -> None:
    picks, last = picker(), dict.fromkeys(range(4), -1)
    for time, offer in enumerate(offers):
        (chosen,) = picks.choose(Pick("least_recent"), [Candidates(HOSTS[n] for n in offer)], KEY, 0)
        number = HOSTS.index(chosen)
        assert last[number] == min(last[n] for n in offer)
        last[number] = time


V1 = [instance(f"10.0.0.{n}", metadata={"version": "1"}) for n in range(4)]
V2 = [instance(f"10.0.1.{n}", metadata={"version": "2"}) for n in range(2)]
CANARY = Selector.parse("version=2")


def canaries(hosts: list[Instance]) -> int:
    return sum(host in V2 for host in hosts)


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "hash"])
@pytest.mark.parametrize("n", [1, 2])
def test_picker_split_gives_the_share_to_the_instances_that_match(strategy: Strategy, n: int) -> None:
    picks, pick = picker(), Pick(strategy, n=n, split=Split(CANARY, 0.1))
    number = sum(canaries(picks.choose(pick, sides_of([*V1, *V2], CANARY), KEY, 0)) for _ in range(3000))
    assert number / (3000 * n) == pytest.approx(0.1, abs=0.02)


@given(st.sampled_from(STRATEGIES), st.floats(0, 1), st.integers(1, 8), st.integers(0, 4), st.integers(0, 2))
def test_picker_split_chooses_n_different_instances_whatever_the_sides_have(
    strategy: Strategy, share: float, n: int, ones: int, twos: int
) -> None:
    hosts = [*V1[:ones], *V2[:twos]]
    chosen = picker().choose(Pick(strategy, "a", n, Split(CANARY, share)), sides_of(hosts, CANARY), KEY, 0)
    assert len({host.key for host in chosen}) == len(chosen) == min(n, len(hosts))
    if share in (0, 1) and chosen:
        assert canaries(chosen) == (min(n, twos) if share else max(0, len(chosen) - ones))


def test_picker_split_keeps_a_key_on_its_side_and_gives_the_share_of_keys() -> None:
    picks, keys = picker(), [f"user-{n}" for n in range(3000)]
    pick = {key: Pick("hash", key, split=Split(CANARY, 0.1)) for key in keys}

    def on_canary(hosts: list[Instance]) -> set[str]:
        sides = sides_of(hosts, CANARY)
        return {key for key in keys if canaries(picks.choose(pick[key], sides, KEY, 0))}

    first = on_canary([*V1, *V2])
    assert len(first) / 3000 == pytest.approx(0.1, abs=0.02)
    assert on_canary([*V1[1:], V2[1]]) == first
    wider = {
        key
        for key in keys
        if canaries(picks.choose(Pick("hash", key, split=Split(CANARY, 0.5)), sides_of([*V1, *V2], CANARY), KEY, 0))
    }
    assert first < wider, "a larger share adds keys and moves none back"


def test_picker_split_takes_turns_on_each_side_by_itself() -> None:
    draws = iter([0.9, 0.0, 0.9, 0.0, 0.9])
    picks, sides = Picker(lambda: next(draws)), sides_of([*V1, *V2], CANARY)
    pick = Pick("round_robin", split=Split(CANARY, 0.5))
    assert [picks.choose(pick, sides, KEY, 0)[0].ip for _ in range(5)] == [
        *("10.0.0.0", "10.0.1.0", "10.0.0.1", "10.0.1.1", "10.0.0.2")
    ]


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 9))
def test_counts_of_sides_follow_what_is_wanted_as_far_as_possible(wanted: list[int], first: int, second: int) -> None:
    counts = counts_of(wanted, [first, second])
    assert sum(counts) == min(len(wanted), first + second)
    assert counts[0] <= first and counts[1] <= second
    if wanted.count(0) <= first and wanted.count(1) <= second:
        assert counts == [wanted.count(0), wanted.count(1)]


def test_recent_picks_forgets_the_oldest_beyond_its_bound() -> None:
    recent = RecentPicks(2)
    for number in (0, 1, 0, 2):
        recent.add(KEY, HOSTS[number].key)
    assert [recent.number(KEY, host.key) for host in HOSTS] == [3, 0, 4, 0]

"""How one instance is chosen."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.load_balancing import Candidates, why_empty
from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import Instance
from nacos_proxy.model.views import View
from tests.helpers.build import instance, snapshot

WEIGHTS = st.lists(st.floats(0.1, 100), min_size=1, max_size=8)
HEALTHY = View(healthy_only=True)
KEYS = [f"user-{n}" for n in range(300)]


def count(chosen: Iterable[list[Instance]]) -> Counter[str]:
    return Counter(host.ip for hosts in chosen for host in hosts)


def every(candidates: Candidates, n: int, seed: int = 1) -> list[list[Instance]]:
    """A choice of each strategy."""
    rng = random.Random(seed).random
    return [
        candidates.weighted(rng, n),
        candidates.random(rng, n),
        candidates.after(None, n),
        candidates.least_recent(lambda _: 0, n),
        candidates.hashed(f"user-{seed}", n),
    ]


def hosts(weights: list[float]) -> list[Instance]:
    return [instance(f"10.0.0.{n}", weight=weight) for n, weight in enumerate(weights)]


@given(WEIGHTS)
def test_candidates_weighted_chooses_in_proportion_to_the_weights(weights: list[float]) -> None:
    candidates, draws = Candidates(hosts(weights)), 2000
    counts = count(candidates.weighted(lambda n=n: (n + 0.5) / draws) for n in range(draws))
    for host in candidates.hosts:
        assert counts[host.ip] / draws == pytest.approx(host.weight / sum(weights), abs=1.5 / draws)


@given(st.integers(1, 9))
def test_candidates_random_chooses_every_instance_alike(number: int) -> None:
    candidates = Candidates(hosts([float(n + 1) for n in range(number)]))
    counts = count(candidates.random(lambda n=n: (n + 0.5) / (number * 10)) for n in range(number * 10))
    assert set(counts.values()) == {10}


@given(WEIGHTS, st.integers(1, 10), st.integers())
def test_candidates_choose_different_usable_instances_with_every_strategy(
    weights: list[float], n: int, seed: int
) -> None:
    usable = hosts(weights)
    candidates = Candidates([*usable, instance("10.0.1.1", weight=0.0), instance("10.0.1.2", enabled=False)])
    for chosen in every(candidates, n, seed):
        assert len(chosen) == len({host.key for host in chosen}) == min(n, len(usable))
        assert all(host in usable for host in chosen)


def test_candidates_choose_the_same_first_one_whatever_n_is_if_nothing_is_random() -> None:
    candidates = Candidates(hosts([1, 2, 3, 4, 5]))
    for one, several in zip(every(candidates, 1)[2:], every(candidates, 3)[2:], strict=True):
        assert several[:1] == one


def test_candidates_weighted_chooses_several_in_proportion_to_the_weights_that_are_left() -> None:
    candidates, rng, draws = Candidates(hosts([1.0, 2.0, 5.0])), random.Random(1).random, 8000
    pairs = Counter(tuple(host.ip[-1] for host in candidates.weighted(rng, 2)) for _ in range(draws))
    expected = {("2", "1"): 5 / 8 * 2 / 3, ("2", "0"): 5 / 8 / 3, ("1", "2"): 2 / 8 * 5 / 6, ("0", "2"): 1 / 8 * 5 / 7}
    for pair, share in expected.items():
        assert pairs[pair] / draws == pytest.approx(share, abs=0.02)


def test_candidates_random_chooses_all_pairs_alike() -> None:
    candidates, rng = Candidates(hosts([1.0, 9.0, 99.0])), random.Random(1).random
    pairs = Counter(tuple(host.ip for host in candidates.random(rng, 2)) for _ in range(6000))
    assert len(pairs) == 6 and all(number / 6000 == pytest.approx(1 / 6, abs=0.02) for number in pairs.values())


def test_candidates_after_goes_round_even_if_the_last_one_is_gone() -> None:
    candidates = Candidates(reversed(hosts([1, 1, 1])))
    turns = candidates.after(None)
    for _ in range(5):
        turns += candidates.after(turns[-1].key)
    assert [host.ip[-1] for host in turns] == ["0", "1", "2", "0", "1", "2"]
    gone = Candidates(host for host in candidates.hosts if host.ip != "10.0.0.1")
    assert [host.ip for host in gone.after(candidates.hosts[1].key)] == ["10.0.0.2"]


def test_candidates_after_takes_several_in_a_row() -> None:
    candidates = Candidates(hosts([1, 1, 1]))
    assert [host.ip[-1] for host in candidates.after(candidates.hosts[0].key, 2)] == ["1", "2"]
    assert [host.ip[-1] for host in candidates.after(candidates.hosts[1].key, 5)] == ["2", "0", "1"]


def test_candidates_least_recent_prefers_what_was_never_chosen_then_the_longest_ago() -> None:
    candidates = Candidates(hosts([1, 1, 1, 1]))
    chosen_at = {candidates.hosts[0].key: 7, candidates.hosts[1].key: 3}
    chosen = candidates.least_recent(lambda key: chosen_at.get(key, 0), 4)
    assert [host.ip[-1] for host in chosen] == ["2", "3", "1", "0"]


@given(st.integers(2, 8), st.data())
def test_candidates_hashed_moves_only_the_keys_of_a_removed_instance(number: int, data: st.DataObject) -> None:
    before = hosts([float(data.draw(st.integers(1, 5))) for _ in range(number)])
    gone = data.draw(st.sampled_from(before))
    candidates, rest = Candidates(before), Candidates(host for host in before if host is not gone)
    for key in KEYS[:100]:
        chosen = candidates.hashed(key)
        if chosen != [gone]:
            assert rest.hashed(key) == chosen
        assert rest.hashed(key, 8) == [host for host in candidates.hashed(key, 8) if host is not gone]


def test_candidates_hashed_gives_keys_in_proportion_to_the_weights() -> None:
    candidates = Candidates(hosts([1.0, 3.0]))
    counts = count(candidates.hashed(f"user-{n}") for n in range(4000))
    assert counts["10.0.0.1"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_candidates_hashed_is_stable_and_ignores_health_and_cluster() -> None:
    (chosen,) = Candidates(hosts([1, 1, 1])).hashed("user-1")
    assert chosen.ip == "10.0.0.1"
    moved = Candidates(instance(h.ip, cluster="c", metadata={"a": "1"}) for h in hosts([1, 1, 1]))
    assert [host.ip for host in moved.hashed("user-1")] == [chosen.ip]


@pytest.mark.parametrize("n", [1, 3])
def test_candidates_choose_nothing_from_nothing(n: int) -> None:
    assert every(Candidates([]), n) == [[]] * 5


@pytest.mark.parametrize(
    ("given_hosts", "view", "reason"),
    [
        ([], HEALTHY, "has no instance"),
        ([instance()], View("a,b"), "its only instance is not in the clusters a, b"),
        (
            [instance()],
            View(selector=Selector.parse("b=1,a")),
            "its only instance is not matched by the selector a,b=1",
        ),
        ([instance(enabled=False)], HEALTHY, "its only instance is not enabled"),
        (hosts([1, 1]), View("x"), "none of 2 instances is in the clusters x"),
        ([instance(healthy=False)], HEALTHY, "its only instance is not healthy"),
        ([instance(weight=0.0)], HEALTHY, "its only instance is not of a weight above 0"),
        ([instance()], HEALTHY, ""),
    ],
)
def test_why_empty_names_the_reason(given_hosts: list[Instance], view: View, reason: str) -> None:
    assert reason in why_empty(snapshot(*given_hosts), view)

"""How one instance is chosen."""

from __future__ import annotations

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


def count(chosen: Iterable[Instance | None]) -> Counter[str]:
    return Counter(host.ip for host in chosen if host is not None)


def hosts(weights: list[float]) -> list[Instance]:
    return [instance(f"10.0.0.{n}", weight=weight) for n, weight in enumerate(weights)]


@given(WEIGHTS)
def test_candidates_weighted_chooses_in_proportion_to_the_weights(weights: list[float]) -> None:
    candidates, draws = Candidates(hosts(weights)), 2000
    counts = count(candidates.weighted((n + 0.5) / draws) for n in range(draws))
    for host in candidates.hosts:
        assert counts[host.ip] / draws == pytest.approx(host.weight / sum(weights), abs=1.5 / draws)


@given(st.integers(1, 9))
def test_candidates_random_chooses_every_instance_alike(number: int) -> None:
    candidates = Candidates(hosts([float(n + 1) for n in range(number)]))
    counts = count(candidates.random((n + 0.5) / (number * 10)) for n in range(number * 10))
    assert set(counts.values()) == {10}


@given(st.floats(0, 1, exclude_max=True), st.text(), WEIGHTS)
def test_candidates_exclude_weight_zero_and_disabled_instances(draw: float, key: str, weights: list[float]) -> None:
    usable = hosts(weights)
    candidates = Candidates([*usable, instance("10.0.1.1", weight=0.0), instance("10.0.1.2", enabled=False)])
    for chosen in (candidates.weighted(draw), candidates.random(draw), candidates.after(None), candidates.hashed(key)):
        assert chosen in usable


def test_candidates_after_goes_round_even_if_the_last_one_is_gone() -> None:
    candidates = Candidates(reversed(hosts([1, 1, 1])))
    first = candidates.after(None)
    assert first is not None
    turns = [first]
    for _ in range(5):
        turns.append(candidates.after(turns[-1].key))  # type: ignore[arg-type]
    assert [host.ip[-1] for host in turns] == ["0", "1", "2", "0", "1", "2"]
    gone = Candidates(host for host in candidates.hosts if host.ip != "10.0.0.1")
    follower = gone.after(candidates.hosts[1].key)
    assert follower is not None and follower.ip == "10.0.0.2"


@given(st.integers(2, 8), st.data())
def test_candidates_hashed_moves_only_the_keys_of_a_removed_instance(number: int, data: st.DataObject) -> None:
    before = hosts([float(data.draw(st.integers(1, 5))) for _ in range(number)])
    gone = data.draw(st.sampled_from(before))
    candidates, rest = Candidates(before), Candidates(host for host in before if host is not gone)
    for key in KEYS[:100]:
        chosen = candidates.hashed(key)
        if chosen is not gone:
            assert rest.hashed(key) == chosen


def test_candidates_hashed_gives_keys_in_proportion_to_the_weights() -> None:
    candidates = Candidates(hosts([1.0, 3.0]))
    counts = count(candidates.hashed(f"user-{n}") for n in range(4000))
    assert counts["10.0.0.1"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_candidates_hashed_is_stable_and_ignores_health_and_cluster() -> None:
    chosen = Candidates(hosts([1, 1, 1])).hashed("user-1")
    assert chosen is not None and chosen.ip == "10.0.0.1"
    moved = Candidates(instance(h.ip, cluster="c", metadata={"a": "1"}) for h in hosts([1, 1, 1]))
    again = moved.hashed("user-1")
    assert again is not None and again.ip == chosen.ip


def test_candidates_choose_nothing_from_nothing() -> None:
    candidates = Candidates([])
    assert (candidates.weighted(0.5), candidates.random(0.5), candidates.after(None), candidates.hashed("a")) == (
        None,
    ) * 4


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

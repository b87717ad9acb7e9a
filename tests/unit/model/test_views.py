"""Views: filters and preferences of readers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.model.views import Preference, View

KEY = ServiceKey.of("orders")
NEAR = Selector.parse("zone=a")


def host(number: int, zone: str = "a", **fields: Any) -> Instance:
    return Instance(f"10.0.0.{number}", 8080, metadata={"zone": zone}, **fields)


def shown(view: View, *hosts: Instance) -> list[int]:
    """The last numbers of the addresses that the view shows."""
    return [int(i.ip.rpartition(".")[2]) for i in view.of(Snapshot.of(KEY, hosts)).hosts]


def test_view_selector_filters_by_metadata_and_clusters() -> None:
    hosts = host(1), host(2, "b"), host(3, cluster="other"), host(4, enabled=False)
    assert shown(View(selector=NEAR), *hosts) == [1, 3]
    assert shown(View("other", selector=NEAR), *hosts) == [3]


def test_view_protection_counts_only_selected_instances() -> None:
    snapshot = Snapshot.of(KEY, [host(1, healthy=False), host(2, "b")], threshold=0.4)
    assert View(selector=NEAR).of(snapshot).protected
    assert not View().of(snapshot).protected


@pytest.mark.parametrize(
    ("enough", "weights", "expected"),
    [
        (0.3, (1, 1, 1), [1]),
        (0.4, (1, 1, 1), [1, 2, 3]),
        (0.3, (1, 100, 1), [1, 2, 3]),
        (1.0, (1, 0, 0), [1]),
        (0.0, (1, 100, 100), [1]),
        (0.0, (0, 1, 1), [1, 2, 3]),
    ],
)
def test_view_prefer_shows_near_instances_while_enough_weight_is_theirs(
    enough: float, weights: tuple[int, int, int], expected: list[int]
) -> None:
    hosts = [host(n, "a" if n == 1 else "b", weight=float(weight)) for n, weight in enumerate(weights, 1)]
    assert shown(View(prefer=Preference(NEAR, enough)), *hosts) == expected


def test_view_prefer_shows_near_instances_first_if_it_shows_all() -> None:
    hosts = host(1, "b", weight=10.0), host(2, "b", weight=10.0), host(3)
    view = View(prefer=Preference(NEAR))
    assert shown(view, *hosts) == [3, 1, 2]
    assert [len(tier) for tier in view.tiers(Snapshot.of(KEY, hosts))] == [3]


def test_view_tiers_are_the_preferred_then_the_others() -> None:
    hosts = host(1, "b"), host(2), host(3, healthy=False), host(4, weight=0.0), host(5, enabled=False)
    tiers = View(prefer=Preference(NEAR)).tiers(Snapshot.of(KEY, hosts))
    assert [[i.ip for i in tier] for tier in tiers] == [["10.0.0.2"], ["10.0.0.1"]]
    assert View().tiers(Snapshot.of(KEY)) == ()


def test_view_within_drops_unknown_clusters_and_keeps_the_rest() -> None:
    snapshot = Snapshot.of(KEY, [host(1, cluster="east")])
    view = View("west,east", selector=NEAR)
    assert view.within(snapshot) == View("east", selector=NEAR)
    assert View("west").within(snapshot) is None
    assert not any(View().variant) and all(View("a", True, NEAR, Preference(NEAR)).variant)


hosts = st.lists(
    st.builds(
        Instance,
        st.sampled_from([f"10.0.0.{n}" for n in range(1, 9)]),
        st.just(8080),
        weight=st.sampled_from([0.0, 0.5, 1.0, 3.0, 100.0]),
        healthy=st.booleans(),
        enabled=st.booleans(),
        metadata=st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
    ),
    max_size=8,
    unique_by=lambda i: i.ip,
)


@given(hosts, st.floats(0, 1), st.booleans(), st.sampled_from([0.0, 0.5]))
def test_preference_only_orders_and_cuts(
    given_: list[Instance], enough: float, healthy_only: bool, threshold: float
) -> None:
    snapshot = Snapshot.of(KEY, given_, threshold=threshold)
    plain = View(healthy_only=healthy_only).of(snapshot)
    view = View(healthy_only=healthy_only, prefer=Preference(NEAR, enough))
    found = view.of(snapshot).hosts
    assert {i.key for i in found} <= {i.key for i in plain.hosts}
    weight = sum(i.weight for i in plain.hosts if i.healthy)
    near = sum(i.weight for i in plain.hosts if i.healthy and NEAR.matches(i.metadata))
    if near > 0 and near >= enough * weight:
        assert list(found) == [i for i in plain.hosts if NEAR.matches(i.metadata)]
    else:
        assert sorted(found, key=lambda i: i.key) == list(plain.hosts)
        matches = [NEAR.matches(i.metadata) for i in found]
        assert matches == sorted(matches, reverse=True)
    if any(i.healthy and i.weight > 0 for i in plain.hosts):
        assert any(i.healthy and i.weight > 0 for i in found)
    tiers = view.tiers(snapshot)
    assert sorted(i.key for tier in tiers for i in tier) == sorted(
        i.key for i in plain.hosts if i.healthy and i.weight > 0
    )
    assert all(tiers)

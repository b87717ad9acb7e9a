"""A pushed list counts only if a fetch would give the same snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.pushed_lists import completed
from nacos_proxy.model.services import Instance, Snapshot
from tests.helpers.build import instance, snapshot

A, B, C = (instance(f"10.0.0.{number}") for number in (1, 2, 3))
SICK, OFF = replace(B, healthy=False), replace(B, enabled=False)


@pytest.mark.parametrize(
    ("known", "pushed"),
    [
        (snapshot(A), snapshot(A, B)),
        (snapshot(A, B), snapshot(A)),
        (snapshot(A), snapshot()),
        (snapshot(), snapshot(A)),
        (snapshot(A, SICK), snapshot(A, B)),
        (snapshot(A, SICK), snapshot(SICK, C)),
        (snapshot(A), snapshot(replace(A, metadata={"zone": "a"}))),
    ],
)
def test_completed_has_the_pushed_instances(known: Snapshot, pushed: Snapshot) -> None:
    assert completed(known, pushed) == pushed


@pytest.mark.parametrize(
    ("known", "pushed"),
    [
        (None, snapshot(A)),
        (snapshot(A), snapshot(A, B, masking=True)),
        (snapshot(A, threshold=0.5), snapshot(A, B)),
        (snapshot(A, masking=True), snapshot(A, B)),
        (snapshot(A, OFF), snapshot(A, C)),
        (snapshot(A, B), snapshot(A, SICK)),
        (snapshot(), snapshot(SICK)),
    ],
)
def test_completed_is_none_if_a_fetch_may_show_more(known: Snapshot | None, pushed: Snapshot) -> None:
    assert completed(known, pushed) is None


@pytest.mark.parametrize(
    ("pushed", "counts"),
    [(snapshot(A), False), (snapshot(A, B), False), (snapshot(A, B, C), True), (snapshot(A, C), False)],
)
def test_completed_may_lack_no_instance_if_fetches_list_disabled_ones(pushed: Snapshot, counts: bool) -> None:
    found = completed(snapshot(A, B), pushed, fetch_shows_more=True)
    assert found == (pushed if counts else None)


def test_completed_keeps_what_only_a_fetch_shows() -> None:
    known = snapshot(A, cache_millis=3000, extra={"env": "x"}, by_cluster=True)
    found = completed(known, snapshot(A, B, extra={"other": 1}))
    assert found is not None and (found.cache_millis, found.extra, found.by_cluster) == (3000, {"env": "x"}, True)


def test_completed_returns_the_known_snapshot_if_nothing_changed() -> None:
    known = snapshot(A, B)
    assert completed(known, snapshot(B, A)) is known


hosts = st.builds(
    Instance,
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    st.just(80),
    healthy=st.booleans(),
    enabled=st.booleans(),
)


@given(st.lists(hosts), st.lists(hosts), st.sampled_from([0.0, 0.5]), st.booleans(), st.booleans())
def test_completed_equals_the_fetch_whatever_happened_before(
    before: list[Instance], now: list[Instance], threshold: float, admin: bool, has_metadata: bool
) -> None:
    """A model of a server: what it lists by HTTP and what it pushes, with protection."""

    def fetch(instances: list[Instance], at: float) -> Snapshot:
        listed = snapshot(*instances)
        if not admin:
            listed = listed.with_instances(i for i in listed.instances if i.enabled)
        if any(not i.healthy for i in listed.instances):  # only then it is asked for
            listed = replace(listed, threshold=at, masking=has_metadata or at > 0, index=listed.by_key)
        return listed

    def push(instances: list[Instance]) -> Snapshot:
        true = replace(snapshot(*instances), threshold=threshold, masking=has_metadata)
        selection = true.select()
        return snapshot(*selection.hosts, masking=selection.protected)

    found = completed(fetch(before, threshold), push(now), fetch_shows_more=admin)
    if found is not None and not (admin and any(not i.enabled for i in now)):
        assert found == fetch(now, threshold)

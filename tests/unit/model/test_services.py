"""What a service looks like, which difference counts, and what a list shows of it."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.services import Change, Instance, InstanceKey, ServiceKey, Snapshot, diff, merge
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.recordings import Row, load

metadata = st.dictionaries(st.sampled_from(["a", "b", "zone", "é"]), st.sampled_from(["", "1", "ü"]), max_size=2)
extras = st.dictionaries(st.sampled_from("xy"), st.sampled_from([None, True, 2, "2", [1], {"p": [None]}]), max_size=1)
instances = st.builds(
    Instance,
    ip=st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "::1"]),
    port=st.sampled_from([80, 8080]),
    cluster=st.sampled_from(["DEFAULT", "c1", "c2"]),
    weight=st.sampled_from([0.0, 1.0, 2.5]),
    healthy=st.booleans(),
    enabled=st.booleans(),
    ephemeral=st.booleans(),
    metadata=metadata,
    instance_id=st.sampled_from(["", "7#c1#g@@s"]),
    extra=extras,
)
thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0])
snapshots = st.builds(
    lambda found, **fields: snapshot(*found, **fields),
    st.lists(instances, max_size=4),
    threshold=thresholds,
    masking=st.booleans(),
    cache_millis=st.sampled_from([3000, 10_000]),
    extra=extras,
    last_ref_time=st.integers(0, 2**40),
)


# names


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (("orders",), ("public", "DEFAULT_GROUP", "orders")),
        (("orders", None, None), ("public", "DEFAULT_GROUP", "orders")),
        (("orders", "", ""), ("public", "DEFAULT_GROUP", "orders")),
        (("orders", "shop", "dev"), ("dev", "shop", "orders")),
        (("shop@@orders",), ("public", "shop", "orders")),
        (("shop@@orders", "other", "public"), ("public", "shop", "orders")),
        (("@@orders", "other"), ("public", "DEFAULT_GROUP", "orders")),
        (("shop@@a@@b",), ("public", "shop", "a@@b")),
        (("shop@@",), ("public", "shop", "")),
        (("a@b",), ("public", "DEFAULT_GROUP", "a@b")),
    ],
)
def test_service_key_of_reads_what_callers_write(written: tuple[str, ...], meant: tuple[str, str, str]) -> None:
    assert ServiceKey.of(*written) == ServiceKey(*meant)


@given(st.text(min_size=1).filter(lambda name: "@@" not in name), st.text(min_size=1).filter(lambda g: "@@" not in g))
def test_service_key_of_reads_its_grouped_name_back(name: str, group: str) -> None:
    key = ServiceKey("dev", group.rstrip("@") or "g", name.lstrip("@") or "n")
    assert ServiceKey.of(key.grouped, "ignored", "dev") == key
    assert str(key) == f"dev/{key.grouped}"


def test_address_of_puts_ipv6_into_brackets() -> None:
    assert [instance("10.0.0.1", 80).address, instance("::1", 80).address] == ["10.0.0.1:80", "[::1]:80"]
    assert {instance(ip, 80).address for ip in ("[::1]", "::1", "0:0::1", "[0:0:0:0:0:0:0:1]")} == {"[::1]:80"}


@given(st.ip_addresses(v=6))
def test_plain_ip_gives_the_canonical_form(ip: IPv6Address) -> None:
    spellings = (str(ip), ip.exploded, ip.exploded.upper(), f"[{ip}]", f"[{ip.exploded.upper()}]")
    assert {plain_ip(spelling) for spelling in spellings} == {str(ip)}


@pytest.mark.parametrize(
    "ip", ["10.0.0.1", "web", "[web]", "[10.0.0.1]", "10.0.0.1:80", "[::1", "::1]", "[[::1]]", "", ":"]
)
def test_plain_ip_keeps_other_text(ip: str) -> None:
    assert plain_ip(ip) == ip


def test_snapshot_registered_ip_gives_the_registered_form() -> None:
    listed = snapshot(instance("[2001:db8::7]", 80), instance("2001:db8::7", 81), instance("[2001:db8::7]", 81))
    found = [listed.registered_ip("2001:db8::7", port) for port in (80, 81, 82)]
    assert found == ["[2001:db8::7]", "2001:db8::7", "2001:db8::7"]


# snapshots


@given(st.lists(instances, max_size=6), st.randoms(use_true_random=False), st.integers(0, 2**40))
def test_snapshot_equality_ignores_order_and_last_ref_time(
    found: list[Instance], rng: random.Random, moment: int
) -> None:
    one = snapshot(*found)
    shuffled = list(one.instances)
    rng.shuffle(shuffled)
    other = snapshot(*shuffled, last_ref_time=moment)
    assert one == other
    assert one.revision == other.revision
    assert diff(one, other, "poll") is None


@given(snapshots, snapshots)
def test_snapshot_revisions_are_equal_if_and_only_if_the_snapshots_are(one: Snapshot, other: Snapshot) -> None:
    assert (one == other) == (one.revision == other.revision)


def test_snapshot_revision_ignores_the_order_of_maps_and_the_type_of_numbers() -> None:
    one = snapshot(instance(weight=1, metadata={"a": "1", "b": "2"}, extra={"x": {"p": 1, "q": 2}}), threshold=0)
    other = snapshot(instance(weight=1.0, metadata={"b": "2", "a": "1"}, extra={"x": {"q": 2, "p": 1}}), threshold=0.0)
    assert one == other
    assert one.revision == other.revision


@pytest.mark.parametrize(
    "changed",
    [
        {"weight": 2.0},
        {"healthy": False},
        {"enabled": False},
        {"ephemeral": False},
        {"cluster": "c1"},
        {"metadata": {"a": "1"}},
        {"instance_id": "7#c1#g@@s"},
        {"extra": {"zone": "a"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_diff_sees_a_change_of_every_visible_field(changed: dict[str, Any]) -> None:
    before, after = snapshot(instance()), snapshot(instance(**changed))
    assert before.revision != after.revision
    assert diff(before, after, "poll") is not None


def test_snapshot_revision_is_the_same_in_another_process() -> None:
    """ETags and resumption survive a restart: nothing in it depends on the process, such as the hash of a text."""
    code = (
        "from nacos_proxy.model.services import *;"
        "i = Instance('10.0.0.1', 80, metadata={'b': '2', 'a': '1'});"
        "print(Snapshot.of(ServiceKey('public', 'DEFAULT_GROUP', 'orders'), [i]).revision)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == snapshot(instance(metadata={"a": "1", "b": "2"})).revision
    assert len(printed) == 16


def test_instance_is_made_from_all_its_fields_and_frozen() -> None:
    full = Instance("10.0.0.1", 80, "a", 2.0, False, False, False, {"b": "c"}, "id", {"d": 1})
    assert [getattr(full, one.name) for one in fields(Instance)] == [
        *("10.0.0.1", 80, "a", 2.0, False, False, False, {"b": "c"}, "id", {"d": 1})
    ]
    assert Instance("10.0.0.1", 80) == Instance("10.0.0.1", 80, "DEFAULT", 1.0, True, True, True, {}, "", {})
    with pytest.raises(FrozenInstanceError):
        full.port = 81  # type: ignore[misc]


def test_snapshot_of_keeps_the_later_of_two_instances_with_one_key() -> None:
    assert snapshot(instance(weight=1), instance(weight=2)).instances == (instance(weight=2),)


@given(snapshots)
def test_snapshot_dated_changes_only_the_last_ref_time(found: Snapshot) -> None:
    plain, kept = found.dated(7), replace(found)
    assert (kept.by_key, kept.revision) == (found.by_key, found.revision)
    dated = found.dated(7)
    assert plain == dated == found
    assert (dated.last_ref_time, dated.revision, dict(dated.by_key)) == (7, found.revision, dict(found.by_key))


@given(snapshots)
def test_snapshot_with_by_key_sorts_the_instances(found: Snapshot) -> None:
    turned = dict(reversed(found.by_key.items()))
    after = replace(found, instances=()).with_by_key(turned)
    assert after == found
    assert list(after.by_key) == [i.key for i in after.instances]


def test_snapshot_find_looks_up_an_address_and_optionally_a_cluster() -> None:
    service = snapshot(instance(cluster="c1"), instance(port=81, cluster="c2"))
    assert service.find("10.0.0.1", 80) == service.find("10.0.0.1", 80, "c1") == instance(cluster="c1")
    assert service.find("10.0.0.1", 80, "c2") is None
    assert service.find("10.0.0.2", 80) is None
    assert service.by_key[InstanceKey("10.0.0.1", 81, "c2")].port == 81


# select


def recorded_services() -> list[Any]:
    """For each recorded server the service as it was registered, and the lists that it then showed."""
    rows = load("protection")
    found: list[Any] = []
    for server in ("nacos-2.5.1", "nacos-3.0.3"):
        mine = [row for row in rows if row.server == server]
        service = Snapshot.of(
            KEY,
            [
                Instance(row.query["ip"], 80, row.query["clusterName"], healthy=row.query["healthy"] == "true")
                for row in mine
                if ": register" in row.case
            ],
            threshold=float(mine[0].query["protectThreshold"]),
            masking=True,
        )
        found += [pytest.param(service, row, id=str(row)) for row in mine if row.below == "/v1/ns/instance/list"]
    return found


@pytest.mark.parametrize(("service", "row"), recorded_services())
def test_snapshot_select_lists_what_recorded_servers_list(service: Snapshot, row: Row) -> None:
    clusters = frozenset(row.query.get("clusters", "").split(",")) - {""}
    shown = service.select(clusters, row.query.get("healthyOnly") == "true")
    assert [(i.ip, i.cluster, i.healthy) for i in shown.hosts] == sorted(
        (host["ip"], host["clusterName"], host["healthy"]) for host in row.body["hosts"]
    )
    assert shown.protected == row.body["reachProtectionThreshold"]


@given(snapshots, st.frozensets(st.sampled_from(["DEFAULT", "c1", "c2", "none"])), st.booleans())
def test_snapshot_select_follows_the_rules_of_nacos(
    service: Snapshot, clusters: frozenset[str], healthy_only: bool
) -> None:
    """nacos-http.md 5.5, said once more without the code's own words."""
    shown = service.select(clusters, healthy_only)
    asked = [i for i in service.instances if i.enabled and (not clusters or i.cluster in clusters)]
    sound = [i for i in asked if i.healthy]
    counts = service.masking or service.threshold > 0.0
    masked = bool(asked) and counts and not healthy_only and len(sound) / len(asked) <= service.threshold
    assert shown.protected == masked
    assert [i.key for i in shown.hosts] == [i.key for i in (sound if healthy_only else asked)]
    assert [i.healthy for i in shown.hosts] == [i.healthy or masked for i in (sound if healthy_only else asked)]


@pytest.mark.parametrize(("masking", "protected"), [(True, True), (False, False)])
def test_snapshot_select_at_threshold_zero_masks_health_only_with_metadata(masking: bool, protected: bool) -> None:
    shown = snapshot(instance(healthy=False), masking=masking).select()
    assert (shown.protected, shown.hosts[0].healthy) == (protected, protected)


def test_snapshot_select_never_protects_an_empty_service() -> None:
    assert not snapshot(threshold=1.0, masking=True).select().protected
    assert not snapshot(instance(enabled=False, healthy=False), threshold=1.0).select().protected


@pytest.mark.parametrize(("healthy", "of", "threshold"), [(29, 100, 0.29), (3, 10, 0.3), (7, 10, 0.7), (57, 100, 0.57)])
def test_snapshot_select_protects_a_share_exactly_at_the_threshold(healthy: int, of: int, threshold: float) -> None:
    """As Java's floats have it: 0.29 * 100 is 28.999999999999996 in Python's."""
    service = snapshot(*(instance(port=n + 1, healthy=n < healthy) for n in range(of)), threshold=threshold)
    assert service.select().protected
    one_more = snapshot(*(instance(port=n + 1, healthy=n <= healthy) for n in range(of)), threshold=threshold)
    assert not one_more.select().protected


@pytest.mark.parametrize("threshold", [1.5, 1e300])
def test_snapshot_select_always_protects_with_a_threshold_above_one(threshold: float) -> None:
    assert snapshot(instance(), threshold=threshold).select().protected


# changes


@given(snapshots, snapshots)
def test_diff_is_none_exactly_if_nothing_differs(one: Snapshot, other: Snapshot) -> None:
    change = diff(one, other, "poll")
    assert (change is None) == (one == other)


@given(snapshots, snapshots)
def test_change_added_modified_and_removed_lead_from_before_to_after(one: Snapshot, other: Snapshot) -> None:
    change = Change(one, other, "poll")
    built = {i.key: i for i in one.instances}
    for gone in change.removed:
        del built[gone.key]
    assert not set(built) & {i.key for i in change.added}
    assert {i.key for i in change.modified} <= set(built)
    built |= {i.key: i for i in (*change.added, *change.modified)}
    assert built == dict(other.by_key)
    assert all(one.by_key[i.key] != i for i in change.modified)


@given(snapshots, snapshots, snapshots)
def test_merge_leads_from_the_first_state_to_the_last(a: Snapshot, b: Snapshot, c: Snapshot) -> None:
    first, second = Change(a, b, "poll"), Change(b, c, "write")
    assert merge(first, second) == diff(a, c, "write")


@given(snapshots)
def test_diff_from_nothing_adds_all_instances(found: Snapshot) -> None:
    """That there are none is no news: else who asks for a million names would push all real changes out of history."""
    change = diff(None, found, "poll")
    assert (change is None) == (not found.instances)
    if change is not None:
        assert (change.added, change.modified, change.removed) == (found.instances, (), ())


@given(st.permutations([{"healthy": True, "metadata": {"from": "grpc"}}, {"healthy": False}, {"healthy": True}]))
def test_snapshot_of_shows_the_healthy_one_of_an_address_in_whatever_order_a_server_lists_it(
    fields: list[dict[str, Any]],
) -> None:
    found = snapshot(*(instance(**more) for more in fields), instance("10.0.0.2", healthy=False))
    assert [(i.healthy, dict(i.metadata)) for i in found.instances] == [(True, {"from": "grpc"}), (False, {})]


def test_snapshot_of_keeps_one_instance_of_each_cluster_at_an_address() -> None:
    assert len(snapshot(instance(), instance(cluster="blue", healthy=False)).instances) == 2

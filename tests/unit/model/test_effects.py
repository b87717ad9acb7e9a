"""What a write means for a list: as the recorded servers had it, total, pure, and nothing for nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import BatchMetadata, Beat, Deregister, Register, SetHealth, Update, Write
from nacos_proxy.model.effects import Draft, apply
from nacos_proxy.model.services import Instance, InstanceKey, Snapshot
from nacos_proxy.wire.nacos.base import Dialect
from nacos_proxy.wire.nacos.hosts import read_listing
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.recordings import Row, load

X = instance("10.0.0.1")
NOTHING = snapshot()


def update(**fields: Any) -> Update:
    return Update(KEY, X.ip, X.port, **fields)


# as the recorded servers had it

# A list does not tell registration and modification apart, so what a server drops of the latter is not foreseen.
UNFORESEEN = {
    "PUT metadata a=9": "what an earlier PUT put into the metadata ends",
    "partial metadata c": "what an earlier PUT put into the metadata ends; on 3.0.3 the weight, too",
    "PUT enabled=true": "no list shows a disabled instance, so there is nothing here to enable",
    "register again weight 9, metadata d": "a modification outlives the registration, its weight counts",
}
UNFORESEEN_RNACOS = {
    "PUT metadata b": "r-nacos replaces the metadata, and leaves a weight that is not named",
    "PUT metadata a=9": "r-nacos replaces the metadata",
    "partial metadata c": "r-nacos replaces the metadata",
    "PUT enabled=true": UNFORESEEN["PUT enabled=true"],
    "register once more, plain": "r-nacos brings back what it had before the deregistration",
}


def call_of(row: Row) -> Any:
    dialect: Dialect = V3 if row.below.startswith("/v3") else V1
    operation = dialect.match(row.method, row.below)
    assert operation is not None
    return operation.read_request(row.request)


def listed(row: Row, call: Any) -> Snapshot:
    return read_listing(call.service, row.body).snapshot


@pytest.mark.parametrize(
    ("server", "unforeseen"),
    [("nacos-2.5.1", UNFORESEEN), ("nacos-3.0.3", UNFORESEEN), ("r-nacos-0.8.8", UNFORESEEN_RNACOS)],
)
def test_apply_predicts_what_recorded_servers_list_after_a_write(server: str, unforeseen: dict[str, str]) -> None:
    rows = [row for row in load("modify") if row.server == server]
    surprises: list[str] = []
    before: Snapshot | None = None
    for written, shown in zip(rows[::2], rows[1::2], strict=True):
        call = call_of(written)
        after = listed(shown, call)
        foreseen = apply(before if before is not None else Snapshot(call.service), call)
        if foreseen.select().hosts != after.select().hosts:
            surprises.append(written.case.removeprefix("modify: "))
        before = after
    assert surprises == list(unforeseen)


# each write


def test_apply_register_adds_replaces_and_moves() -> None:
    assert apply(NOTHING, Register(KEY, X)) == snapshot(X)
    assert apply(snapshot(X), Register(KEY, instance(weight=3.0))) == snapshot(instance(weight=3.0))
    moved = instance(cluster="c1")
    assert apply(snapshot(X, instance(port=81)), Register(KEY, moved)) == snapshot(moved, instance(port=81))


def test_apply_register_keeps_what_the_server_added() -> None:
    """A snowflake id, fields that we do not know: else the overlay would hide them until its grace ends."""
    shown = instance(instance_id="7#DEFAULT#g@@s", extra={"zone": "a"})
    assert apply(snapshot(shown), Register(KEY, X)) == snapshot(shown)
    assert apply(snapshot(shown), Register(KEY, instance(weight=2.0))) == snapshot(
        instance(weight=2.0, instance_id="7#DEFAULT#g@@s", extra={"zone": "a"})
    )


def test_apply_deregister_ignores_the_cluster_but_not_the_kind() -> None:
    service = snapshot(instance(cluster="c1"), instance(port=81))
    assert apply(service, Deregister(KEY, X.ip, X.port, "other")) == snapshot(instance(port=81))
    assert apply(service, Deregister(KEY, X.ip, X.port, ephemeral=False)) is service
    persistent = snapshot(instance(ephemeral=False))
    assert apply(persistent, Deregister(KEY, X.ip, X.port)) is persistent
    assert apply(persistent, Deregister(KEY, X.ip, X.port, ephemeral=False)) == NOTHING


def test_apply_update_resets_what_a_put_leaves_out_and_keeps_what_a_patch_leaves_out() -> None:
    service = snapshot(instance(weight=3.0, enabled=False, metadata={"a": "1"}))
    assert apply(service, update()) == snapshot(instance(metadata={"a": "1"}))
    assert apply(service, update(metadata={"b": "2"})) == snapshot(instance(metadata={"a": "1", "b": "2"}))
    assert apply(service, update(partial=True)) is service
    assert apply(service, update(partial=True, weight=5.0)) == snapshot(
        instance(weight=5.0, enabled=False, metadata={"a": "1"})
    )
    assert apply(service, update(partial=True, enabled=True, weight=0.0)) == snapshot(
        instance(weight=0.0, metadata={"a": "1"})
    )


def test_apply_update_keeps_the_instance_of_another_cluster_at_the_same_address() -> None:
    """Nacos 1.x tells them apart; on later servers there is none."""
    service = snapshot(instance(cluster="c1"), instance(cluster="c2"))
    assert apply(service, update(weight=5.0, cluster="c2")) == snapshot(
        instance(cluster="c1"), instance(cluster="c2", weight=5.0)
    )


def test_apply_update_of_an_unknown_instance_changes_nothing() -> None:
    service = snapshot(X)
    assert apply(service, update(weight=5.0, cluster="c1")) is service
    assert apply(service, Update(KEY, "10.0.0.2", 80, weight=5.0)) is service


def test_apply_beat_makes_healthy_and_only_a_full_one_registers() -> None:
    ill = snapshot(instance(healthy=False, weight=3.0))
    assert apply(ill, Beat(KEY, X.ip, X.port)) == snapshot(instance(weight=3.0))
    full = Beat(KEY, X.ip, X.port, full=instance(weight=9.0, metadata={"e": "5"}))
    assert apply(ill, full) == snapshot(instance(weight=3.0))
    assert apply(NOTHING, full) == snapshot(instance(weight=9.0, metadata={"e": "5"}))
    assert apply(NOTHING, Beat(KEY, X.ip, X.port)) is NOTHING
    down = instance(healthy=False, enabled=False)
    assert apply(NOTHING, Beat(KEY, X.ip, X.port, full=down)) == snapshot(X)


def test_apply_beat_does_not_make_a_persistent_instance_healthy() -> None:
    """Its health is the server's own check."""
    service = snapshot(instance(healthy=False, ephemeral=False))
    assert apply(service, Beat(KEY, X.ip, X.port)) is service


def test_apply_batch_metadata_merges_into_the_given_instances_or_all() -> None:
    service = snapshot(instance(metadata={"a": "1"}), instance("10.0.0.2"))
    one = BatchMetadata(KEY, (X.key, InstanceKey("10.0.0.9", 80, "DEFAULT")), {"b": "2"})
    assert apply(service, one) == snapshot(instance(metadata={"a": "1", "b": "2"}), instance("10.0.0.2"))
    assert [dict(i.metadata) for i in apply(service, BatchMetadata(KEY, (), {"b": "2"})).instances] == [
        {"a": "1", "b": "2"},
        {"b": "2"},
    ]


def test_apply_batch_metadata_does_not_predict_a_removal() -> None:
    """Keys that came with the registration stay (nacos-http.md 2.8), and a list does not say which those are."""
    service = snapshot(instance(metadata={"a": "1"}))
    assert apply(service, BatchMetadata(KEY, (), {"a": ""}, remove=True)) is service


def test_apply_set_health_changes_the_instance_of_the_given_cluster() -> None:
    service = snapshot(instance(cluster="c1", ephemeral=False))
    assert apply(service, SetHealth(KEY, X.ip, X.port, "c1", False)) == snapshot(
        instance(cluster="c1", ephemeral=False, healthy=False)
    )
    assert apply(service, SetHealth(KEY, X.ip, X.port, "c2", False)) is service


def test_apply_of_an_unknown_write_changes_nothing() -> None:
    service = snapshot(X)
    assert apply(service, Write(KEY)) is service


# all writes

ips, ports, clusters = st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.sampled_from([80, 81]), st.sampled_from("cd")
metadata = st.dictionaries(st.sampled_from("ab"), st.sampled_from("12"))
instances = st.builds(
    Instance,
    ips,
    ports,
    clusters,
    weight=st.sampled_from([0.0, 1.0]),
    healthy=st.booleans(),
    enabled=st.booleans(),
    ephemeral=st.booleans(),
    metadata=metadata,
    instance_id=st.sampled_from(["", "7"]),
    extra=st.sampled_from([{}, {"zone": "a"}]),
)
snapshots = st.builds(
    lambda found, **fields: snapshot(*found, **fields),
    st.lists(instances, max_size=5),
    threshold=st.sampled_from([0.0, 0.5]),
    extra=st.sampled_from([{}, {"x": 1}]),
)
service = st.just(KEY)
writes: Any = st.one_of(
    st.builds(Register, service, instances),
    st.builds(Deregister, service, ips, ports, clusters, st.booleans()),
    st.builds(
        Update, service, ips, ports, clusters,
        st.none() | st.sampled_from([0.0, 1.0]), st.none() | st.booleans(), st.none() | metadata,
        partial=st.booleans(),
    ),
    instances.map(lambda i: Beat(KEY, i.ip, i.port, i.cluster, full=i)),
    instances.map(lambda i: Beat(KEY, i.ip, i.port, i.cluster)),
    st.builds(
        BatchMetadata, service, st.lists(instances.map(lambda i: i.key), max_size=2).map(tuple), metadata, st.booleans()
    ),
    st.builds(SetHealth, service, ips, ports, clusters, st.booleans()),
)  # fmt: skip


def test_apply_on_1x_treats_each_cluster_at_an_address_as_a_separate_instance() -> None:
    """nacos-http.md 5.1: there the cluster is part of an instance's key, later ip and port alone are."""
    one, two = instance(), instance(cluster="c2")
    both = Snapshot.of(KEY, [one, two], by_cluster=True)
    alone = Snapshot.of(KEY, [one], by_cluster=True)
    assert apply(both, Deregister(KEY, one.ip, one.port, "c2")) == alone
    assert apply(alone, Deregister(KEY, one.ip, one.port, "c2")) is alone
    assert apply(alone, Register(KEY, two)) == both
    assert apply(alone, Beat(KEY, one.ip, one.port, "c2", full=two)) == both
    ill = Snapshot.of(KEY, [replace(one, healthy=False), replace(two, healthy=False)], by_cluster=True)
    assert [i.healthy for i in apply(ill, Beat(KEY, one.ip, one.port, "c2")).instances] == [False, True]


def test_apply_recognises_1x_by_two_clusters_at_one_address() -> None:
    one, two = instance(), instance(cluster="c2")
    assert apply(snapshot(one, two), Deregister(KEY, one.ip, one.port, "c2")) == snapshot(one)


@given(snapshots, writes)
def test_apply_returns_the_same_snapshot_if_nothing_changes(before: Snapshot, write: Any) -> None:
    after = apply(before, write)
    assert (after is before) == (after == before)


@given(snapshots, st.lists(writes, max_size=6), st.booleans())
def test_draft_applies_many_writes_as_apply_does_one_after_the_other(
    before: Snapshot, made: list[Any], many: bool
) -> None:
    draft, after = Draft(before, many=many), before
    for write in made:
        assert draft.shows(write) == (apply(after, write) is after)
        draft.apply(write)
        after = apply(after, write)
    assert draft.snapshot == after
    assert list(draft.snapshot.by_key.items()) == [(i.key, i) for i in after.instances]


@given(snapshots, writes)
def test_apply_of_the_same_write_again_changes_nothing(before: Snapshot, write: Any) -> None:
    once = apply(before, write)
    assert apply(once, write) is once


@given(snapshots, writes)
def test_apply_keeps_everything_else(before: Snapshot, write: Any) -> None:
    revision = before.revision
    after = apply(before, write)
    assert (
        before.revision == Snapshot.of(KEY, before.instances, threshold=before.threshold, extra=before.extra).revision
    )
    assert revision == before.revision
    frame = ("key", "threshold", "masking", "cache_millis", "extra", "last_ref_time")
    assert [getattr(after, name) for name in frame] == [getattr(before, name) for name in frame]
    assert list(after.instances) == sorted(after.instances, key=lambda i: i.key)
    if not isinstance(write, BatchMetadata):
        about = (write.instance.ip, write.instance.port) if isinstance(write, Register) else (write.ip, write.port)
        others = [[i for i in s.instances if (i.ip, i.port) != about] for s in (before, after)]
        assert others[0] == others[1]

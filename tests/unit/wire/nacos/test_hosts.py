"""Hosts and lists as JSON: every server's spelling is read, one is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import BEAT_NOT_FOUND, BEAT_OK, BeatResult, GetInstance
from nacos_proxy.model.errors import Malformed, Misplaced
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.hosts import (
    LARGE,
    Hosts,
    host_json,
    hosts_json,
    list_json,
    read_beat_result,
    read_each,
    read_host,
    read_listing,
    read_metadata,
    read_requested,
    write_beat,
    write_statuses,
)
from nacos_proxy.wire.nacos.shapes import dumps, read_json
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.pair import KEYS, LISTED, SNAPSHOTS
from tests.helpers.recordings import load

ID = "10.0.0.1#80#DEFAULT#DEFAULT_GROUP@@orders"


def bare(**fields: Any) -> dict[str, Any]:
    return {"ip": "10.0.0.1", "port": 80, **fields}


NESTED = json.loads("[" * 400 + "]" * 400)


def read(**fields: Any) -> Instance:
    return read_host(read_json(json.dumps(bare(**fields))), KEY.grouped)


def test_host_json_has_an_instance_id_and_the_fields_of_2_5_1_in_order() -> None:
    host = host_json(instance(weight=2.0), KEY)
    assert list(host.items())[:2] == [("instanceId", ID), ("ip", "10.0.0.1")]
    assert list(host)[2:] == [
        "port",
        "weight",
        "healthy",
        "enabled",
        "ephemeral",
        "clusterName",
        "serviceName",
        "metadata",
        "instanceHeartBeatInterval",
        "instanceHeartBeatTimeOut",
        "ipDeleteTimeout",
        "instanceIdGenerator",
    ]


@pytest.mark.parametrize(
    ("metadata", "generator"),
    [({}, "simple"), ({"a": "1"}, None), ({"preserved.instance.id.generator": "snowflake"}, "snowflake")],
)
def test_host_json_shows_the_id_generator_if_metadata_is_empty_or_names_it(
    metadata: dict[str, str], generator: Any
) -> None:
    assert host_json(instance(metadata=metadata), KEY).get("instanceIdGenerator") == generator


def test_host_json_takes_heartbeat_times_from_the_metadata() -> None:
    times = {"preserved.heart.beat.interval": "1000", "preserved.heart.beat.timeout": "x"}
    host = host_json(instance(metadata=times), KEY)
    assert (host["instanceHeartBeatInterval"], host["instanceHeartBeatTimeOut"], host["ipDeleteTimeout"]) == (
        1000,
        15000,
        30000,
    )


def test_host_json_has_unknown_fields_last_and_they_replace_none() -> None:
    host = host_json(instance(extra={"zone": {"a": [1]}, "ip": "9.9.9.9"}), KEY)
    assert list(host)[-1] == "zone" and host["zone"] == {"a": [1]} and host["ip"] == "10.0.0.1"


@given(LISTED, KEYS)
def test_read_host_reads_what_host_json_wrote(host: Instance, key: ServiceKey) -> None:
    assert read_host(json.loads(json.dumps(host_json(host, key))), key.grouped) == host


@pytest.mark.parametrize("name", ["nacos-2.5.1", "nacos-3.0.3", "r-nacos-0.8.8"])
def test_read_host_knows_every_field_of_real_servers(name: str) -> None:
    seen = 0
    for row in load(name):
        answer = row.body.get("data", row.body) if isinstance(row.body, dict) else {}
        if isinstance(answer, dict) and isinstance(answer.get("hosts"), list):
            key = ServiceKey.of(answer["name"])
            listing = read_listing(key, answer)
            assert dict(listing.snapshot.extra) == {}
            for found in listing.snapshot.instances:
                assert (found.instance_id, dict(found.extra)) == ("", {})
                seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"instanceId": ID}, "instance_id", ""),
        ({"instanceId": "10.0.0.1#80"}, "instance_id", ""),
        ({"instanceId": "7#DEFAULT#g@@s"}, "instance_id", "7#DEFAULT#g@@s"),
        ({"instanceId": None}, "instance_id", ""),
        ({"valid": False}, "healthy", False),
        ({"valid": True, "healthy": False}, "healthy", False),
        ({}, "healthy", True),
        ({"enabled": False}, "enabled", False),
        ({"ephemeral": False}, "ephemeral", False),
        ({"weight": 2}, "weight", 2.0),
        ({"weight": "NaN"}, "weight", 0.0),
        ({"weight": "3.5"}, "weight", 3.5),
        ({"weight": None}, "weight", 1.0),
        ({"port": "8080"}, "port", 8080),
        ({"clusterName": ""}, "cluster", "DEFAULT"),
        ({"clusterName": None}, "cluster", "DEFAULT"),
        ({"metadata": None}, "metadata", {}),
        ({"marked": True, "service": "x", "dom": "y"}, "extra", {}),
        ({"zone": "z"}, "extra", {"zone": "z"}),
        ({"zone": "z", "deep": NESTED}, "extra", {"zone": "z"}),
    ],
)
def test_read_host_accepts_every_spelling(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(read(**fields), name) == value


def test_read_listing_keeps_unknown_fields_unless_they_cannot_be_written() -> None:
    listed = {"name": KEY.grouped, "hosts": [], "own": 1, "deep": NESTED}
    found = read_listing(KEY, read_json(json.dumps(listed)))
    assert dict(found.snapshot.extra) == {"own": 1}
    assert found.snapshot.revision


@pytest.mark.parametrize("moment", [2**63, 2**64 - 1, -1, 1.5])
def test_read_listing_ignores_a_time_outside_of_javas_long(moment: float) -> None:
    """The next change added 1 to 2^64 - 1, and the list could no longer be written."""
    found = read_listing(KEY, {"hosts": [], "lastRefTime": moment, "cacheMillis": moment}).snapshot
    assert (found.last_ref_time, found.cache_millis) == (0, 10_000)


def test_read_metadata_makes_scalars_text() -> None:
    assert read_metadata({"a": 1, "b": True, "c": False, "d": None, "e": "x"}) == {
        "a": "1",
        "b": "true",
        "c": "false",
        "d": None,
        "e": "x",
    }


@pytest.mark.parametrize(
    "host",
    [
        None,
        [],
        "x",
        {"ip": "10.0.0.1"},
        {"ip": 1, "port": 80},
        bare(port="x"),
        bare(port=None),
        bare(port=True) | {"port": [1]},
        bare(clusterName=5),
        bare(instanceId=[1]),
        bare(metadata="a=b"),
        bare(metadata={"a": {}}),
    ],
)
def test_read_host_refuses_what_is_not_a_host(host: Any) -> None:
    with pytest.raises(Malformed):
        read_host(host, KEY.grouped)


def test_list_json_echoes_clusters_and_shows_protection() -> None:
    shown = snapshot(instance(healthy=False), threshold=0.5)
    answer = list_json(ServiceView(shown, shown.select()), "c1, c2")
    assert list(answer) == [
        "name",
        "groupName",
        "clusters",
        "cacheMillis",
        "hosts",
        "lastRefTime",
        "checksum",
        "allIPs",
        "reachProtectionThreshold",
        "valid",
    ]
    assert (answer["clusters"], answer["reachProtectionThreshold"], answer["lastRefTime"]) == (
        "c1, c2",
        True,
        1_795_519_064_000,
    )
    listing = read_listing(KEY, answer)
    assert listing.protected and listing.snapshot.masking


@given(SNAPSHOTS)
def test_read_listing_reads_any_list_json(before: Any) -> None:
    view = ServiceView(before, before.select())
    listing = read_listing(before.key, json.loads(json.dumps(list_json(view, ""))))
    assert listing.snapshot == before
    assert listing.snapshot.last_ref_time == before.last_ref_time
    assert not listing.protected


def test_read_listing_reads_the_empty_answer_of_1_4_6() -> None:
    found = read_listing(KEY, {"name": KEY.grouped, "clusters": "", "cacheMillis": 3000, "hosts": []}).snapshot
    assert (found.instances, found.cache_millis, found.last_ref_time) == ((), 3000, 0)


@pytest.mark.parametrize("value", [None, [], {}, {"hosts": None}, {"hosts": [None]}, {"hosts": {}}])
def test_read_listing_refuses_what_is_not_a_list(value: Any) -> None:
    with pytest.raises(Malformed):
        read_listing(KEY, value)


def test_write_statuses_shows_every_instance() -> None:
    shown = snapshot(instance(), instance("10.0.0.2", healthy=False, enabled=False))
    view = ServiceView(shown, shown.select())
    assert read_json(write_statuses(None, view).body) == {"ips": ["10.0.0.1:80_true", "10.0.0.2:80_false"]}


@given(
    st.builds(
        BeatResult,
        st.sampled_from([BEAT_OK, BEAT_NOT_FOUND, 10201]),
        st.integers(0, 10**9),
        st.booleans(),
        st.dictionaries(st.just("x"), st.integers(), max_size=1),
    )
)
def test_read_beat_result_reads_any_write_beat(beat: BeatResult) -> None:
    answer = read_json(write_beat(None, beat).body)
    assert list(answer)[:3] == ["clientBeatInterval", "code", "lightBeatEnabled"]
    assert read_beat_result(answer) == beat


def test_read_beat_result_reads_the_answer_of_1_4_6() -> None:
    assert read_beat_result({"code": 20404, "clientBeatInterval": 5000}) == BeatResult(BEAT_NOT_FOUND)


@pytest.mark.parametrize("value", [None, [], {}, {"code": "x"}, {"code": 10200, "clientBeatInterval": None}])
def test_read_beat_result_refuses_what_is_not_one(value: Any) -> None:
    with pytest.raises(Malformed):
        read_beat_result(value)


# --- what cannot be read, and what nobody asked for


@pytest.mark.parametrize(
    "odd",
    [
        {"port": 0, "instanceId": "null#0"},
        {"ip": None, "port": 80},
        {"ip": "", "port": 80},
        {"ip": " ", "port": 80},
        {"ip": "10.0.0.2"},
        {"ip": "10.0.0.2", "port": 70000},
        {"ip": "10.0.0.2", "port": -1},
        {"ip": "10.0.0.2", "port": "70000"},
        {"ip": "10.0.0.2", "port": True},
        {"ip": "10.0.0.2", "port": []},
        {"ip": ["10.0.0.2"], "port": 80},
        {"ip": "10.0.0.2", "port": 80, "metadata": "none"},
        {"ip": "10.0.0.2", "port": 80, "metadata": {"a": {}}},
        {"ip": "10.0.0.2", "port": 80, "clusterName": ["c1"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2 * LARGE])
def test_read_each_leaves_out_only_unreadable_hosts(odd: dict[str, Any], size: int) -> None:
    well = [bare(port=port) for port in range(1, size)]
    listed = read_listing(KEY, {"name": KEY.grouped, "hosts": [*well, odd]}).snapshot
    assert [i.port for i in listed.instances] == list(range(1, size))
    (said,) = listed.unreadable
    assert str(odd)[:40] in said and len(said) <= 200
    assert listed == snapshot(*listed.instances)  # what cannot be read is no change to anybody


@pytest.mark.parametrize("hosts", [[1], [None, "x"], [[]], [{}], [{"a": 1}, {"b": 2}]], ids=str)
def test_read_each_refuses_a_list_in_which_no_item_looks_like_a_host(hosts: list[Any]) -> None:
    with pytest.raises(Malformed, match="no item of the list is a host"):
        read_each(hosts, KEY)


def test_read_each_keeps_equal_metadata_of_successive_hosts_once() -> None:
    hosts = [
        bare(ip=f"10.0.0.{n}", metadata=dict(given)) for n, given in enumerate(({"a": 1}, {"a": 1}, {}, {"a": "1"}))
    ]
    first, second, empty, last = (i.metadata for i in read_each(read_json(json.dumps(hosts)), KEY).instances)
    assert (first, second, empty, last) == ({"a": "1"}, {"a": "1"}, {}, {"a": "1"})
    same = read_each(read_json(json.dumps([bare(metadata={"a": "1"})] * 2)), KEY).instances
    assert same[0].metadata is same[1].metadata


def test_read_each_leaves_out_what_is_not_a_host() -> None:
    found = read_each([1, bare(), None], KEY)
    assert [i.ip for i in found.instances] == ["10.0.0.1"] and len(found.unreadable) == 2


@pytest.mark.parametrize(
    "said",
    [
        {"name": "DEFAULT_GROUP@@carts"},
        {"name": "G2@@orders"},
        {"dom": "carts"},
        {"name": KEY.grouped, "hosts": [bare(serviceName="carts")]},
        {"name": KEY.grouped, "hosts": [bare(), bare(serviceName="G2@@orders")]},
    ],
    ids=str,
)
def test_read_listing_raises_misplaced_for_another_service(said: dict[str, Any]) -> None:
    with pytest.raises(Misplaced, match="asked for 'DEFAULT_GROUP@@orders', but the answer is about"):
        read_listing(KEY, {"hosts": [], **said})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"name": "orders", "dom": "orders"},
        {"name": None, "dom": ""},
        {"name": KEY.grouped, "dom": KEY.grouped},
        {"name": 1, "hosts": [bare(serviceName=None), bare(serviceName="orders"), bare(serviceName=KEY.grouped)]},
    ],
    ids=str,
)
def test_read_listing_accepts_every_spelling_of_the_service(said: dict[str, Any]) -> None:
    read_listing(KEY, {"hosts": [], **said})


@pytest.mark.parametrize(
    "said",
    [{"service": "carts"}, {"serviceName": "G2@@orders"}, {"ip": "10.0.0.2"}, {"port": 81}],
    ids=str,
)
def test_read_requested_raises_misplaced_for_another_instance(said: dict[str, Any]) -> None:
    call = GetInstance(KEY, "10.0.0.1", 80)
    assert read_requested(call, bare(clusterName="c1")).cluster == "c1"  # r-nacos takes the cluster for a hint
    with pytest.raises(Misplaced):
        read_requested(call, bare(**said))


# --- large services


MANY = [instance(f"10.1.0.{number}") for number in range(LARGE)]


@given(st.lists(LISTED, max_size=3), KEYS)
def test_hosts_json_of_a_large_service_equals_host_json_of_each(some: list[Instance], key: ServiceKey) -> None:
    hosts = [*MANY, *some]
    one_by_one = dumps([host_json(host, key) for host in hosts])
    assert [dumps(hosts_json(hosts, key)) for _ in range(2)] == [one_by_one, one_by_one]


@given(st.lists(LISTED, max_size=3), KEYS)
def test_read_each_of_a_large_service_equals_read_host_of_each(some: list[Instance], key: ServiceKey) -> None:
    hosts = json.loads(json.dumps([host_json(host, key) for host in [*MANY, *some]]))
    assert read_each(hosts, key) == Hosts((*MANY, *some))
    assert read_each(hosts, key) == Hosts((*MANY, *some))


@pytest.mark.parametrize(
    ("fields", "other"),
    [
        ({"weight": 1}, {"weight": 2}),
        ({"healthy": True}, {"healthy": 1}),
        ({"valid": True}, {"valid": False}),
        ({"enabled": True}, {"enabled": False}),
        ({"ephemeral": True}, {"ephemeral": False}),
        ({"metadata": {"a": "1"}}, {"metadata": {"a": 1}}),
        ({"metadata": {"a": "1"}}, {"metadata": {"a": "2"}}),
        ({"metadata": {"a": "1"}}, {}),
        ({"instanceId": ID}, {"instanceId": "other"}),
        ({"zone": 1}, {"zone": True}),
        ({}, {"zone": 1}),
    ],
)
def test_hosts_json_of_a_large_service_never_confuses_hosts(fields: dict[str, Any], other: dict[str, Any]) -> None:
    around = [json.loads(json.dumps(host_json(host, KEY))) for host in MANY]
    for given_now in (fields, other, fields, other):
        host = read_each([*around, bare(**given_now)], KEY).instances[-1]
        assert host == read(**given_now)
        assert dumps(hosts_json([*MANY, host], KEY)[-1]) == dumps(host_json(host, KEY))


def test_read_each_reuses_unchanged_instances_of_a_large_service() -> None:
    hosts = [host_json(host, KEY) for host in MANY]
    first = read_each(hosts, KEY).instances
    changed = read_each([{**hosts[0], "weight": 7.0}, *hosts[1:]], KEY).instances
    assert changed[0].weight == 7.0
    assert all(before is after for before, after in zip(first[1:], changed[1:], strict=True))


def test_hosts_json_of_a_large_service_keeps_the_type_of_equal_numbers() -> None:
    for weight in (1.0, 1, 1.0):
        host = instance(weight=weight)
        assert dumps(hosts_json([*MANY, host], KEY)[-1]) == dumps(host_json(host, KEY))

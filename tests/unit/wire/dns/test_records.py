from __future__ import annotations

import struct
from ipaddress import ip_address

import dns.name
import dns.rdata
import pytest
from dns.rdataclass import IN
from dns.rdatatype import AAAA, NS, SOA, SRV, TXT, A
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.dns.names import parse_zone
from nacos_proxy.wire.dns.records import (
    MAX_TEXT,
    MAX_WEIGHT,
    MIN_WEIGHT,
    Record,
    address_record,
    address_records,
    carried,
    pointer_records,
    service_records,
    srv_weights,
    text_records,
    zone_records,
)
from tests.helpers.build import instance

ZONE = parse_zone("nacos")


def text_of(record: Record) -> str:
    return dns.rdata.from_wire(IN, record.rdtype, record.rdata, 0, len(record.rdata)).to_text()


def test_carried_leaves_out_what_is_neither_an_address_nor_a_name() -> None:
    kept = carried([instance("10.0.0.1"), instance("a;b"), instance("db.local"), instance("::1", weight=float("inf"))])
    assert [i.ip for i in kept] == ["10.0.0.1", "db.local"]


def test_address_records_have_each_address_of_their_family_once() -> None:
    hosts = [instance("10.0.0.1", 80), instance("10.0.0.1", 81), instance("[2001:DB8::7]"), instance("db.local")]
    assert list(map(text_of, address_records(hosts, A))) == ["10.0.0.1"]
    assert list(map(text_of, address_records(hosts, AAAA))) == ["2001:db8::7"]


def test_service_records_carry_priority_weight_port_and_the_address_of_their_target() -> None:
    near = [instance("10.0.0.1", 80, weight=2.0), instance("db.local", 81), instance("10.0.0.9", 0)]
    tiers = service_records([near, [instance("2001:db8::7", 82)]], ZONE)
    assert [list(map(text_of, tier)) for tier in tiers] == [
        ["1 12800 80 0a000001.addr.nacos.", "1 6400 81 db.local."],
        ["2 6400 82 20010db8000000000000000000000007.addr.nacos."],
    ]
    assert [record.glue for record in tiers[0]] == [address_record(ip_address("10.0.0.1")), None]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([], []),
        ([1.0, 2.0, 0.5], [6400, 12800, 3200]),
        ([0.001], [MIN_WEIGHT]),
        ([10.2], [MAX_WEIGHT]),
        ([100.0, 50.0], [MAX_WEIGHT, MAX_WEIGHT // 2]),  # above the greatest weight, the ratio stays
    ],
)
def test_srv_weights_keep_their_ratio_in_haproxy(weights: list[float], expected: list[int]) -> None:
    assert srv_weights(weights) == expected


@given(st.lists(st.floats(1e-300, 1e300), max_size=9))
def test_srv_weights_fit_and_keep_the_order(weights: list[float]) -> None:
    found = srv_weights(weights)
    assert all(MIN_WEIGHT <= weight <= MAX_WEIGHT for weight in found)
    pairs = sorted(zip(weights, found, strict=True))
    assert [weight for _, weight in pairs] == sorted(found)


def test_text_records_quote_as_rfc_1464_and_leave_out_what_does_not_fit() -> None:
    metadata = {"zone": "a", "a=b`": 'x"y', "null": None, "long": "x" * 300}
    (record,) = text_records([instance("10.0.0.1", 80, metadata=metadata)])
    assert text_of(record) == '"instance=10.0.0.1:80" "a`=b``=x\\"y" "null=" "zone=a"'
    many = {f"key{n}": "x" * 200 for n in range(20)}
    (record,) = text_records([instance(metadata=many)])
    assert MAX_TEXT - 256 < len(record.rdata) <= MAX_TEXT


def test_zone_records_have_soa_and_ns() -> None:
    assert [text_of(r) for r in zone_records(ZONE, SOA)] == ["ns.nacos. hostmaster.nacos. 1 3600 600 86400 0"]
    assert [text_of(r) for r in zone_records(ZONE, NS)] == ["ns.nacos."]
    assert zone_records(ZONE, TXT) == []


def test_pointer_records_have_each_name_once() -> None:
    assert [text_of(r) for r in pointer_records([dns.name.from_text("a.nacos.")] * 2)] == ["a.nacos."]


def test_service_records_of_the_largest_service_are_unique() -> None:
    (tier,) = service_records([[instance("10.0.0.1"), instance("10.0.0.1", cluster="B")]], ZONE)
    assert [struct.unpack_from("!HHH", record.rdata) for record in tier] == [(1, 6400, 80)]
    assert tier[0].rdtype == SRV

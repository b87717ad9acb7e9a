from __future__ import annotations

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.dns import messages
from nacos_proxy.wire.dns.messages import MAX_TCP, MAX_UDP, MIN_UDP, Answer, Faulty, Query
from nacos_proxy.wire.dns.names import parse_zone
from nacos_proxy.wire.dns.records import Record, service_records
from tests.helpers.build import instance

ZONE = parse_zone("nacos")


def packet(name: str = "oRders.nacos.", rdtype: str = "SRV", **fields: Any) -> bytes:
    return dns.message.make_query(name, rdtype, **fields).to_wire()


def many(number: int) -> list[Record]:
    hosts = [instance(f"10.0.{n // 250}.{n % 250 + 1}") for n in range(number)]
    return [record for tier in service_records([hosts], ZONE) for record in tier]


def written(query: Query, answer: Answer, limit: int = MAX_TCP) -> dns.message.Message:
    message, truncated = messages.write(query, answer, limit)
    assert len(message) <= limit
    parsed = dns.message.from_wire(message)
    assert bool(parsed.flags & dns.flags.TC) is truncated
    return parsed


def faulty(data: bytes) -> Faulty:
    with pytest.raises(Faulty) as caught:
        messages.read(data)
    return caught.value


def test_read_finds_question_and_edns() -> None:
    query = messages.read(packet(use_edns=0, payload=4096))
    assert (query.name.to_text(), query.rdtype.name, query.payload, query.edns) == ("oRders.nacos.", "SRV", 4096, True)
    assert not query.optioned
    bare = messages.read(packet())
    assert (bare.payload, bare.edns, bare.recursion) == (MIN_UDP, False, True)
    assert messages.read(packet(use_edns=0, payload=100)).payload == MIN_UDP


def test_read_sees_options() -> None:
    assert messages.read(packet(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")])).optioned


RESPONSE = messages.write(Query(1, ZONE, dns.rdatatype.A, True), Answer(), MIN_UDP)[0]


@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\0\1\x80\0" + bytes(8), RESPONSE])
def test_read_of_no_query_deserves_no_answer(data: bytes) -> None:
    assert faulty(data).rcode is None


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"\0\1\x28\0" + bytes(8), dns.rcode.NOTIMP),  # UPDATE
        (b"\0\1\0\0" + bytes(8), dns.rcode.FORMERR),  # no question
        (b"\0\1\0\0\0\2\0\0\0\0\0\0" + b"\0\0\1\0\1" * 2, dns.rcode.FORMERR),
        (b"\0\1\0\0\0\1\0\0\0\0\0\0", dns.rcode.FORMERR),  # cut off
        (b"\0\1\0\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),  # a pointer to itself
        (packet() + b"x", dns.rcode.FORMERR),
        (packet(rdtype="AXFR"), dns.rcode.REFUSED),
        (packet(rdtype="TKEY"), dns.rcode.NOTIMP),
        (packet(rdtype="OPT"), dns.rcode.NOTIMP),
        (packet(rdclass="CH"), dns.rcode.REFUSED),
        (packet(use_edns=1), dns.rcode.BADVERS),
    ],
)
def test_read_of_a_faulty_query_says_what_to_answer(data: bytes, rcode: dns.rcode.Rcode) -> None:
    fault = faulty(data)
    assert fault.rcode == rcode
    answer = dns.message.from_wire(messages.refusal(data, fault))
    assert (answer.id, answer.rcode()) == (int.from_bytes(data[:2], "big"), rcode)
    assert answer.flags & dns.flags.QR
    assert answer.opcode() == data[2] >> 3 & 0xF


def test_write_echoes_the_name_in_its_case_with_aa_and_without_ra() -> None:
    answer = written(messages.read(packet(use_edns=0)), Answer(records=many(2), ttl=3, zone=ZONE))
    assert answer.question[0].name.labels[0] == b"oRders"
    assert answer.flags & ~dns.flags.RD == dns.flags.QR | dns.flags.AA
    assert [rrset.ttl for rrset in answer.answer] == [3]
    assert [str(rrset[0]) for rrset in answer.additional] == ["10.0.0.1", "10.0.0.2"]
    assert (answer.edns, answer.payload) == (0, MAX_UDP)
    assert written(messages.read(packet()), Answer(zone=ZONE)).edns == -1


def test_write_of_a_negative_answer_has_the_soa_with_its_minimum_as_ttl() -> None:
    answer = written(messages.read(packet()), Answer(dns.rcode.NXDOMAIN, zone=ZONE))
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert [(rrset.ttl, rrset[0].minimum) for rrset in answer.authority] == [(0, 0)]
    assert written(messages.read(packet()), messages.SERVFAIL).authority == []


@given(st.integers(0, 400), st.integers(MIN_UDP, 20_000), st.booleans())
def test_write_fits_and_keeps_the_addresses_of_its_targets_only(number: int, limit: int, edns: bool) -> None:
    query = messages.read(packet(use_edns=0 if edns else -1))
    answer = written(query, Answer(records=many(number), zone=ZONE), limit)
    targets = [str(rdata.target) for rrset in answer.answer for rdata in rrset]
    assert [str(rrset.name) for rrset in answer.additional] == targets
    assert (len(targets) < number) is bool(answer.flags & dns.flags.TC)
    assert edns is (answer.edns == 0)


def test_write_leaves_out_an_soa_that_does_not_fit() -> None:
    zone = parse_zone(".".join(["z" * 60] * 3))
    answer = written(messages.read(packet(f"orders.{zone}")), Answer(dns.rcode.NXDOMAIN, zone=zone), MIN_UDP)
    assert (answer.rcode(), answer.authority) == (dns.rcode.NXDOMAIN, [])


def test_write_of_long_messages_names_targets_beyond_the_reach_of_pointers() -> None:
    answer = written(messages.read(packet()), Answer(records=many(1000), zone=ZONE))
    assert len(answer.answer[0]) > 900
    assert str(answer.additional[-1].name) == str(list(answer.answer[0])[-1].target)


@given(st.binary(max_size=100), st.sampled_from([b"", packet()[:12], packet(use_edns=0)[:-8], packet()[:-1]]))
def test_read_of_any_bytes_is_a_query_or_faulty(data: bytes, start: bytes) -> None:
    whole = start + data
    try:
        query = messages.read(whole)
    except Faulty as fault:
        if fault.rcode is not None:
            assert dns.message.from_wire(messages.refusal(whole, fault)).flags & dns.flags.QR
    else:
        written(query, Answer(zone=ZONE))

"""UDP datagrams: who gets one, what is in it, what counts as its acknowledgement."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.nacos.udp import (
    GZIP_FROM,
    MAX_DATAGRAM,
    MAX_UNPACKED,
    Push,
    qualifies,
    read_ack,
    read_push,
    write_ack,
    write_push,
)


@pytest.mark.parametrize(
    ("agent", "wanted"),
    [
        ("Nacos-Java-Client:v1.4.6", True),
        ("Nacos-Java-Client:v0.0.9", False),
        ("Nacos-Java-Client", False),
        ("Nacos-Go-Client:v1.0.1", True),
        ("Nacos-C-Client:v1.0.11", False),
        ("Nacos-C-Client:v1.0.12", True),
        ("vip-client4cpp:v2.0", True),
        ("Nacos-CSharp-Client:v0.9", True),
        ("Nacos-DNS:v0.4.2", False),
        ("Nacos-DNS:v0.4.3", True),
        ("Nacos-Python-Client:v0.1.16", False),
        ("curl/8.0", False),
        ("", False),
    ],
)
def test_qualifies_only_for_clients_to_which_real_servers_push(agent: str, wanted: bool) -> None:
    assert qualifies(agent) is wanted


def test_write_push_keeps_a_short_list_as_plain_json() -> None:
    packet = write_push(b'{"hosts":[]}', 7)
    assert packet is not None
    assert json.loads(packet) == {"type": "dom", "data": '{"hosts":[]}', "lastRefTime": 7}


def test_write_push_compresses_a_longer_list() -> None:
    text = json.dumps({"hosts": ["x" * 50] * 40}).encode()
    packet = write_push(text, 7)
    assert packet is not None
    assert packet[:2] == b"\x1f\x8b"
    assert json.loads(json.loads(gzip.decompress(packet))["data"]) == json.loads(text)


def test_write_push_gives_none_for_a_list_too_large_for_a_datagram() -> None:
    import random

    noise = random.Random(1).randbytes(2 * MAX_DATAGRAM).hex().encode()
    assert len(noise) > GZIP_FROM
    assert write_push(noise, 1) is None


@given(st.binary(max_size=200))
def test_read_ack_accepts_any_bytes(packet: bytes) -> None:
    assert read_ack(packet) is None or isinstance(read_ack(packet), int)


@pytest.mark.parametrize("number", [12, '"12"'])
def test_read_ack_reads_the_reference_as_number_or_text(number: object) -> None:
    assert read_ack(f'{{"type":"push-ack","lastRefTime":{number},"data":""}}'.encode()) == 12


def test_read_ack_gives_none_for_other_messages() -> None:
    assert read_ack(b'{"type":"dump","lastRefTime":12}') is None


@given(st.text(max_size=2000), st.integers(0, 2**63 - 1))
def test_read_push_and_read_ack_read_any_written_packet(name: str, reference: int) -> None:
    packet = write_push(json.dumps({"name": name, "hosts": []}).encode(), reference)
    assert packet is not None
    assert read_push(packet) == Push(name, str(reference))
    assert read_ack(write_ack(str(reference))) == reference


@given(st.binary(max_size=200))
def test_read_push_accepts_any_bytes(packet: bytes) -> None:
    assert read_push(packet) is None
    assert read_push(b"\x1f\x8b" + packet) is None


def test_read_push_gives_none_for_a_datagram_that_unpacks_without_end() -> None:
    assert read_push(gzip.compress(b'{"type":"dom","data":"' + b" " * 2 * MAX_UNPACKED + b'"}')) is None

"""The payload codec, compared with protobuf."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import Malformed
from nacos_proxy.wire.nacos.grpc.payload import MAX_FIELDS, Payload, read_payload, write_payload
from tests.helpers.grpc_recordings import FILES, exchanges, streamed

# --- the oracle ------------------------------------------------------------------------------------------------------


def _message_class() -> Any:
    """`Payload` of Nacos's `nacos_grpc_service.proto`, as a class of protobuf."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="payload.proto", package="t", syntax="proto3")
    anything = file.message_type.add(name="Any")
    anything.field.add(name="type_url", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    anything.field.add(name="value", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    metadata = file.message_type.add(name="Metadata")
    entry = metadata.nested_type.add(name="HeadersEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    metadata.field.add(name="type", number=3, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    metadata.field.add(
        name="headers",
        number=7,
        type=field.TYPE_MESSAGE,
        type_name=".t.Metadata.HeadersEntry",
        label=field.LABEL_REPEATED,
    )
    metadata.field.add(name="clientIp", number=8, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    payload = file.message_type.add(name="Payload")
    for name, number, kind in (("metadata", 2, ".t.Metadata"), ("body", 3, ".t.Any")):
        payload.field.add(name=name, number=number, type=field.TYPE_MESSAGE, type_name=kind, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Payload"))


ProtoPayload = _message_class()


def by_protobuf(payload: Payload, type_url: str = "") -> bytes:
    metadata = {"type": payload.type, "headers": dict(payload.headers), "clientIp": payload.client_ip}
    return ProtoPayload(metadata=metadata, body={"type_url": type_url, "value": payload.body}).SerializeToString()


def read_by_protobuf(data: bytes) -> Payload:
    found = ProtoPayload.FromString(data)
    return Payload(found.metadata.type, found.body.value, dict(found.metadata.headers), found.metadata.clientIp)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
PAYLOADS = st.builds(Payload, TEXT, st.binary(max_size=300), st.dictionaries(TEXT, TEXT, max_size=4), TEXT)

# --- tests -----------------------------------------------------------------------------------------------------------


@given(PAYLOADS)
def test_protobuf_reads_what_write_payload_writes(payload: Payload) -> None:
    assert read_by_protobuf(write_payload(payload)) == payload


@given(PAYLOADS, TEXT)
def test_read_payload_reads_what_protobuf_writes(payload: Payload, type_url: str) -> None:
    assert read_payload(by_protobuf(payload, type_url)) == payload


@given(PAYLOADS.filter(lambda payload: len(payload.headers) <= 1))
def test_write_payload_writes_the_bytes_of_protobuf(payload: Payload) -> None:
    """With at most one header, because protobuf does not order them; and always with a body, even an empty one."""
    assert write_payload(payload) == by_protobuf(payload)


@given(PAYLOADS, PAYLOADS)
def test_read_payload_merges_repeated_fields_as_protobuf(first: Payload, second: Payload) -> None:
    data = write_payload(first) + write_payload(second)
    assert read_payload(data) == read_by_protobuf(data)


@pytest.mark.parametrize("file", FILES)
def test_every_recorded_payload_is_read_as_it_was_written(file: str) -> None:
    sent = [message for exchange in exchanges(file) for message in (exchange.request, exchange.answer)]
    for message in (*sent, *streamed(file)):
        assert read_payload(write_payload(message.payload)) == message.payload


def test_read_payload_skips_unknown_fields() -> None:
    unknown = b"\x08\x96\x01" + b"\x21" + bytes(8) + b"\x2d" + bytes(4) + b"\x7a\x02hi"
    payload = Payload("T", b"{}", {"a": "b"}, "10.0.0.1")
    assert read_payload(unknown + write_payload(payload) + unknown) == payload


def test_read_payload_of_no_bytes_is_a_payload_without_a_type() -> None:
    assert read_payload(b"") == Payload("", b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x12", "ends within a number"),
        (b"\x12\x05ab", "ends within a field"),
        (b"\x29\x00", "ends within a field"),
        (b"\x80" * 11 + b"\x01", "longer than 64 bits"),
        (b"\x02\x00", "impossible number"),
        (b"\x0b", "wire type 3"),
        (b"\x12\x03\x1a\x01\xff", "not UTF-8"),
        (b"\x10\x00" * (MAX_FIELDS + 1), f"more than {MAX_FIELDS} fields"),
    ],
)
def test_read_payload_refuses_what_is_no_payload(data: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        read_payload(data)


def test_read_payload_counts_the_fields_at_all_depths() -> None:
    """Otherwise a message of 10 MiB would take seconds."""
    entry = b"\x3a\x00"
    metadata = entry * 1000
    data = b"".join(b"\x12\xd0\x0f" + metadata for _ in range(500))
    with pytest.raises(Malformed, match="fields"):
        read_payload(data)


CASES = 30_000


def test_hostile_payloads_are_read_as_by_protobuf_or_refused() -> None:
    """Damaged payloads. Where both can read one, they read the same; where protobuf cannot, neither can we."""
    choose = random.Random(1)
    seeds = [
        write_payload(message.payload)
        for file in FILES
        for exchange in exchanges(file)[:12]
        for message in (exchange.request, exchange.answer)
    ]
    read = 0
    for _ in range(CASES):
        data = bytearray(choose.choice(seeds)[:400])
        for _ in range(choose.randint(1, 4)):
            place = choose.randrange(len(data) + 1)
            match choose.randrange(4):
                case 0:
                    data[place : place + 1] = bytes([choose.randrange(256)])
                case 1:
                    del data[place : place + choose.randint(1, 8)]
                case 2:
                    data[place:place] = choose.randbytes(choose.randint(1, 8))
                case _:
                    data[place:place] = data[: choose.randint(0, 30)]
        text = bytes(data)
        try:
            found = read_payload(text)
        except Malformed:
            continue
        read += 1
        try:
            expected = read_by_protobuf(text)
        except DecodeError as error:
            raise AssertionError(text) from error
        assert found == expected, text
    assert read > CASES / 20

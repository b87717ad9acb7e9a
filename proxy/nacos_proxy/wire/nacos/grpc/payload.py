"""The one protobuf message of Nacos over gRPC, as bytes and as a value (nacos-grpc.md 2).

    Payload { Metadata metadata = 2; Any body = 3; }
    Metadata { string type = 3; map<string, string> headers = 7; string clientIp = 8; }
    Any { string type_url = 1; bytes value = 2; }

Written by hand, because it is these three messages only, and protobuf for Python would be one more dependency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

from nacos_proxy.model.errors import Malformed
from nacos_proxy.model.services import EMPTY

GRPC_OFFSET = 1000  # from the HTTP port of a server to its gRPC port, as every SDK expects it (nacos-grpc.md 1)

# A message of 10 MiB can hold five million fields, and to read them takes seconds. Real clients send about ten.
MAX_FIELDS = 1000

_TEXT = 2  # the wire type of strings, bytes and messages
_FIXED = {1: 8, 5: 4}  # bytes of a value, by wire type


class Payload(NamedTuple):
    """`type` is the class name of a request or response, and `body` its JSON as UTF-8.

    `headers` are those of the payload, not of HTTP/2: `accessToken`, `app`. `client_ip` is what a client says of
    itself.
    """

    type: str
    body: bytes = b"{}"
    headers: Mapping[str, str] = EMPTY
    client_ip: str = ""


def read_payload(data: bytes) -> Payload:
    """Reads a payload as protobuf does: fields in any order, the last one wins, unknown ones are skipped.

    Stricter than protobuf: at most `MAX_FIELDS` fields in all, and no groups. Raises `Malformed`.
    """
    kind, client_ip, body = "", "", b""
    headers: dict[str, str] = {}
    budget = iter(range(MAX_FIELDS))
    for number, value in _fields(data, budget):
        if number == 2:
            for inner, item in _fields(value, budget):
                if inner == 3:
                    kind = _text(item)
                elif inner == 7:
                    entry = dict(_fields(item, budget))
                    headers[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
                elif inner == 8:
                    client_ip = _text(item)
        elif number == 3:
            for inner, item in _fields(value, budget):
                if inner == 2:
                    body = item
                elif inner == 1:
                    _text(item)
    return Payload(kind, body, headers or EMPTY, client_ip)


def _fields(data: bytes, budget: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Number and value of each string, bytes or message in a message. Other values are skipped."""
    at, end = 0, len(data)
    while at < end:
        if next(budget, None) is None:
            raise Malformed(f"a payload of more than {MAX_FIELDS} fields")
        tag, at = _varint(data, at)
        kind, number = tag & 7, tag >> 3
        if not 0 < number < 1 << 29:
            raise Malformed("a field of a payload has an impossible number")
        if kind == _TEXT:
            size, at = _varint(data, at)
            if size > end - at:
                raise Malformed("a payload ends within a field")
            yield number, data[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
            if at > end:
                raise Malformed("a payload ends within a field")
        else:
            raise Malformed(f"a field of a payload has wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, and the place behind it."""
    value = 0
    for shift, place in zip(range(0, 70, 7), count(at), strict=False):
        if place >= len(data):
            raise Malformed("a payload ends within a number")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
    raise Malformed("a number in a payload is longer than 64 bits")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"a text in a payload is not UTF-8: {error}") from error


def write_payload(payload: Payload) -> bytes:
    """Fields in the order of their numbers, empty ones left out, as protobuf writes them."""
    metadata = [_field(3, payload.type.encode())]
    for name, value in payload.headers.items():
        metadata.append(_entry(name, value))
    metadata.append(_field(8, payload.client_ip.encode()))
    return b"".join((*_message(2, metadata), *_message(3, [_field(2, payload.body)])))


def _entry(name: str, value: str) -> bytes:
    return b"".join(_message(7, [_field(1, name.encode(), always=True), _field(2, value.encode(), always=True)]))


def _field(number: int, value: bytes, *, always: bool = False) -> bytes:
    return b"".join(_message(number, [value])) if value or always else b""


def _message(number: int, parts: Iterable[bytes]) -> tuple[bytes, ...]:
    """The pieces of a field; `parts` are its value. `number` is at most 15."""
    parts = tuple(part for part in parts if part)
    return (bytes((number << 3 | _TEXT,)), _size(sum(map(len, parts))), *parts)


def _size(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)

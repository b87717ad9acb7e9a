"""HTTP/2 frames by hand, also wrong ones. Independent of `h2`; header blocks by `hpack`."""

from __future__ import annotations

from collections.abc import Sequence

from hpack import Encoder

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK, PADDED = 0x1, 0x4, 0x1, 0x8

REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/Request/request"),
    (b":authority", b"here"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
STREAM = (*REQUEST[:2], (b":path", b"/BiRequestStream/requestBiStream"), *REQUEST[3:])
RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return number(len(payload), 3) + bytes([kind, flags]) + number(stream) + payload


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big")


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(number(key, 2) + number(value) for key, value in pairs))


def headers(encoder: Encoder, stream: int, fields: Sequence[tuple[bytes, bytes]], flags: int = 0) -> bytes:
    return frame(HEADERS, END_HEADERS | flags, stream, encoder.encode(fields))


def message(body: bytes) -> bytes:
    """With the prefix that gRPC puts in front."""
    return b"\0" + number(len(body)) + body


def kinds(data: bytes) -> list[int]:
    """The types of the frames in `data`, which must be whole frames."""
    found: list[int] = []
    while data:
        found.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return found

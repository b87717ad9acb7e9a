"""Generated HTTP/2 conversations, right, odd and broken, for both roles: no exception, and nothing is left over."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from hpack import Encoder

from nacos_proxy.wire.http2 import (
    PREFACE,
    ClientEndpoint,
    Closing,
    Event,
    Limits,
    ServerEndpoint,
    StreamMessage,
    Unary,
)
from tests.helpers import frames

CASES = 26_000
SMALL = Limits(max_message=3000, max_partial=4000, max_streams=5)
FULL = Limits()
BODIES = (b"", b"m", b"m" * 5, b"m" * 100, b"m" * 5000)
NUMBERS = (0, 1, 2, 100, 16_384, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
ODD_FIELDS = (
    (b"content-length", b"5"),
    (b"content-length", b"-1"),
    (b"content-length", b"9" * 30),
    (b"Upper", b"x"),
    (b":bad", b"x"),
    (b":path", b""),
    (b"x\0", b"x"),
    (b"", b"x"),
    (b"connection", b"close"),
    (b"te", b"gzip"),
    (b"x", b"\xff\xfe\xb2"),
    (b"x", b"x" * 9000),
    (b"grpc-timeout", b"3S"),
    (b"grpc-encoding", b"gzip"),
    (b":status", b"\xb2"),
    (b"grpc-status", b"9" * 5000),
    (b"grpc-message", b"%ff%zz%"),
)

T = TypeVar("T")


class Peer:
    """What it says is broken in about one of `1 / badness` places."""

    def __init__(self, rng: random.Random, *, client: bool) -> None:
        self.rng = rng
        self.client = client
        self.badness = rng.choice((0.0, 0.02, 0.02, 0.2))
        self.encoder = Encoder()
        self.streams: list[int] = [] if client else [1, 3, 5]
        self.top = -1

    def says(self) -> bytes:
        out = [PREFACE] if self.client else []
        out.append(self.settings())
        out += (self.step() for _ in range(self.rng.randrange(1, 12)))
        data = bytearray(b"".join(out))
        if self.bad():
            position = self.rng.randrange(len(data))
            what = self.rng.randrange(3)
            if what == 0:
                data[position] = self.rng.randrange(256)
            elif what == 1:
                del data[position : position + self.rng.randrange(1, 9)]
            else:
                data[position:position] = self.rng.randbytes(self.rng.randrange(1, 9))
        return bytes(data)

    def bad(self) -> bool:
        return self.rng.random() < self.badness

    def pick(self, good: T, bad: Sequence[T]) -> T:
        return self.rng.choice(bad) if self.bad() else good

    def step(self) -> bytes:
        steps = (self.talk,) * 12 + (self.data,) * 6 + (self.reset, self.window, self.ping, self.settings)
        return self.pick(self.rng.choice(steps), (self.odd,))()

    def stream(self) -> int:
        return self.pick(self.rng.choice(self.streams or [1]), (0, 1, 2, 3, 7, self.top + 2, 2**31 - 1))

    def talk(self) -> bytes:
        if not self.client:
            fields = list(self.rng.choice((frames.RESPONSE, frames.RESPONSE, ((b"grpc-status", b"0"),))))
            if self.rng.random() < 0.3:
                fields.append((b"grpc-status", self.rng.choice((b"0", b"12", b"x"))))
            flags = frames.END_STREAM if len(fields) != 2 else 0
            return self.headers(self.stream(), fields, flags)
        self.top += 2
        self.streams = [*self.streams[-3:], self.top]
        unary = self.rng.random() < 0.7
        request = self.headers(self.top, list(frames.REQUEST if unary else frames.STREAM), 0)
        if self.rng.random() < 0.2:
            return request
        return request + frames.frame(frames.DATA, self.pick(int(unary), (0, 1, 8, 9)), self.top, self.message())

    def headers(self, stream: int, fields: list[tuple[bytes, bytes]], flags: int) -> bytes:
        if self.bad():
            fields.insert(self.rng.randrange(len(fields) + 1), self.rng.choice(ODD_FIELDS))
        if self.bad():
            del fields[self.rng.randrange(len(fields))]
        block = self.encoder.encode(fields)
        flags |= self.pick(frames.END_HEADERS, (0, 1, 0x20, 0x2C, 0x0C))
        return frames.frame(frames.HEADERS, flags, stream, block)

    def message(self) -> bytes:
        body = self.rng.choice(BODIES)
        whole = frames.message(body) * self.pick(1, (2, 3))
        return self.pick(whole, (b"\1" + whole[1:], b"\0\xff\xff\xff\xff", whole[: len(whole) // 2], whole + b"\0"))

    def data(self) -> bytes:
        whole, stream = self.message(), self.stream()
        cut = self.rng.randrange(len(whole) + 1)
        last = self.rng.choice((0, 0, frames.END_STREAM))
        return frames.frame(frames.DATA, 0, stream, whole[:cut]) + frames.frame(frames.DATA, last, stream, whole[cut:])

    def reset(self) -> bytes:
        return frames.frame(frames.RST_STREAM, 0, self.stream(), frames.number(self.rng.choice((0, 7, 8, 2**31))))

    def window(self) -> bytes:
        size = self.pick(self.rng.choice((1, 1000, 65_535)), NUMBERS)
        return frames.frame(frames.WINDOW_UPDATE, 0, self.rng.choice((0, self.stream())), frames.number(size))

    def ping(self) -> bytes:
        return frames.frame(frames.PING, self.rng.choice((0, frames.ACK)), 0, self.pick(b"12345678", (b"1", b"")))

    def settings(self) -> bytes:
        if self.rng.random() < 0.5:
            return self.pick(frames.settings(), (frames.frame(frames.SETTINGS, frames.ACK, 0), b""))
        key, value = self.rng.choice(((1, 0), (3, 2), (4, 0), (4, 100), (4, 2**20), (5, 16_384), (6, 100)))
        return frames.settings(self.pick((key, value), [(self.rng.randrange(9), self.rng.choice(NUMBERS))]))

    def odd(self) -> bytes:
        stream, block = self.stream(), self.encoder.encode(frames.REQUEST)
        return self.rng.choice(
            (
                frames.frame(frames.CONTINUATION, self.rng.choice((0, 4)), stream, block),
                frames.frame(frames.GOAWAY, 0, 0, frames.number(2**31 - 1) + frames.number(0) + b"bye"),
                frames.frame(frames.PRIORITY, 0, stream, frames.number(self.rng.choice((0, stream))) + b"\5"),
                frames.frame(frames.PUSH_PROMISE, 4, stream, frames.number(2) + block),
                frames.frame(10, 0, stream, self.rng.randbytes(self.rng.randrange(9))),
                frames.frame(self.rng.randrange(256), self.rng.randrange(256), stream, self.rng.randbytes(20)),
                frames.frame(frames.DATA, 0, stream, b"x" * 16_385),
                frames.frame(frames.DATA, frames.PADDED, stream, b"\xff" * 9),
            )
        )


class Held:
    """A shared budget that has no room now and then."""

    def __init__(self, rng: random.Random) -> None:
        self.bytes = 0
        self._rng = rng

    def __call__(self, size: int) -> bool:
        if size > 0 and self._rng.random() < 0.05:
            return False
        self.bytes += size
        assert self.bytes >= 0
        return True


def answer(endpoint: ServerEndpoint, event: Event, rng: random.Random) -> None:
    size = rng.choice((0, 10, 100_000))
    if isinstance(event, Unary) and rng.random() < 0.8:
        endpoint.answer(event.stream, b"a" * size)
    elif isinstance(event, Unary):
        endpoint.fail(event.stream, 3, "no")
    elif isinstance(event, StreamMessage):
        endpoint.send(event.stream, b"p" * size)
        if rng.random() < 0.1:
            endpoint.end(event.stream)


def drive(rng: random.Random) -> Counter[str]:
    """One conversation, in pieces."""
    client = rng.random() < 0.6  # what the peer is
    held, seen, now = Held(rng), Counter[str](), 0.0
    endpoint: ServerEndpoint | ClientEndpoint
    if client:
        endpoint = ServerEndpoint(limits=rng.choice((SMALL, FULL, FULL)), hold=held)
    else:
        endpoint = ClientEndpoint("here:1")
        endpoint.call(b"one")
        endpoint.send(endpoint.open(), b"m")
        endpoint.call(b"two" * rng.choice((1, 40_000)))
    said = Peer(rng, client=client).says()
    size = rng.choice((1, 7, 30, 1000, 100_000, 100_000)) if len(said) < 3000 else 100_000
    for start in range(0, len(said), size):
        now += 0.01
        for event in endpoint.receive(said[start : start + size], now):
            seen[type(event).__name__] += 1
            assert not isinstance(event, Closing) or endpoint.closed
            if isinstance(endpoint, ServerEndpoint):
                answer(endpoint, event, rng)
        if rng.random() < 0.7:
            endpoint.take()
        assert endpoint.queued >= 0
        assert endpoint.partial >= 0
    endpoint.close()
    endpoint.take()
    assert (endpoint.queued, endpoint.partial, held.bytes) == (0, 0, 0)
    return seen


def test_hostile_frames_raise_nothing_and_leave_nothing(rng: random.Random) -> None:
    seen = Counter[str]()
    for case in range(CASES):
        seed = rng.getrandbits(32)
        try:
            seen += drive(random.Random(seed))
        except Exception as error:
            raise AssertionError(f"case {case}, seed {seed}") from error
    for name in ("Unary", "StreamMessage", "Ended", "Answer", "Closing"):
        assert seen[name] > CASES / 100, seen

"""A lean gRPC client of Nacos for load: frames made by hand, answers only counted. Not for tests of the protocol.

Header blocks use no dynamic table, and received ones are not decoded. Windows are so large that none is ever closed.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MOST = 2**31 - 1
STREAM = 1  # the stream of the session; unary calls follow on 3, 5, …
_REQUEST_ID = re.compile(rb'"requestId": ?"([^"]+)"')


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def _text(prefix: bytes, *texts: bytes) -> bytes:
    return prefix + b"".join(bytes([len(text)]) + text for text in texts)


def headers(path: bytes, authority: bytes) -> bytes:
    """POST over http with what gRPC requires, each field a literal (RFC 7541 6.2.2) or from the static table."""
    return (
        b"\x83\x86"
        + _text(b"\x04", path)
        + _text(b"\x01", authority)
        + _text(b"\x0f\x10", b"application/grpc")
        + _text(b"\x00", b"te", b"trailers")
    )


def _field(number: int, data: bytes) -> bytes:
    length, rest = b"", len(data)
    while rest > 127:
        length += bytes([rest & 127 | 128])
        rest >>= 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + data


def message(kind: str, body: Mapping[str, Any]) -> bytes:
    """A `Payload` in gRPC's frame (nacos-grpc.md 2)."""
    text = json.dumps(body, separators=(",", ":")).encode()
    payload = _field(2, _field(3, kind.encode())) + _field(3, _field(2, text))
    return b"\x00" + struct.pack(">I", len(payload)) + payload


class GrpcConnection(asyncio.Protocol):
    """One session: set up on connecting. `pushed` gets each pushed message and when it came; it is acknowledged.

    `answered`: unary calls answered with success; `failed`: the others. `ready` is done when a health check succeeded.
    """

    def __init__(self, authority: str, pushed: Callable[[bytes, float], None] = lambda message, moment: None) -> None:
        self._head = headers(b"/Request/request", authority.encode())
        self._stream_head = headers(b"/BiRequestStream/requestBiStream", authority.encode())
        self._pushed = pushed
        self._next = STREAM + 2
        self._buffer = b""
        self._told = b""  # of the stream
        self._received = 0
        self._waiting: dict[int, Callable[[], None]] = {}
        self._good: set[int] = set()  # streams whose answer says so
        self.answered = self.failed = 0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = cast(asyncio.Transport, transport)  # of uvloop it has another type
        window = struct.pack(">HI", 4, MOST)
        setup = {"clientVersion": "Nacos-Java-Client:v2.5.1", "labels": {"source": "sdk", "module": "naming"}}
        self.transport.write(
            PREFACE
            + frame(SETTINGS, 0, 0, window)
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MOST - 65_535))
            + frame(HEADERS, END_HEADERS, STREAM, self._stream_head)
            + frame(DATA, 0, STREAM, message("ConnectionSetupRequest", {"headers": {}, "tenant": "", **setup}))
        )
        self._check()

    def _check(self) -> None:
        """Nacos knows a session only some milliseconds after its setup."""
        before = self.answered

        def checked() -> None:
            if self.ready.done():
                return
            if self.answered > before:
                self.answered = self.failed = 0
                self.ready.set_result(None)
            else:
                asyncio.get_running_loop().call_later(0.02, self._check)

        self.ask(message("HealthCheckRequest", {"headers": {}}), checked)

    def ask(self, request: bytes, done: Callable[[], None]) -> None:
        """Sends a prepared `message` as a unary call."""
        stream = self._next
        self._next += 2
        self._waiting[stream] = done
        assert self.transport is not None
        self.transport.write(frame(HEADERS, END_HEADERS, stream, self._head) + frame(DATA, END_STREAM, stream, request))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        while size - at >= 9:
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            end = at + 9 + length
            if end > size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._frame(kind, flags, stream, buffer[at + 9 : end], now)
            at = end
        self._buffer = buffer[at:]

    def _frame(self, kind: int, flags: int, stream: int, body: bytes, now: float) -> None:
        assert self.transport is not None
        if kind == DATA:
            self._received += len(body)
            if stream == STREAM:
                self._tell(body, now)
            elif b'"resultCode":200' in body or b'"resultCode": 200' in body:
                self._good.add(stream)
        elif kind == SETTINGS and not flags & ACK:
            self.transport.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, body))
        elif kind in (GOAWAY, RST_STREAM) and stream in (0, STREAM):
            self.transport.abort()
        if kind in (DATA, HEADERS, RST_STREAM) and (flags & END_STREAM or kind == RST_STREAM):
            done = self._waiting.pop(stream, None)
            if done is not None:
                self.answered += stream in self._good
                self.failed += stream not in self._good
                self._good.discard(stream)
                done()
        if self._received > 1 << 29:
            self.transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0

    def _tell(self, body: bytes, now: float) -> None:
        told = self._told + body
        while len(told) >= 5 and len(told) >= (end := 5 + int.from_bytes(told[1:5], "big")):
            payload, told = told[5:end], told[end:]
            self._pushed(payload, now)
            number = _REQUEST_ID.search(payload)
            if number is not None:
                kind = "ClientDetectionResponse" if b"ClientDetection" in payload else "NotifySubscriberResponse"
                result = {"resultCode": 200, "errorCode": 0, "success": True, "requestId": number[1].decode()}
                assert self.transport is not None
                self.transport.write(frame(DATA, 0, STREAM, message(kind, result)))
        self._told = told

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError("closed before it was set up"))
        for done in tuple(self._waiting.values()):
            self.failed += 1
            done()
        self._waiting.clear()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


async def connected(
    host: str, port: int, number: int, pushed: Callable[[bytes, float], None] = lambda message, moment: None
) -> list[GrpcConnection]:
    """Sets up `number` sessions, fifty at a time."""
    loop = asyncio.get_running_loop()
    made: list[GrpcConnection] = []
    while len(made) < number:
        some = min(50, number - len(made))
        opening = (
            loop.create_connection(lambda: GrpcConnection(f"{host}:{port}", pushed), host, port) for _ in range(some)
        )
        batch = [protocol for _, protocol in await asyncio.gather(*opening)]
        await asyncio.wait_for(asyncio.gather(*(connection.ready for connection in batch)), 60)
        made += batch
    return made


async def each(connections: list[GrpcConnection], request: bytes) -> None:
    """Makes one call on each connection, fifty at a time. Raises if one fails."""
    for first in range(0, len(connections), 50):
        waiting = []
        for connection in connections[first : first + 50]:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            connection.ask(request, lambda done=done: done.done() or done.set_result(None))  # type: ignore[misc]
            waiting.append(done)
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
    failed = sum(connection.failed for connection in connections)
    if failed:
        raise RuntimeError(f"{failed} of {len(connections)} calls failed")


def naming(kind: str, service: str, **fields: Any) -> bytes:
    """A prepared naming request about a service in the default group."""
    key = {"namespace": "public", "serviceName": service, "groupName": "DEFAULT_GROUP"}
    return message(kind, {"headers": {}, **key, **fields})

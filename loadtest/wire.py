"""Clients for what wrk cannot do: many event streams, and the latency of single calls. Bounded, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie; 0.0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Connection:
    """One keep-alive connection, one call at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one call."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        if method != "GET":  # clients send none with GET, and the proxy does not look up such a request
            head += f"Content-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        status, length, chunked = await _head(self._reader)
        if chunked:
            return status, await _chunks(self._reader)
        return status, await self._reader.readexactly(length)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Caller:
    """One keep-alive connection that blocks: a call costs little more than its system calls.

    Opens the connection at once. Raises `OSError` or, for an answer that is not 200 with a length, `RuntimeError`.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        self._host = parts.netloc
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, target: str) -> bytes:
        """The whole answer to a plain GET."""
        return self.ask(f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())

    def ask(self, request: bytes) -> bytes:
        """The whole answer to a whole request."""
        self._socket.sendall(request)
        answer = self._more(b"")
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer = self._more(answer)
        length = _LENGTH.search(answer[: end + 2])
        if length is None or not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered {answer[:end]!r}")
        while len(answer) < end + 4 + int(length[1]):
            answer = self._more(answer)
        return answer

    def _more(self, answer: bytes) -> bytes:
        piece = self._socket.recv(1 << 20)
        if not piece:
            raise ConnectionError("closed before the end of the answer")
        return answer + piece

    def close(self) -> None:
        self._socket.close()


async def at_once(url: str, calls: Sequence[tuple[str, str]], connections: int = 16) -> None:
    """Set-up: makes all calls (method, target) over some connections. Raises if one is not answered with 200."""
    left = iter(calls)

    async def worker() -> None:
        connection = Connection(url)
        try:
            for method, target in left:
                status, answer = await connection.ask(method, target)
                if status != 200:
                    raise RuntimeError(f"{method} {target}: {status} {answer!r}")
        finally:
            await connection.close()

    await asyncio.gather(*(worker() for _ in range(min(connections, len(calls)))))


async def _head(reader: asyncio.StreamReader) -> tuple[int, int, bool]:
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length, chunked = 0, False
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        chunked |= name.lower() == b"transfer-encoding" and b"chunked" in value.lower()
    return int(lines[0].split()[1]), length, chunked


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


class StreamReader(asyncio.Protocol):
    """One event stream that looks for a text and calls `seen` with the time at which it came."""

    def __init__(self, request: bytes, needle: Callable[[], bytes], seen: Callable[[float], None]) -> None:
        self._request = request
        self._needle = needle
        self._seen = seen
        self._tail = b""
        self.opened = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.opened.done():
            self.opened.set_result(None)
        needle = self._needle()
        if needle:
            self._tail = self._tail[-len(needle) :] + data
            if needle in self._tail:
                self._tail = b""
                self._seen(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("closed before the first byte"))


async def open_streams(url: str, target: str, number: int, needle: Callable[[], bytes],
                       seen: Callable[[float], None]) -> list[StreamReader]:  # fmt: skip
    """Opens `number` streams, a hundred at a time, and waits for the first bytes of each."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    streams: list[StreamReader] = []
    while len(streams) < number:
        some = min(100, number - len(streams))
        made = await asyncio.gather(
            *(loop.create_connection(lambda: StreamReader(request, needle, seen), host, port) for _ in range(some))
        )
        batch = [protocol for _, protocol in made]
        await asyncio.wait_for(asyncio.gather(*(stream.opened for stream in batch)), 30)
        streams += batch
    return streams


def close_streams(streams: list[StreamReader]) -> None:
    for stream in streams:
        if stream.transport is not None:
            stream.transport.abort()

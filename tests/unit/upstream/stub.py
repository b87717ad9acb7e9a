"""A server on port 0 that answers requests as a test says, byte for byte, for faults of the transport alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Request:
    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]


@dataclass(frozen=True)
class Say:
    """Bytes, in as many packets as there are pieces, and what happens to the connection then."""

    pieces: tuple[bytes, ...] = ()
    then: Literal["keep", "close", "abort", "hang"] = "keep"


def say(*pieces: bytes, then: Literal["keep", "close", "abort", "hang"] = "keep") -> Say:
    return Say(pieces, then)


def ok(body: bytes = b"ok", *fields: bytes) -> Say:
    lines = (b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *fields)
    return say(b"\r\n".join((*lines, b"", b"")) + body)


@dataclass
class Stub:
    """What it has seen. `play` may be another in the middle of a test; after `stop` nobody listens."""

    play: Callable[[Request], Say]
    stop: Callable[[], None] = lambda: None
    url: str = ""
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def stub(play: Callable[[Request], Say], ssl: object = None) -> AsyncIterator[Stub]:
    """`play` is called with each request; `gone` is set when a connection has ended."""
    seen = Stub(play)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await read(reader)
                seen.requests.append(request)
                answer = seen.play(request)
                for piece in answer.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if answer.then == "hang":
                    await reader.read()
                if answer.then != "keep":
                    break
            if answer.then == "abort":
                reset = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                writer.transport.abort()
        writer.close()
        seen.gone.set()
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ssl)  # type: ignore[arg-type]
    seen.stop = server.close
    scheme = "https" if ssl is not None else "http"
    seen.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    body = b""
    if fields.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif b"content-length" in fields:
        body = await reader.readexactly(int(fields[b"content-length"]))
    return Request(head, body)

"""A TCP relay between the proxy and a real server, with faults that a test switches on.

Modes that cut or delay act on the connection. Modes that answer (`status_500`, `garbage`, `html`, …) answer each
request themselves and never contact the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Mode = Literal[
    "pass",  # relays
    "refuse",  # does not listen
    "reset",  # accepts, then resets
    "blackhole",  # accepts and never answers
    "half_open",  # reads the request, then closes without an answer
    "slow",  # relays, each answer after 5 s
    "late",  # relays each piece of an answer after 0.3 s: slow for a timeout of 1 s, but no fault
    "status_500",
    "garbage",  # bytes that are not HTTP
    "empty",  # 200 with an empty body
    "half_body",  # announces more bytes than it sends, then closes
    "wrong_type",  # status 200, JSON of another shape
    "html",  # an error page of some other proxy, status 200
    "login_page",  # a redirect to a login
]

MODES: tuple[Mode, ...] = (
    "refuse",
    "reset",
    "blackhole",
    "half_open",
    "slow",
    "status_500",
    "garbage",
    "empty",
    "half_body",
    "wrong_type",
    "html",
    "login_page",
)


def _http(status: str, content_type: str, body: bytes, *extra: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *extra]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


_ANSWERS: dict[Mode, bytes] = {
    "status_500": _http("500 Internal Server Error", "text/plain", b"caused: out of memory;"),
    "garbage": bytes(range(256)) * 4,
    "empty": _http("200 OK", "application/json", b""),
    "half_body": _http("200 OK", "application/json", b'{"name":"DEFAULT_GROUP@@x","hosts":[{"ip":"1', length=4000),
    "wrong_type": _http("200 OK", "application/json", b'["a list", 1, null]'),
    "html": _http("200 OK", "text/html", b"<html><body><h1>It works!</h1></body></html>"),
    "login_page": _http("302 Found", "text/html", b"", "Location: https://login.example/"),
}


class FaultProxy:
    """Keeps its port even while it refuses connections. `mode` may be set at any time."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._mode: Mode = "pass"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def set(self, mode: Mode) -> None:
        """Sets the mode and cuts open connections, as the fault would."""
        self._mode = mode
        self._cut()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            await self.start()

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = self._mode  # fixed per connection: the mode may change before this task runs
        match mode:
            case "reset" | "refuse":
                return
            case "blackhole":
                await reader.read(-1)
                await asyncio.Event().wait()
            case "half_open":
                await reader.readuntil(b"\r\n\r\n")
            case "pass" | "slow" | "late":
                await self._relay(reader, writer, {"slow": 5.0, "late": 0.3}.get(mode, 0.0))
            case _:
                await self._answer(reader, writer, mode)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mode: Mode) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")), 0
            )
            await reader.readexactly(length)
            writer.write(_ANSWERS[mode])
            await writer.drain()
            if mode in ("garbage", "half_body"):
                return

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: float) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(up_writer)
        try:
            await asyncio.gather(_pump(reader, up_writer, 0.0), _pump(up_reader, writer, late))
        finally:
            self._writers.discard(up_writer)
            up_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: float) -> None:
    while data := await reader.read(65_536):
        if late:
            await asyncio.sleep(late)
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(target: int, port: int = 0) -> AsyncIterator[FaultProxy]:
    """Runs a relay on a port; 0: a free one."""
    relay = FaultProxy(target)
    relay.port = port
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()

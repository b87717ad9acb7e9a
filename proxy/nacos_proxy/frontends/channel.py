"""A `Channel` over plain ASGI, for streams that cannot write to their transport. It costs a task per stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Send

from nacos_proxy.runtime import spawn, stop


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class AsgiChannel:
    """A buffer. While it is not empty, the reader counts as slow."""

    __slots__ = ("_buffer", "_closed", "_on_close", "_on_drain", "_ready")

    def __init__(self) -> None:
        self._buffer: list[bytes] = []
        self._closed = False
        self._ready = asyncio.Event()
        self._on_drain: Callable[[], None] | None = None
        self._on_close: Callable[[], None] | None = None

    @staticmethod
    def frame(data: bytes) -> bytes:
        return data  # the ASGI server does the framing

    def write(self, chunk: bytes) -> bool:
        if not self._closed and chunk:
            self._buffer.append(chunk)
            self._ready.set()
        return not chunk and not self._buffer

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._on_drain = callback

    def on_close(self, callback: Callable[[], None]) -> None:
        self._on_close = callback

    def farewell(self, chunk: bytes) -> None:
        """Not used: ASGI does not report that the server stops. The owner writes the farewell before `close`."""

    def close(self) -> None:
        self._closed = True
        self._ready.set()

    async def run(self, receive: Receive, send: Send) -> None:
        """Sends until the reader disconnects or `close` is called."""
        disconnected = spawn(wait_for_disconnect(receive), name="reader")
        disconnected.add_done_callback(lambda _: self._ready.set())
        try:
            while not disconnected.done():
                await self._ready.wait()
                self._ready.clear()
                if self._buffer and not disconnected.done():
                    data, self._buffer = b"".join(self._buffer), []
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    if self._on_drain is not None and not self._buffer:
                        self._on_drain()
                if self._closed and not self._buffer:
                    break
            if not disconnected.done():
                await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # the reader disconnected during a write (ASGI 2.4)
        finally:
            self._closed = True
            if self._on_close is not None:
                self._on_close()
            await stop(disconnected)

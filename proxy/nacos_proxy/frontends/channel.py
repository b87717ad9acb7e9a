"""A stream of the ordinary ASGI way as a `Channel`: where a request has no transport of its own to write to.

Not for: what is written. A task and a scope stay alive for each reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Send

from nacos_proxy.runtime import spawn, stop


async def until_gone(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class AsgiChannel:
    """Holds what was written until it is sent; a reader counts as slow until then."""

    __slots__ = ("_buffer", "_closed", "_farewell", "_on_close", "_on_drain", "_ready")

    def __init__(self) -> None:
        self._buffer: list[bytes] = []
        self._closed = False
        self._ready = asyncio.Event()
        self._on_drain: Callable[[], None] | None = None
        self._on_close: Callable[[], None] | None = None

    @staticmethod
    def frame(data: bytes) -> bytes:
        """The server frames it."""
        return data

    def write(self, chunk: bytes) -> bool:
        """See `Channel.write`."""
        if not self._closed and chunk:
            self._buffer.append(chunk)
            self._ready.set()
        return not chunk and not self._buffer

    def on_drain(self, callback: Callable[[], None]) -> None:
        """See `Channel.on_drain`."""
        self._on_drain = callback

    def on_close(self, callback: Callable[[], None]) -> None:
        """See `Channel.on_close`."""
        self._on_close = callback

    def farewell(self, chunk: bytes) -> None:
        """The server that stops does not tell us; the owner of the streams writes it before it closes them."""

    def close(self) -> None:
        """See `Channel.close`."""
        self._closed = True
        self._ready.set()

    async def run(self, receive: Receive, send: Send) -> None:
        """Sends until the reader has gone or `close` was called."""
        gone = spawn(until_gone(receive), name="reader")
        gone.add_done_callback(lambda _: self._ready.set())
        try:
            while not gone.done():
                await self._ready.wait()
                self._ready.clear()
                if self._buffer and not gone.done():
                    data, self._buffer = b"".join(self._buffer), []
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    if self._on_drain is not None and not self._buffer:
                        self._on_drain()
                if self._closed and not self._buffer:
                    break
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # the reader went away while we wrote (ASGI 2.4)
        finally:
            self._closed = True
            if self._on_close is not None:
                self._on_close()
            await stop(gone)

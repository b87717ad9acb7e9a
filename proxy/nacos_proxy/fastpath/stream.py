"""A response body written straight to the transport: the `Channel` of `wire.http` on an HTTP/1.1 connection.

An idle stream costs its connection and one `Stream`; the request's task, scope and headers are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

LAST_CHUNK = b"0\r\n\r\n"
HIGH_WATER = 32 << 10  # a reader with more unsent bytes is slow, until fewer than a quarter of that are left


class Stream:
    """Takes the place of uvicorn's request cycle, hence `response_complete` and `keep_alive`.

    After `close`, it calls `on_finished`, so that the connection can take the next request.
    """

    __slots__ = (
        "_farewell", "_flow", "_on_close", "_on_drain", "_on_finished", "_transport", "keep_alive", "response_complete",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.Transport, flow: FlowControl, keep_alive: bool, on_finished: Callable[[], None]
    ) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self._transport = transport
        self._flow = flow
        self._on_finished = on_finished
        self._farewell = b""
        self._on_close: Callable[[], None] | None = None
        self._on_drain: Callable[[], None] | None = None

    @staticmethod
    def frame(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty chunk would end the body (RFC 9112 7.1)

    def write(self, chunk: bytes) -> bool:
        if self.response_complete:
            return False
        self._transport.write(chunk)
        return not self._flow.write_paused

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._on_drain = callback

    def on_close(self, callback: Callable[[], None]) -> None:
        if self.response_complete:
            callback()
        else:
            self._on_close = callback

    def farewell(self, chunk: bytes) -> None:
        self._farewell = chunk

    def close(self) -> None:
        if not self.response_complete:
            self._transport.write(LAST_CHUNK)
            self.lost()
            self._on_finished()

    def drained(self) -> None:
        """The protocol calls this when the transport takes more."""
        if self._on_drain is not None:
            self._on_drain()

    def stop(self) -> None:
        """The protocol calls this when the server stops."""
        self.write(self._farewell)
        self.close()

    def lost(self) -> None:
        """Marks the stream as ended, by `close` or by a lost connection."""
        self.response_complete = True
        callback, self._on_close, self._on_drain = self._on_close, None, None
        if callback is not None:
            callback()

"""A response body written straight to the transport: the `Channel` of `wire.base`, on an HTTP/1.1 connection.

Not for: what is written, who reads it. An idle reader costs its connection and this object; the request's task, its
scope and its headers are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from uvicorn.protocols.http.flow_control import FlowControl

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """A reader with more than `high_water` bytes unsent is slow; it has caught up below a quarter of that."""

    high_water: int = 32 << 10


class Stream:
    """One channel. To the protocol it stands for the request in progress: `response_complete` and `keep_alive`.

    `finished` is called when `close` ended the body, so that the connection can go on.
    """

    __slots__ = (
        "_farewell", "_finished", "_flow", "_on_close", "_on_drain", "_transport", "keep_alive", "response_complete",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.Transport, flow: FlowControl, keep_alive: bool, finished: Callable[[], None]
    ) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self._transport = transport
        self._flow = flow
        self._finished = finished
        self._farewell = b""
        self._on_close: Callable[[], None] | None = None
        self._on_drain: Callable[[], None] | None = None

    @staticmethod
    def frame(data: bytes) -> bytes:
        """An empty chunk would be the last one (RFC 9112 7.1), so of nothing it is nothing."""
        return b"%x\r\n%b\r\n" % (len(data), data) if data else b""

    def write(self, chunk: bytes) -> bool:
        """See `Channel.write`."""
        if self.response_complete:
            return False
        self._transport.write(chunk)
        return not self._flow.write_paused

    def on_drain(self, callback: Callable[[], None]) -> None:
        """See `Channel.on_drain`."""
        self._on_drain = callback

    def on_close(self, callback: Callable[[], None]) -> None:
        """See `Channel.on_close`."""
        if self.response_complete:
            callback()
        else:
            self._on_close = callback

    def farewell(self, chunk: bytes) -> None:
        """See `Channel.farewell`."""
        self._farewell = chunk

    def close(self) -> None:
        """See `Channel.close`."""
        if not self.response_complete:
            self._transport.write(LAST_CHUNK)
            self.lost()
            self._finished()

    def drained(self) -> None:
        """The transport takes more."""
        if self._on_drain is not None:
            self._on_drain()

    def stop(self) -> None:
        """The server stops."""
        self.write(self._farewell)
        self.close()

    def lost(self) -> None:
        """The body has ended, or its reader is gone."""
        self.response_complete = True
        callback, self._on_close, self._on_drain = self._on_close, None, None
        if callback is not None:
            callback()

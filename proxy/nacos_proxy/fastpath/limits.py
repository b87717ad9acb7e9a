"""What one connection may cost: a uvicorn protocol class that bounds heads, waits and the number of connections.

Not for: bodies' sizes (whoever reads one knows what is too large), rights. uvicorn's httptools protocol has no limit
of its own on a head, and waits for ever for the end of a request, and for a client to read its answer.

    what                                        | answer
    --------------------------------------------|------------------------------------------------
    a head of more than `head` bytes            | 431, the connection ends
    a head that is not complete in `patience`   | 408, the connection ends
    no request at all                           | the connection ends after the keep-alive time-out
    a body that stands still for `patience`     | 408 if nothing was answered yet, the connection ends
    a body that is slower than `rate`           | the same
    an answer of which nothing is read          | the connection ends after `unread`
    more than `connections`                     | 503, the connection ends; no answer before a TLS handshake (`tls`)

None of these comes into or before an answer that is due to an earlier request (`Http1Protocol.refuse`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.server import ServerState

from nacos_proxy.fastpath.asgi import Receive, Scope, Send
from nacos_proxy.fastpath.http1 import (
    BETWEEN,
    BODY,
    HEAD,
    Http1Protocol,
)
from nacos_proxy.runtime import STOOD_STILL, stood_still


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`head` in bytes; `patience` and `unread` in seconds; `connections` at once, 0 for no bound.

    A body may take `slow` seconds, and one more for each `rate` bytes of it.
    """

    head: int = 65_536
    patience: float = 10.0
    connections: int = 0
    slow: float = 60.0
    rate: int = 1024
    unread: float = 30.0


class LimitedProtocol(Http1Protocol):
    """One connection. `make_limited` fills in the limits."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    __slots__ = ("_begins", "_body_due", "_head_bytes", "_heard", "_overdue_timer", "_unread", "_unread_timer")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_bytes = 0  # of the head in progress, without the piece in which it began
        self._begins = False  # the head in progress began in the piece that was parsed last
        self._body_due = 0.0  # the loop's time when the body in progress must be complete, as far as it has come
        self._heard = 0.0  # the loop's time when the head began, or when the body last went on
        self._overdue_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes that were not sent when that began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.crowded:
            self.refuse(503)
            return
        # the timer of a connection between two requests; whatever comes first takes it away, as after an answer
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    @property
    def crowded(self) -> bool:
        """Whether there are more connections than allowed, which is then said in the log."""
        most = self.limits.connections
        if not most or len(self.connections) <= most:
            return False
        self.logger.warning("More than %d connections, one was refused.", most)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._overdue_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._overdue_timer = self._unread_timer = None
        super().connection_lost(exc)

    def _feed(self, data: bytes | memoryview) -> None:
        phase, self._begins = self._phase, False
        super()._feed(data)
        if self._phase == BETWEEN:
            return
        if self._phase == HEAD and not self._begins:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head:
                self.refuse(431)
                return
        else:
            self._heard = self.loop.time()
            if phase == BODY:
                self._body_due += len(data) / self.limits.rate
        if self._overdue_timer is None:
            self._await_more(self.limits.patience)

    # what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._begins = 0, True

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head:
            self.app = _too_large  # the connection ends with this answer
        self._body_due = self.loop.time() + self.limits.slow
        super().on_headers_complete()

    # patience

    def _late(self, timer: asyncio.TimerHandle | None) -> bool:
        """Of a process that stood still a timer may run before what waits to be read: that is heard first."""
        return timer is not None and stood_still(timer.when(), self.loop.time()) > 0

    def timeout_keep_alive_handler(self) -> None:
        if self._late(self.timeout_keep_alive_task):
            self.timeout_keep_alive_task = self.loop.call_later(STOOD_STILL, self.timeout_keep_alive_handler)
        else:
            self.close()

    def _await_more(self, seconds: float) -> None:
        self._overdue_timer = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        late, self._overdue_timer = self._late(self._overdue_timer), None
        if self._phase == BETWEEN or self._refused or self.transport.is_closing():
            return
        now = self.loop.time()
        if self.flow.read_paused or self._held:  # it is us who do not read
            self._heard, self._body_due = now, now + self.limits.slow
        left = self._heard + self.limits.patience - now
        if self._phase == BODY:
            left = min(left, self._body_due - now)
        if late:
            left = STOOD_STILL
        if left > 0:
            self._await_more(left)
        else:
            self.refuse(408)

    # answers that nobody reads

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None and not self.transport.is_closing():
            self._unread_timer.cancel()
            self._unread_timer = None

    def close(self) -> None:
        super().close()
        self._await_reading()

    def _await_reading(self) -> None:
        """A connection that ends goes when all was sent: it, too, waits for its client to read."""
        unread = self.transport.get_write_buffer_size()
        if unread and self._unread_timer is None:
            self._unread = unread
            self._unread_timer = self.loop.call_later(self.limits.unread, self._reads_nothing)

    def _reads_nothing(self) -> None:
        late, self._unread_timer = self._late(self._unread_timer), None
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread or late:
            self._await_reading()
        else:
            self.logger.info("A client read nothing for %g s, %d bytes were dropped.", self.limits.unread, unread)
            self.transport.abort()


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def make_limited(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """The class for uvicorn's `http=` where the fast path is off."""
    return type("BoundLimitedProtocol", (LimitedProtocol,), {"limits": limits, "__slots__": ()})

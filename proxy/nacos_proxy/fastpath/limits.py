"""Bounds on the cost of one connection, and on the number of connections. uvicorn's httptools protocol has none.

The code that reads a body bounds its size.

    input                                         | response; then the connection ends
    ----------------------------------------------|------------------------------------------------
    a head of more than `max_head` bytes          | 431
    a head that is incomplete after `read_timeout`| 408
    no request at all                             | no response, after the keep-alive time-out
    a body that stalls for `read_timeout`         | 408 if no response has begun
    a body slower than `min_body_rate`            | the same
    a client that does not read its response      | none more, after `write_timeout`
    more than `max_connections`                   | 503; with TLS no response, before the handshake (`tls`)

The responses to earlier requests are sent first, in full (`Http1Protocol.refuse`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from nacos_proxy.fastpath.asgi import Receive, Scope, Send
from nacos_proxy.fastpath.http1 import BETWEEN, BODY, HEAD, Http1Protocol
from nacos_proxy.request_context import Answered
from nacos_proxy.runtime import STOOD_STILL, stood_still

LogAnswered = Callable[[Answered], None]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`max_head` in bytes; `read_timeout` and `write_timeout` in seconds; `max_connections` at once, 0 for no bound.

    A body may take `body_time` seconds, plus one for each `min_body_rate` bytes of it.
    """

    max_head: int = 65_536
    read_timeout: float = 10.0
    max_connections: int = 0
    body_time: float = 60.0
    min_body_rate: int = 1024
    write_timeout: float = 30.0


class LimitedProtocol(Http1Protocol):
    """One connection with bounds. uvicorn runs it if the fast path is off; `make_limited` sets the limits."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    log: ClassVar[staticmethod[[Answered], None] | None] = None  # for the access log, what the app does not see

    __slots__ = (
        "_body_deadline", "_head_began", "_head_bytes", "_last_progress", "_read_timer", "_unsent", "_write_timer",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # of the current head, without the chunk in which it began
        self._head_began = False  # the current head began in the chunk that was parsed last
        self._body_deadline = 0.0  # the loop's time; each chunk of the body extends it
        self._last_progress = 0.0  # the loop's time when the head began, or when the body last grew
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes when `_write_timer` was started

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.is_over_limit():
            self.refuse(503)
            return
        # the same timer as between two requests
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def is_over_limit(self) -> bool:
        """Whether there are more connections than allowed. Logs it if so."""
        limit = self.limits.max_connections
        if not limit or len(self.connections) <= limit:
            return False
        self.logger.warning("More than %d connections: refused one. To allow more, raise max_connections.", limit)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._read_timer = self._write_timer = None
        super().connection_lost(exc)

    def _feed(self, data: bytes | memoryview) -> None:
        phase, self._head_began = self._phase, False
        super()._feed(data)
        if self._phase == BETWEEN:
            return
        if self._phase == HEAD and not self._head_began:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_head:
                self.refuse(431)
                return
        else:
            self._last_progress = self.loop.time()
            if phase == BODY:
                self._body_deadline += len(data) / self.limits.min_body_rate
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.limits.read_timeout, self._read_timed_out)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._head_began = 0, True

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_head:
            self.app = _head_too_large
            self.refused(431)
        self._body_deadline = self.loop.time() + self.limits.body_time
        super().on_headers_complete()

    def refused(self, status: int) -> None:
        if self.log is not None:
            self.log(Answered("", "", "", "", status, 0.0, 0, self.client[0] if self.client else "", ""))

    def _is_late(self, timer: asyncio.TimerHandle | None) -> bool:
        """Whether the process stood still. The timer may then run before input that came in time, which goes first."""
        return timer is not None and stood_still(timer.when(), self.loop.time()) > 0

    def timeout_keep_alive_handler(self) -> None:
        if self._is_late(self.timeout_keep_alive_task):
            self.timeout_keep_alive_task = self.loop.call_later(STOOD_STILL, self.timeout_keep_alive_handler)
        else:
            self.close()

    def _read_timed_out(self) -> None:
        late, self._read_timer = self._is_late(self._read_timer), None
        if self._phase == BETWEEN or self._refused or self.transport.is_closing():
            return
        now = self.loop.time()
        if self.flow.read_paused or self._held:  # the server paused reading, the client is not slow
            self._last_progress, self._body_deadline = now, now + self.limits.body_time
        left = self._last_progress + self.limits.read_timeout - now
        if self._phase == BODY:
            left = min(left, self._body_deadline - now)
        if late:
            left = STOOD_STILL
        if left > 0:
            self._read_timer = self.loop.call_later(left, self._read_timed_out)
        else:
            self.refuse(408)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def close(self) -> None:
        super().close()
        self._start_write_timer()

    def _start_write_timer(self) -> None:
        """Also for a closing connection, which waits until everything is sent."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._write_timer is None:
            self._unsent = unsent
            self._write_timer = self.loop.call_later(self.limits.write_timeout, self._write_timed_out)

    def _write_timed_out(self) -> None:
        late, self._write_timer = self._is_late(self._write_timer), None
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or late:
            self._start_write_timer()
        else:
            self.logger.info("A client read nothing for %g s: dropped %d bytes.", self.limits.write_timeout, unsent)
            self.transport.abort()


async def _head_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def make_limited(limits: ConnectionLimits, log: LogAnswered | None = None) -> type[LimitedProtocol]:
    """The class for uvicorn's `http=` if the fast path is off. `log` gets each refusal."""
    shared = {"limits": limits, "log": None if log is None else staticmethod(log), "__slots__": ()}
    return type("BoundLimitedProtocol", (LimitedProtocol,), shared)

"""What one connection may cost: a uvicorn protocol class that bounds heads, waits and the number of connections.

Not for: bodies' sizes (whoever reads one knows what is too large), rights. uvicorn's httptools protocol has no limit
of its own on a head, and waits for the end of a request for ever: `h11_max_incomplete_event_size` is h11's alone.

    what                                        | answer
    --------------------------------------------|------------------------------------------------
    a head of more than `head` bytes            | 431, the connection ends
    a head that is not complete in `patience`   | 408, the connection ends
    no request at all                           | the connection ends after the keep-alive time-out
    a body that stands still for `patience`     | 408 if nothing was answered yet, the connection ends
    more than `connections`                     | 503, the connection ends
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from proxy.fastpath.asgi import Receive, Scope, Send
from proxy.runtime import STOOD_STILL, stood_still


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`head` in bytes, `patience` in seconds; `connections` at once, 0 for no bound."""

    head: int = 65_536
    patience: float = 10.0
    connections: int = 0


BETWEEN, HEAD, BODY = 0, 1, 2


class Joined:
    """A connection's transport as responses see it: a head goes out with the body that follows in the same turn.

    uvicorn hands them over one after the other, and each would be a system call and, often, a packet of its own.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def flush(self) -> None:
        """What is held goes out now."""
        if self._head:
            head, self._head = self._head, b""
            if not self._transport.is_closing():
                self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `make_limited` fills in the limits."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = BETWEEN  # where the parser stands
        self._head_bytes = 0  # of the head in progress, without the packet in which it began
        self._heard = 0.0  # the loop's time when the head began, or when the body last went on
        self._overdue_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._joined = Joined(transport, self.loop)
        most = self.limits.connections
        if most and len(self.connections) > most:
            self.logger.warning("More than %d connections, one was refused.", most)
            self._refuse(503)
            return
        # the timer of a connection between two requests; whatever comes first takes it away, as after an answer
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._overdue_timer is not None:
            self._overdue_timer.cancel()
            self._overdue_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        phase = self._phase
        super().data_received(data)
        if self._phase == BETWEEN:
            return
        if self._phase == HEAD and phase == HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head:
                self._refuse(431)
                return
        else:
            self._heard = self.loop.time()
        if self._overdue_timer is None:
            self._await_more(self.limits.patience)

    # what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._head_bytes = HEAD, 0

    def on_headers_complete(self) -> None:
        self._phase = BODY
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head:
            self.app = _too_large  # the connection ends with this answer
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = cast(asyncio.Transport, self._joined)

    def on_message_complete(self) -> None:
        self._phase = BETWEEN
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._joined.flush()  # a head without a body, as HEAD gets, must not come behind the next answer
        super().on_response_complete()

    # refusals

    def send_400_response(self, msg: str) -> None:
        """To a request that is none. A whole one before it gets its answer first, and then the connection ends."""
        cycle = self.cycle
        if not cycle or cycle.response_complete:
            super().send_400_response(msg)
        elif not getattr(cycle, "more_body", False):
            cycle.keep_alive = False
        elif cycle.response_started:
            self.transport.close()  # in the middle of an answer a second one would be taken for its body
        else:
            super().send_400_response(msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Java's client asks for h2c on each new connection, and goes on in HTTP/1.1: nothing to warn of."""

    def _refuse(self, status: int) -> None:
        cycle = self.cycle
        if not (cycle and not cycle.response_complete and cycle.response_started):
            defaults = (b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
            ours = b"content-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(b"".join((STATUS_LINE[status], *defaults, ours)))
        self.transport.close()

    # patience

    def _late(self, timer: asyncio.TimerHandle | None) -> bool:
        """Of a process that stood still a timer may run before what waits to be read: that is heard first."""
        return timer is not None and stood_still(timer.when(), self.loop.time()) > 0

    def timeout_keep_alive_handler(self) -> None:
        if self._late(self.timeout_keep_alive_task):
            self.timeout_keep_alive_task = self.loop.call_later(STOOD_STILL, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _await_more(self, seconds: float) -> None:
        self._overdue_timer = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        late, self._overdue_timer = self._late(self._overdue_timer), None
        if self._phase == BETWEEN or self.transport.is_closing():
            return
        left = STOOD_STILL if late else self._heard + self.limits.patience - self.loop.time()
        if self.flow.read_paused:
            left = self.limits.patience  # it is us who do not read
        if left > 0:
            self._await_more(left)
        else:
            self._refuse(408)


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def make_limited(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """The class for uvicorn's `http=` where the fast path is off."""
    return type("BoundLimitedProtocol", (LimitedProtocol,), {"limits": limits})

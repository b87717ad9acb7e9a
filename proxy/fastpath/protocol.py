"""The table's door at the socket: a uvicorn protocol class that knows whole request heads. And streams' way out.

Not for: parsing HTTP. A chunk of bytes that was one whole request when the parser got it between two messages is the
same request now: the parser has no other memory. So where its answer is in the table, and nothing else is under way on
the connection, the answer is written and the parser never sees the chunk. Everything else is uvicorn's, unchanged.

The names used here are private to uvicorn: its version range is pinned, and tests send the same bytes with the door
on and off and compare what comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from proxy.fastpath.asgi import HEAD
from proxy.fastpath.limits import ConnectionLimits, LimitedProtocol
from proxy.fastpath.stream import Stream, StreamPolicy
from proxy.fastpath.table import Answer, Answers
from proxy.wire.base import STREAM


class FastProtocol(LimitedProtocol):
    """One connection. Made by uvicorn; `make_protocol` fills in what its connections share."""

    answers: ClassVar[Answers]
    now: ClassVar[staticmethod[[], float]]
    streams: ClassVar[StreamPolicy]

    __slots__ = ("_active", "_begun", "_between", "_longest", "_realm", "_stream", "_trusting")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._active = float("-inf")  # the loop's time when an answer was last repeated
        self._begun = 0  # messages that the parser has begun
        self._between = True  # the parser stands between two messages
        self._realm = b""  # behind the head: requests of another kind of socket have answers of their own
        self._longest = self.answers.policy.max_head
        self._stream: Stream | None = None
        self._trusting = config.proxy_headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        unix = self.server is not None and self.server[1] is None
        self._realm = (b"unix" if unix else b"") + (b"https" if self.scheme == "https" else b"")

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if not self._between or len(data) > self._longest or (cycle and not cycle.response_complete):
            super().data_received(data)
            return
        place = data + self._realm if self._realm else data
        answer = self.answers.find(place, self.now())
        if answer is None or self._must_wait():
            self._go_the_ordinary_way(data, place)
        else:
            self._repeat(answer)

    def _must_wait(self) -> bool:
        if self.flow.write_paused or self.transport.is_closing():
            return True
        limit = self.limit_concurrency
        return limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)

    def _repeat(self, answer: Answer) -> None:
        body = answer.body if answer.draw is None else answer.draw()
        head = answer.heads.get(len(body))
        if head is None or answer.defaults is not self.server_state.default_headers:
            head = self._write_head(answer, len(body))
        if self.access_log:
            client = f"{self.client[0]}:{self.client[1]}" if self.client else ""
            self.access_logger.info('%s - "%s %s HTTP/%s" %d', client, "GET", answer.path, "1.1", answer.status)
        self.transport.writelines((head, body))
        answer.tally.head += 1
        self.server_state.total_requests += 1
        self._active = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._arm(self.timeout_keep_alive)

    def _write_head(self, answer: Answer, length: int) -> bytes:
        defaults = self.server_state.default_headers  # a new list each second, with the new Date
        if answer.defaults is not defaults:
            answer.heads.clear()
            answer.defaults = defaults
        lines = (b"%b: %b\r\n" % (name.lower(), value) for name, value in (*defaults, *answer.sized(length)))
        head = answer.heads[length] = b"".join((STATUS_LINE[answer.status], *lines, b"\r\n"))
        return head

    def _go_the_ordinary_way(self, data: bytes, place: bytes) -> None:
        begun = self._begun
        super().data_received(data)
        one_whole_message = self._between and self._begun == begun + 1
        if one_whole_message and not (self._trusting and b"x-forwarded-" in data.lower()):
            self.scope[HEAD] = place  # type: ignore[typeddict-unknown-key] - the app's task starts later and reads it

    # what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun += 1
        self._between = False
        self.scope["extensions"] = {STREAM: self.take_stream}  # type: ignore[typeddict-item]

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    # the keep-alive time-out, which a repeated answer puts off without making a new timer

    def _arm(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        left = self._active + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._arm(left)
        else:
            super().timeout_keep_alive_handler()

    # streams

    def take_stream(self) -> Stream | None:
        """The `Channel` of the request in progress; None where its body cannot be streamed past the app."""
        cycle = self.cycle
        if not cycle or cycle.response_complete or self.pipeline or not self._between:
            return None
        if not cycle.response_started or not cycle.chunked_encoding or cycle.scope["method"] != "GET":
            return None
        if cycle.disconnected or cycle.scope["http_version"] != "1.1":
            return None
        cycle.response_complete = True  # for the app the response has ended
        cycle.message_event.set()
        self._stream = stream = Stream(self.transport, self.flow, cycle.keep_alive, self._stream_ended)
        self.cycle = cast(RequestResponseCycle, stream)
        self.scope = self.headers = None  # type: ignore[assignment] - an idle reader need not hold its request
        self.transport.set_write_buffer_limits(self.streams.high_water)
        return stream

    def _stream_ended(self) -> None:
        stream, self._stream = self._stream, None
        self.transport.set_write_buffer_limits()
        if stream is not None and not stream.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def shutdown(self) -> None:
        super().shutdown()
        if self._stream is not None:
            self._stream.stop()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stream is not None:
            self._stream.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        stream, self._stream = self._stream, None
        if isinstance(cast(object, self.cycle), Stream):  # also one that ended and left its place to no other request
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)
        if stream is not None:
            stream.lost()


def make_protocol(
    answers: Answers,
    now: Callable[[], float],
    streams: StreamPolicy = StreamPolicy(),  # noqa: B008 - a frozen value
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - a frozen value
) -> type[FastProtocol]:
    """The class for uvicorn's `http=`. `now` is the clock that marks are made with."""
    shared = {"answers": answers, "now": staticmethod(now), "streams": streams, "limits": limits, "__slots__": ()}
    return type("BoundProtocol", (FastProtocol,), shared)

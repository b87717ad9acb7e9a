"""The table's door at the socket: a uvicorn protocol class that knows whole request heads. And streams' way out.

Not for: parsing HTTP. A chunk of bytes that was one whole request when the parser got it between two messages is the
same request now: the parser has no other memory. So where its answer is in the table, and nothing else is under way on
the connection, the answer is written and the parser never sees the chunk. A head that is another each time is parsed,
and looked for by what matters in it before uvicorn makes a task of it. Everything else is uvicorn's, unchanged.

The names used here are private to uvicorn: its version range is pinned, and tests send the same bytes with the door
on and off and compare what comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from nacos_proxy.fastpath.asgi import (
    HEAD,
    MATTER,
    MORE_THAN_AN_ANSWER,
    socket_kind,
    target_place,
)
from nacos_proxy.fastpath.http1 import BETWEEN
from nacos_proxy.fastpath.limits import ConnectionLimits, LimitedProtocol
from nacos_proxy.fastpath.stream import Stream, StreamPolicy
from nacos_proxy.fastpath.table import Answer, LookupKey, ResponseTable
from nacos_proxy.wire.http import STREAM


class FastProtocol(LimitedProtocol):
    """One connection. Made by uvicorn; `make_protocol` fills in what its connections share."""

    answers: ClassVar[ResponseTable]
    now: ClassVar[staticmethod[[], float]]
    streams: ClassVar[StreamPolicy]
    matter: ClassVar[frozenset[bytes]]

    __slots__ = ("_active", "_begun", "_kind", "_longest", "_repeated", "_short", "_socket", "_stream")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._active = float("-inf")  # the loop's time when an answer was last repeated
        self._begun = 0  # messages whose heads the parser has read
        self._kind = b""
        self._socket = b""  # stands beside a head: what came over another kind of socket is another place
        self._repeated: Answer | None = None  # what the request that was parsed last was answered with at once
        self._longest = min(self.answers.policy.max_head, self.limits.head)
        self._short = False  # what the parser reads is one chunk, no longer than that
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls, unix = self.scheme == "https", self.server is not None and self.server[1] is None
        self._kind = socket_kind(tls, unix)
        self._socket = self._kind if tls or unix else b""

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if self._phase != BETWEEN or len(data) > self._longest or (cycle and not cycle.response_complete):
            super().data_received(data)
            return
        place = (data, self._socket) if self._socket else data
        answer = self.answers.find(place, self.now())
        if answer is None or self._must_wait():
            self._go_the_ordinary_way(data, place)
        else:
            self._repeat(answer)
            answer.tally.head += 1

    def _must_wait(self) -> bool:
        if self.flow.write_paused or self.transport.is_closing():
            return True
        limit = self.limit_concurrency
        return limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)

    def _repeat(self, answer: Answer) -> None:
        if answer.defaults is not self.server_state.default_headers:  # a new list each second, with the new Date
            answer.unwrite()
            answer.defaults = self.server_state.default_headers
        whole = (answer.whole or self._write(answer)) if answer.draw is None else self._draw(answer, answer.draw())
        if self.access_log:
            client = f"{self.client[0]}:{self.client[1]}" if self.client else ""
            self.access_logger.info('%s - "%s %s HTTP/%s" %d', client, "GET", answer.path, "1.1", answer.status)
        self.transport.write(whole)  # two pieces would cost more than to join them
        self.server_state.total_requests += 1
        self._active = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._arm(self.timeout_keep_alive)

    def _write(self, answer: Answer) -> bytes:
        answer.whole = self._head(answer, len(answer.body)) + answer.body
        return answer.whole

    def _draw(self, answer: Answer, body: bytes) -> bytes:
        head = answer.heads.get(len(body))
        if head is None:
            head = answer.heads[len(body)] = self._head(answer, len(body))
        return head + body

    def _head(self, answer: Answer, length: int) -> bytes:
        headers = (*self.server_state.default_headers, *answer.sized(length))
        lines = (b"%b: %b\r\n" % (name.lower(), value) for name, value in headers)
        return b"".join((STATUS_LINE[answer.status], *lines, b"\r\n"))

    def _go_the_ordinary_way(self, data: bytes, place: LookupKey) -> None:
        begun = self._begun
        self._short = True
        try:
            super().data_received(data)
        finally:
            self._short = False
        if self._phase != BETWEEN or self._begun != begun + 1:
            return  # not one whole message
        if self._repeated is not None:
            if self.answers.wants(place):
                self.answers.offer(place, self._repeated.copy(), self.answers.serial)
        else:
            self.scope[HEAD] = place  # type: ignore[typeddict-unknown-key] - the app's task starts later and reads it

    # what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._repeated = None

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it comes again without
        self._begun += 1
        answer = self._find_target()
        if answer is None:
            self.scope["extensions"] = {STREAM: self.take_stream}  # type: ignore[typeddict-item]
            super().on_headers_complete()
        else:
            self._repeated = answer
            self._repeat(answer)
            answer.tally.target += 1

    def _find_target(self) -> Answer | None:
        """The answer to the request whose head is complete, where it can be given at once."""
        cycle = self.cycle
        if not self._short or (cycle and not cycle.response_complete) or not self._plain():
            return None
        matter: list[tuple[bytes, bytes]] = []
        for pair in self.headers:
            if pair[0] in self.matter:
                matter.append(pair)
            elif pair[0] == b"connection" and pair[1].lower() != b"keep-alive":
                return None
        path, _, query = self.url.partition(b"?")
        answer = self.answers.find(target_place(self._kind, path, query, matter), self.now())
        return None if answer is None or self._must_wait() else answer

    def _plain(self) -> bool:
        parser: Any = self.parser
        if parser.get_method() != b"GET" or parser.get_http_version() != "1.1":
            return False
        return parser.should_keep_alive() and b"#" not in self.url and not self.root_path

    def on_message_complete(self) -> None:
        if self._repeated is None:
            super().on_message_complete()
        else:
            self._phase = BETWEEN

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
        if not cycle or cycle.response_complete or self.pipeline or self._phase != BETWEEN:
            return None
        if not cycle.response_started or not cycle.chunked_encoding or cycle.scope["method"] != "GET":
            return None
        if cycle.disconnected or cycle.scope["http_version"] != "1.1":
            return None
        self._joined.flush()
        cycle.response_complete = True  # for the app the response has ended
        cycle.message_event.set()
        self._stream = stream = Stream(self.transport, self.flow, cycle.keep_alive, self._stream_ended)
        self.cycle = self._answering = cast(RequestResponseCycle, stream)
        self.scope = self.headers = None  # type: ignore[assignment] - an idle reader need not hold its request
        self.transport.set_write_buffer_limits(self.streams.high_water)
        return stream

    def _stream_ended(self) -> None:
        stream, self._stream = self._stream, None
        self.transport.set_write_buffer_limits()
        if stream is not None and not stream.keep_alive:
            self.close()
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
        if stream is not None:
            self._answering = None
        super().connection_lost(exc)
        if stream is not None:
            stream.lost()


def make_protocol(
    answers: ResponseTable,
    now: Callable[[], float],
    streams: StreamPolicy = StreamPolicy(),  # noqa: B008 - a frozen value
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - a frozen value
    matter: Iterable[bytes] = MATTER,
) -> type[FastProtocol]:
    """The class for uvicorn's `http=`. `now` is the clock that marks are made with, `matter` as for `FastPath`."""
    shared = {
        "answers": answers,
        "now": staticmethod(now),
        "streams": streams,
        "limits": limits,
        "matter": frozenset(matter) | MORE_THAN_AN_ANSWER,
        "__slots__": (),
    }
    return type("BoundProtocol", (FastProtocol,), shared)

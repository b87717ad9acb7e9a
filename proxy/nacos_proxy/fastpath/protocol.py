"""The head stage: a uvicorn protocol that repeats responses before it parses, and hands its transport to streams.

Between two messages the parser has no state, so the same bytes are always the same request. If they once were a whole
request, the table has its response, and no other response is due, the protocol writes the response without parsing.
The same holds for bytes that differ only in the ids of the request (`heads`). Other heads are parsed, then looked up by
target before uvicorn makes a task. uvicorn handles everything else.

This module uses private names of uvicorn: its version range is pinned, and tests compare the bytes with and without
the fast path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from nacos_proxy.fastpath.asgi import HEAD_KEY, KEY_HEADERS, socket_kind, target_key
from nacos_proxy.fastpath.heads import id_field, without_field, without_ids
from nacos_proxy.fastpath.http1 import BETWEEN
from nacos_proxy.fastpath.limits import ConnectionLimits, LogAnswered
from nacos_proxy.fastpath.stream import HIGH_WATER, Stream
from nacos_proxy.fastpath.table import LookupKey, PreparedResponse, ResponseTable
from nacos_proxy.fastpath.writes import KnownWrites, WriteProtocol
from nacos_proxy.request_context import ID_HEADER, Answered, sane_id
from nacos_proxy.wire.http import STREAM

_ID_HEADER = ID_HEADER.lower().encode()
_G = ord("G")  # the first byte of GET


class FastProtocol(WriteProtocol):
    """One connection with the fast path. Its responses are the same bytes as without it.

    `make_protocol` sets the class attributes, which all connections share.
    """

    table: ClassVar[ResponseTable]
    now: ClassVar[staticmethod[[], float]]

    __slots__ = (
        "_chunk", "_closes", "_heads_parsed", "_last_sent", "_max_fast_head", "_prepared", "_request_id",
        "_socket", "_socket_kind", "_stream",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_sent = float("-inf")  # the loop's time when the last prepared response was sent
        self._heads_parsed = 0
        self._socket_kind = b""
        self._socket = b""  # part of the head-stage key; b"" for plain TCP
        self._prepared: PreparedResponse | None = None  # the response to the request parsed last
        self._request_id = b""  # that the request parsed last has
        self._max_fast_head = min(self.table.policy.max_head, self.limits.max_head)
        self._closes = False  # the request parsed last wants the connection to be closed
        self._chunk = b""  # the one chunk of at most `_max_fast_head` bytes that the parser reads
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls, unix = self.scheme == "https", self.server is not None and self.server[1] is None
        self._socket_kind = socket_kind(tls, unix)
        self._socket = self._socket_kind if tls or unix else b""

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if self._phase != BETWEEN or len(data) > self._max_fast_head or (cycle and not cycle.response_complete):
            super().data_received(data)
            return
        if data[0] != _G and self._repeat_write(data, self._socket_kind):
            return
        now, request_id = self.now(), b""
        head = without_field(data, self._id_field) if self._id_field else data
        key: LookupKey = (head, self._socket) if self._socket else head
        response = self.table.find(key, now)
        if response is None:
            head, request_id = without_ids(data)
            if head is not data and not request_id:
                self._id_field = id_field(data)
            key = (head, self._socket) if self._socket else head
            response = self.table.find(key, now)
        if response is None or self.flow.write_paused or self.transport.is_closing():
            self._parse_chunk(data, key)
        else:
            self._send_prepared(response, sane_id(request_id) if request_id else "", response.closes)
            response.hits.head += 1

    def _send_prepared(self, response: PreparedResponse, request_id: str, closes: bool) -> None:
        data = response.to_bytes(self.server_state.default_headers)  # head and body, for one write
        if self.log is not None:
            self._log_prepared(self.log, response, len(data) - data.index(b"\r\n\r\n") - 4, request_id)
        if request_id:
            data = data.replace(b"\r\n", f"\r\nx-request-id: {request_id}\r\n".encode("ascii"), 1)
        self.server_state.total_requests += 1
        if closes:
            self.transport.write(data.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            self.close()
            return
        self.transport.write(data)
        self._last_sent = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._start_keep_alive_timer(self.timeout_keep_alive)

    def _log_prepared(self, log: LogAnswered, response: PreparedResponse, size: int, request_id: str) -> None:
        (path, _, query), client = response.path.partition("?"), self.client[0] if self.client else ""
        route = response.cacheable.route.path
        log(Answered("GET", path, query, route, response.status, 0.0, size, client, request_id, repeated=True))

    def _parse_chunk(self, data: bytes, key: LookupKey) -> None:
        heads_before = self._heads_parsed
        self._chunk = data
        try:
            super().data_received(data)
        finally:
            self._chunk = b""
        if self._phase != BETWEEN or self._heads_parsed != heads_before + 1:
            return  # not one whole message
        if self._prepared is None:
            self._note_write(data, self._socket_kind)
        if _ID_HEADER in (key[0] if isinstance(key, tuple) else key).lower():
            return  # written in a way that `heads` does not know
        if self._prepared is not None:
            if self.table.admits(key):
                self.table.offer(key, self._prepared.copy(closes=self._closes), self.table.serial)
        else:
            self.scope[HEAD_KEY] = key  # type: ignore[typeddict-unknown-key] - the app's task starts later and reads it

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._prepared, self._request_id, self._closes = None, b"", False

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `Http1Protocol` parses it again without the upgrade
        self._heads_parsed += 1
        response = self._find_target()
        if response is None:
            self.scope["extensions"] = {STREAM: self.take_stream}  # type: ignore[typeddict-item]
            super().on_headers_complete()
        else:
            self._prepared = response
            self._send_prepared(response, sane_id(self._request_id), self._closes)
            response.hits.target += 1

    def _find_target(self) -> PreparedResponse | None:
        """The prepared response to the request whose head is complete, if it can be sent at once."""
        cycle = self.cycle
        if not self._chunk or (cycle and not cycle.response_complete) or not self._is_plain_get():
            return None
        headers: list[tuple[bytes, bytes]] = []
        for pair in self.headers:
            if pair[0] in KEY_HEADERS:
                headers.append(pair)
            elif pair[0] == b"connection":
                if pair[1].lower() == b"close" and self._chunk.find(b"\r\n\r\n") == len(self._chunk) - 4:
                    self._closes = True  # and nothing is behind it, which would have to be ignored
                elif pair[1].lower() != b"keep-alive":
                    return None
            elif pair[0] == _ID_HEADER:
                self._request_id = pair[1]
        path, _, query = self.url.partition(b"?")
        if self.flow.write_paused or self.transport.is_closing():
            return None
        return self.table.find(target_key(self._socket_kind, path, query, headers), self.now())

    def _is_plain_get(self) -> bool:
        parser: Any = self.parser
        if parser.get_method() != b"GET" or parser.get_http_version() != "1.1":
            return False
        return b"#" not in self.url and not self.root_path

    def on_message_complete(self) -> None:
        if self._prepared is None:
            super().on_message_complete()
        else:
            self._phase = BETWEEN

    def _start_keep_alive_timer(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        left = self._last_sent + self.timeout_keep_alive - self.loop.time()  # a prepared response makes no new timer
        if left > 0:
            self._start_keep_alive_timer(left)
        else:
            super().timeout_keep_alive_handler()

    def take_stream(self) -> Stream | None:
        """The `Channel` of the current request; None if its body cannot bypass the app."""
        cycle = self.cycle
        if not cycle or cycle.response_complete or self.pipeline or self._phase != BETWEEN:
            return None
        if not cycle.response_started or not cycle.chunked_encoding or cycle.scope["method"] != "GET":
            return None
        if cycle.disconnected or cycle.scope["http_version"] != "1.1":
            return None
        self._response_transport.flush()
        cycle.response_complete = True  # the app has no more to send
        cycle.message_event.set()
        self._stream = stream = Stream(self.transport, self.flow, cycle.keep_alive, self._stream_ended)
        self.cycle = self._answering = cast(RequestResponseCycle, stream)
        self.scope = self.headers = None  # type: ignore[assignment] - saves memory in an idle stream
        self.transport.set_write_buffer_limits(HIGH_WATER)
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
        if isinstance(cast(object, self.cycle), Stream):  # it may have ended before
            self.cycle = None  # type: ignore[assignment]
        if stream is not None:
            self._answering = None
        super().connection_lost(exc)
        if stream is not None:
            stream.lost()


def make_protocol(
    table: ResponseTable,
    now: Callable[[], float],
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - a frozen value
    log: LogAnswered | None = None,
    writes: KnownWrites | None = None,
) -> type[FastProtocol]:
    """The class for uvicorn's `http=`. `now` is the clock of the marks; `log` gets repeated responses and refusals.

    `writes`: those that may be repeated; None: none may.
    """
    own_log = None if log is None else staticmethod(log)
    shared = {"table": table, "now": staticmethod(now), "limits": limits, "log": own_log, "writes": writes}
    return type("BoundProtocol", (FastProtocol,), {**shared, "__slots__": ()})

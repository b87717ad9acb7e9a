"""gRPC over HTTP/2, without I/O, in both roles: bytes to messages and back. `h2` is the engine.

`receive` takes the bytes of the socket and returns what happened; `take` returns the bytes for the socket. Messages
that wait for the peer's flow-control windows are counted in `queued`. After `Closing` nothing more happens; what `take`
returns then is the farewell. All methods do nothing for a stream that is gone and for a closed connection.

The two paths of Nacos are the only ones (nacos-grpc.md 1). Bounds, for both roles:

    more than                                   | consequence
    --------------------------------------------|-----------------------------------------------
    `max_message` bytes in a message            | the stream fails with RESOURCE_EXHAUSTED
    `max_partial` bytes of incomplete messages  | the same
    the shared budget has room for              | the same
    `max_streams` streams at once               | the connection ends
    `max_header_list` bytes of headers          | the connection ends
    the frames that `http2_frames` allows       | the connection ends
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.events import Event as H2Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from nacos_proxy.wire.http2_frames import BYTES_PER_CREDIT, MAX_FRAME, PER_MESSAGE, RESET, Excess, FrameGuard

UNARY_PATH = b"/Request/request"
STREAM_PATH = b"/BiRequestStream/requestBiStream"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

OK, UNKNOWN, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 2, 8, 12, 13, 14  # status codes of gRPC
GARBLED, BROKEN, NOT_HANDLED = -1, -2, -3  # no status came: unreadable answer; stream reset; and the server did nothing

_STREAM = 1_500  # bytes of memory that an open stream takes from the shared budget, beside its messages (measured)
_PREFIX = 5  # bytes in front of a message: whether it is compressed, and its length
_HEADER_TABLE = 4096  # bytes of headers that we remember for a peer: HTTP/2's default
_LEAST_WINDOW = 65_535  # of a connection: it has no setting, and cannot shrink
_CLOSED_STREAMS = 256  # streams that `h2` remembers: a frame that crosses our reset on its way is no error
_MAX_TEXT = 1_000  # bytes of a server's message that are kept
_GRPC = b"application/grpc"
_RESPONSE = ((b":status", b"200"), (b"content-type", _GRPC))
_STATUS_OK = ((b"grpc-status", b"0"),)
_WRONG_PORT = b"This is the port for Nacos over gRPC (HTTP/2). The port for HTTP is usually this number minus 1000.\n"
_WRONG_PROTOCOL = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
    % (len(_WRONG_PORT), _WRONG_PORT)
)
_HTTP_STATUSES = {  # of gRPC, for an answer without one: grpc/doc/http-grpc-status-mapping.md
    b"401": 16,
    b"403": 7,
    b"404": UNIMPLEMENTED,
    b"429": UNAVAILABLE,
    b"502": UNAVAILABLE,
    b"503": UNAVAILABLE,
    b"504": UNAVAILABLE,
}

Headers = tuple[tuple[bytes, bytes], ...]
Hold = Callable[[int], bool]  # takes so many bytes more (fewer: negative) from a shared budget, if they are there


class Limits(NamedTuple):
    """In bytes, but for `max_streams`."""

    max_message: int = 10 * 1024 * 1024
    max_partial: int = 16 * 1024 * 1024
    max_header_list: int = 16_384
    max_streams: int = 129
    window: int = 1024 * 1024


DEFAULT = Limits()


class Unary(NamedTuple):
    """Server: a request, complete."""

    stream: int
    message: bytes


class StreamMessage(NamedTuple):
    """A message on the bidirectional stream."""

    stream: int
    message: bytes


class Ended(NamedTuple):
    """The peer ended the bidirectional stream, or reset it. Only a server gives `status` and `text`."""

    stream: int
    status: int = OK
    text: str = ""


class Answer(NamedTuple):
    """Client: a call has ended. `message` counts only if `status` is OK."""

    stream: int
    message: bytes
    status: int = OK
    text: str = ""


class Closing(NamedTuple):
    """The connection must be closed, because the peer broke a rule (`fault`) or said that it goes."""

    reason: str
    fault: bool = True


_GOODBYE = Closing("the peer said goodbye", fault=False)

Event = Unary | StreamMessage | Ended | Answer | Closing


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = _CLOSED_STREAMS


class _Stream:
    """One stream that is open here. `long`: it is the bidirectional one. `deaf`: what comes is no message of gRPC."""

    __slots__ = ("buffer", "deaf", "ended", "finish", "headers", "held", "id", "long", "message", "out")

    def __init__(self, stream: int, *, long: bool) -> None:
        self.id = stream
        self.long = long
        self.deaf = False
        self.ended = False  # the peer sends no more
        self.buffer = bytearray()  # an incomplete message, with its prefix
        self.message: bytes | None = None  # the first one, of a unary call
        self.held = 0  # bytes of both that are counted
        self.headers: dict[bytes, bytes] = {}  # client: of the response, later its trailers
        self.out: deque[bytes | memoryview] = deque()
        self.finish: Headers | None = None  # sent behind `out`; () ends the stream without trailers


class _Refusal(Exception):
    """Fails one stream."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Endpoint:
    """What both roles share."""

    def __init__(self, *, client: bool, limits: Limits = DEFAULT, hold: Hold = lambda size: True) -> None:
        self.closed = False
        self.ready = False  # the peer's SETTINGS have arrived
        self.queued = 0  # bytes of messages that wait for windows
        self.passed = 0  # bytes of messages that windows have let pass
        self.partial = 0  # bytes of incomplete messages from the peer
        self.received = 0  # bytes from the peer
        self._limits = limits
        self._hold = hold
        self._streams: dict[int, _Stream] = {}
        self._blocked: dict[int, _Stream] = {}  # wait for windows, in the order in which they began to
        self._sent = 0  # bytes of messages since they last brought credits
        self._said = 0  # messages on the stream to a client, which it may acknowledge, less those from it
        self._guard = FrameGuard(skip=0 if client else len(PREFACE), max_block=limits.max_header_list)
        self._h2 = h2 = _H2(
            H2Configuration(
                client_side=client,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                normalize_inbound_headers=False,  # only joins cookies
            )
        )
        own = {
            SettingCodes.INITIAL_WINDOW_SIZE: limits.window,
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_list,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
        }
        if client:
            own[SettingCodes.ENABLE_PUSH] = 0
        h2.local_settings = Settings(client=client, initial_values=own)
        h2.decoder.max_header_list_size = limits.max_header_list
        h2.initiate_connection()
        if limits.window > _LEAST_WINDOW:
            h2.increment_flow_control_window(limits.window - _LEAST_WINDOW)

    @property
    def waits(self) -> bool:
        """Whether a message waits for the peer, in either direction."""
        return self.queued > 0 or self.partial > 0

    def take(self) -> bytes:
        """The bytes for the socket."""
        return self._h2.data_to_send()

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What happened. `now` in seconds, for the rate of frames."""
        events: list[Event] = []
        if self.closed:
            return events
        self.received += len(data)
        try:
            self._guard.look(data, now)
            for event in self._h2.receive_data(data):
                self._received(event, events)
        except Excess as excess:
            self.close(excess.code)
            events.append(Closing(str(excess)))
        except ProtocolError as error:
            self._forget_all()
            if self._guard.goodbye:  # `h2` hears no more after a GOAWAY, not even the rest of open streams
                events.append(_GOODBYE)
            else:
                events.append(Closing(f"{type(error).__name__}: {error}"))
        return events

    def close(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Says GOAWAY. Drops all streams and what they still had to send."""
        if not self.closed:
            self._forget_all()
            self._try(lambda: self._h2.close_connection(code))

    def reset(self, stream: int) -> None:
        """Gives a stream up, with all that it still had to send."""
        if self._streams.get(stream) is not None:
            self._forget(self._streams[stream])
            self._try(lambda: self._h2.reset_stream(stream, ErrorCodes.CANCEL))

    def send(self, stream: int, message: bytes) -> None:
        """A message on the bidirectional stream."""
        known = self._streams.get(stream)
        if known is not None and known.finish is None:
            self._said += 1
            self._send(known, message)

    # receiving

    def _received(self, event: H2Event, events: list[Event]) -> None:
        if isinstance(event, DataReceived):
            self._data_received(event, events)
        elif isinstance(event, WindowUpdated):
            self._window_opened(event.stream_id or 0)
        elif isinstance(event, RequestReceived):
            self._requested(event)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            known = self._streams.get(event.stream_id)
            if known is not None:
                self._answered(known, event)
        elif isinstance(event, StreamEnded):
            known = self._streams.get(event.stream_id)
            if known is not None:
                known.ended = True
                self._ended(known, events)
        elif isinstance(event, StreamReset):
            known = self._streams.get(event.stream_id)
            if known is not None:
                self._guard.spend(RESET)
                self._forget(known)
                self._was_reset(known, event, events)
        elif isinstance(event, RemoteSettingsChanged):
            self.ready = True
            if self._h2.encoder.header_table_size > _HEADER_TABLE:  # the peer offers more, and we would fill it
                self._h2.encoder.header_table_size = _HEADER_TABLE
            self._window_opened(0)
        elif isinstance(event, ConnectionTerminated):
            self._forget_all()
            events.append(_GOODBYE)

    def _requested(self, event: RequestReceived) -> None:
        raise NotImplementedError

    def _answered(self, stream: _Stream, event: ResponseReceived | TrailersReceived) -> None:
        """Trailers of a client say nothing."""

    def _ended(self, stream: _Stream, events: list[Event]) -> None:
        raise NotImplementedError

    def _was_reset(self, stream: _Stream, event: StreamReset, events: list[Event]) -> None:
        raise NotImplementedError

    def _refused(self, stream: _Stream, refusal: _Refusal, events: list[Event]) -> None:
        raise NotImplementedError

    def _data_received(self, event: DataReceived, events: list[Event]) -> None:
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream = self._streams.get(event.stream_id)
        if not event.data and event.stream_ended is None:
            self._guard.spend(1)
        if stream is None or stream.deaf or not event.data:
            return
        try:
            for message in self._messages(stream, event.data):
                if stream.long:
                    self._said_by_peer()
                    events.append(StreamMessage(stream.id, message))
                elif stream.message is None:
                    stream.message = message
            if event.stream_ended is None:
                self._count(stream, len(stream.buffer) + len(stream.message or b""))
        except _Refusal as refusal:
            self._refused(stream, refusal, events)

    def _said_by_peer(self) -> None:
        """A message on the stream. Raises `Excess`."""

    def _messages(self, stream: _Stream, data: bytes) -> Iterable[bytes]:
        """The messages that are complete now. Keeps the rest. Raises `_Refusal`."""
        buffer = stream.buffer
        if not buffer and len(data) >= _PREFIX and len(data) == _PREFIX + self._size(data):
            yield data[_PREFIX:]
            return
        if stream.message is not None:  # only the first counts
            return
        buffer += data
        start = 0
        while len(buffer) - start >= _PREFIX:
            end = start + _PREFIX + self._size(buffer[start : start + _PREFIX])
            if len(buffer) < end:
                break
            yield bytes(buffer[start + _PREFIX : end])
            start = end
        if start:
            del buffer[:start]

    def _size(self, prefix: bytes | bytearray) -> int:
        size = int.from_bytes(prefix[1:_PREFIX], "big")
        if prefix[0]:
            raise _Refusal(UNIMPLEMENTED, "compressed messages are not supported")
        if size > self._limits.max_message:
            raise _Refusal(
                RESOURCE_EXHAUSTED, f"a message of {size} bytes, at most {self._limits.max_message} are allowed"
            )
        return size

    def _count(self, stream: _Stream, held: int) -> None:
        """Counts the bytes that a stream holds. Raises `_Refusal` if that is too many."""
        more = held - stream.held
        if more > 0 and (self.partial + more > self._limits.max_partial or not self._hold(more)):
            raise _Refusal(RESOURCE_EXHAUSTED, "too many bytes of incomplete messages")
        if more < 0:
            self._hold(more)
        self.partial += more
        stream.held = held

    # sending

    def _send(self, stream: _Stream, message: bytes) -> None:
        stream.out.append(b"\0" + len(message).to_bytes(4, "big") + message)
        self.queued += _PREFIX + len(message)
        self._guard.earn(PER_MESSAGE)
        if len(stream.out) == 1:
            self._pump(stream)

    def _window_opened(self, stream: int) -> None:
        if self._blocked:
            for blocked in [self._blocked.get(stream)] if stream else list(self._blocked.values()):
                if blocked is not None:
                    self._pump(blocked)

    def _pump(self, stream: _Stream) -> None:
        """Gives `h2` as much as the windows allow."""
        h2, out = self._h2, stream.out
        try:
            while out:
                size = min(h2.local_flow_control_window(stream.id), h2.max_outbound_frame_size)
                if size <= 0:
                    self._blocked[stream.id] = stream
                    return
                chunk = out[0]
                if len(chunk) > size:
                    h2.send_data(stream.id, memoryview(chunk)[:size])
                    out[0] = memoryview(chunk)[size:]
                    self._passed(size)
                else:
                    h2.send_data(stream.id, chunk, end_stream=stream.finish == () and len(out) == 1)
                    out.popleft()
                    self._passed(len(chunk))
            self._blocked.pop(stream.id, None)
            if stream.finish:
                h2.send_headers(stream.id, stream.finish, end_stream=True)
                if not stream.ended:  # the answer is complete before the request is (RFC 9113 8.1)
                    h2.reset_stream(stream.id, ErrorCodes.NO_ERROR)
                self._forget(stream)
        except ProtocolError:  # the peer reset the stream in the same packet
            self._forget(stream)

    def _passed(self, size: int) -> None:
        self.queued -= size
        self.passed += size
        self._sent += size
        if self._sent >= BYTES_PER_CREDIT:
            self._guard.earn(self._sent // BYTES_PER_CREDIT)
            self._sent %= BYTES_PER_CREDIT

    def _try(self, action: Callable[[], None]) -> bool:
        """Whether `h2` accepted it. It does not if the stream or the connection ended in the same packet."""
        try:
            action()
        except ProtocolError:
            return False
        return True

    def _forget(self, stream: _Stream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._hold(-_STREAM)
        self._blocked.pop(stream.id, None)
        self._drop_output(stream)
        self._count(stream, 0)

    def _drop_output(self, stream: _Stream) -> None:
        self.queued -= sum(map(len, stream.out))
        stream.out.clear()

    def _forget_all(self) -> None:
        self.closed = True
        for stream in list(self._streams.values()):
            self._forget(stream)


class ServerEndpoint(_Endpoint):
    """The server's role. Events: `Unary`, `StreamMessage`, `Ended`, `Closing`."""

    def __init__(self, *, limits: Limits = DEFAULT, hold: Hold = lambda size: True) -> None:
        super().__init__(client=False, limits=limits, hold=hold)
        self._preface = PREFACE  # what of it has not come yet
        self._wrong_protocol = b""

    def take(self) -> bytes:
        """Nothing before the preface: a client of HTTP/1 must get an answer that it understands."""
        if not self._preface:
            return super().take()
        answer, self._wrong_protocol = self._wrong_protocol, b""
        return answer

    def receive(self, data: bytes, now: float) -> list[Event]:
        if self._preface and not self.closed:
            begin = data[: len(self._preface)]
            if not self._preface.startswith(begin):
                self.closed = True
                if b" HTTP/1" in data:
                    self._wrong_protocol = _WRONG_PROTOCOL
                return [Closing("the client does not speak HTTP/2")]
            self._preface = self._preface[len(begin) :]
        return super().receive(data, now)

    def answer(self, stream: int, message: bytes) -> None:
        """The whole answer to a `Unary`."""
        known = self._streams.get(stream)
        if known is None or known.finish is not None or known.long:
            return
        if self._try(lambda: self._h2.send_headers(stream, _RESPONSE)):
            known.finish = _STATUS_OK
            self._send(known, message)
        else:
            self._forget(known)

    def fail(self, stream: int, status: int, text: str = "") -> None:
        """An answer without a message."""
        known = self._streams.get(stream)
        if known is not None and known.finish is None and not known.long:
            self._finish(known, (*_RESPONSE, *_trailers(status, text)))

    def end(self, stream: int, status: int = OK, text: str = "") -> None:
        """Ends the bidirectional stream, after what was sent on it before."""
        known = self._streams.get(stream)
        if known is not None and known.finish is None and known.long:
            self._finish(known, _trailers(status, text))

    def _finish(self, stream: _Stream, trailers: Headers) -> None:
        stream.finish = trailers
        if not stream.out:
            self._pump(stream)

    def _requested(self, event: RequestReceived) -> None:
        headers = dict(event.headers)
        path = headers.get(b":path")
        stream = _Stream(event.stream_id, long=path == STREAM_PATH)
        stream.ended = event.stream_ended is not None
        if headers.get(b":method") != b"POST":
            self._finish(stream, ((b":status", b"405"),))
        elif not _is_grpc(headers):
            self._finish(stream, ((b":status", b"415"),))
        elif path != UNARY_PATH and not stream.long:
            self._finish(stream, (*_RESPONSE, *_trailers(UNIMPLEMENTED, "there is no such method")))
        elif not self._hold(_STREAM):
            self._finish(stream, (*_RESPONSE, *_trailers(RESOURCE_EXHAUSTED, "too many open streams")))
        else:
            self._streams[stream.id] = stream
            if stream.long and not self._try(lambda: self._h2.send_headers(stream.id, _RESPONSE)):
                self._forget(stream)

    def _ended(self, stream: _Stream, events: list[Event]) -> None:
        if stream.long:
            events.append(Ended(stream.id))
        elif stream.finish is not None:
            return
        elif stream.message is None:
            self.fail(stream.id, INTERNAL, "the request is not complete")
        else:
            message, stream.message = stream.message, b""
            stream.buffer.clear()
            self._count(stream, 0)
            events.append(Unary(stream.id, message))

    def _said_by_peer(self) -> None:
        """Clients only acknowledge what we say there, but for their setup."""
        if self._said:
            self._said -= 1
        else:
            self._guard.spend(1)

    def _was_reset(self, stream: _Stream, event: StreamReset, events: list[Event]) -> None:
        if stream.long:
            events.append(Ended(stream.id))

    def _refused(self, stream: _Stream, refusal: _Refusal, events: list[Event]) -> None:
        trailers = _trailers(refusal.status, str(refusal))
        self._drop_output(stream)
        stream.deaf = True
        if stream.long:
            events.append(Ended(stream.id))
        self._finish(stream, trailers if stream.long else (*_RESPONSE, *trailers))


class ClientEndpoint(_Endpoint):
    """The client's role. Events: `Answer`, `StreamMessage`, `Ended`, `Closing`."""

    def __init__(self, authority: str, *, tls: bool = False, limits: Limits = DEFAULT) -> None:
        super().__init__(client=True, limits=limits)
        self._headers: Headers = (
            (b":method", b"POST"),
            (b":scheme", b"https" if tls else b"http"),
            (b":authority", authority.encode()),
            (b"content-type", _GRPC),
            (b"te", b"trailers"),
            (b"user-agent", b"nacos-proxy"),
        )

    @property
    def room(self) -> bool:
        """Whether one more stream may be opened now."""
        most = min(self._limits.max_streams, self._h2.remote_settings.max_concurrent_streams)
        return not self.closed and len(self._streams) < most

    def receive(self, data: bytes, now: float) -> list[Event]:
        if not self.received and data.startswith(b"HTTP/"):
            self.close()
            return [Closing("the server speaks HTTP/1, not gRPC")]
        return super().receive(data, now)

    def call(self, message: bytes) -> int:
        """Sends a request; the number of its stream. Only if there is `room`."""
        stream = self._open(UNARY_PATH, long=False)
        stream.finish = ()
        self._send(stream, message)
        return stream.id

    def open(self) -> int:
        """Opens the bidirectional stream. Only if there is `room`."""
        return self._open(STREAM_PATH, long=True).id

    def _open(self, path: bytes, *, long: bool) -> _Stream:
        stream = _Stream(self._h2.get_next_available_stream_id(), long=long)
        self._h2.send_headers(stream.id, (*self._headers[:1], (b":path", path), *self._headers[1:]))
        self._streams[stream.id] = stream
        return stream

    def _requested(self, event: RequestReceived) -> None:
        """`h2` refuses requests in this role."""

    def _answered(self, stream: _Stream, event: ResponseReceived | TrailersReceived) -> None:
        stream.headers.update(event.headers)
        stream.deaf = not _is_grpc(stream.headers)

    def _ended(self, stream: _Stream, events: list[Event]) -> None:
        message = stream.message or b""
        if stream.finish != () or stream.out:  # the server ended it, and we have not
            self.reset(stream.id)
        self._forget(stream)
        status, text = _read_status(stream.headers)
        if stream.long:
            events.append(Ended(stream.id, status, text))
        elif status == OK and stream.message is None:
            events.append(Answer(stream.id, b"", GARBLED, "the answer has no message"))
        else:
            events.append(Answer(stream.id, message, status, text))

    def _was_reset(self, stream: _Stream, event: StreamReset, events: list[Event]) -> None:
        code = event.error_code
        text = f"the stream was reset ({code.name if isinstance(code, ErrorCodes) else code})"
        if stream.long:
            events.append(Ended(stream.id, BROKEN, text))
        else:
            status = NOT_HANDLED if code == ErrorCodes.REFUSED_STREAM else BROKEN
            events.append(Answer(stream.id, b"", status, text))

    def _refused(self, stream: _Stream, refusal: _Refusal, events: list[Event]) -> None:
        self.reset(stream.id)
        if stream.long:
            events.append(Ended(stream.id, GARBLED, str(refusal)))
        else:
            events.append(Answer(stream.id, b"", GARBLED, str(refusal)))


def _is_grpc(headers: dict[bytes, bytes]) -> bool:
    kind = headers.get(b"content-type", b"")
    return kind.startswith(_GRPC) and kind[len(_GRPC) :][:1] in (b"", b"+", b";")


def _trailers(status: int, text: str) -> Headers:
    if not text:
        return ((b"grpc-status", b"%d" % status),)
    printable = "".join(chr(code) for code in range(32, 127) if code != 37)
    return ((b"grpc-status", b"%d" % status), (b"grpc-message", quote(text, safe=printable).encode()))


def _read_status(headers: dict[bytes, bytes]) -> tuple[int, str]:
    """The status and message of gRPC; from HTTP's status if a gateway answered."""
    status, http = headers.get(b"grpc-status", b""), headers.get(b":status", b"")
    if status.isdigit() and len(status) <= 3:  # `int` refuses thousands of digits
        return int(status), unquote(headers.get(b"grpc-message", b"")[:_MAX_TEXT].decode("utf-8", "replace"))
    return _HTTP_STATUSES.get(http, UNKNOWN), f"HTTP {http[:3].decode('ascii', 'replace')}, without a status of gRPC"

"""The two endpoints against each other, and each against `h2` itself or frames by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.http2 import (
    BROKEN,
    GARBLED,
    INTERNAL,
    NOT_HANDLED,
    PREFACE,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    Answer,
    ClientEndpoint,
    Closing,
    Ended,
    Event,
    Limits,
    ServerEndpoint,
    StreamMessage,
    Unary,
)
from nacos_proxy.wire.http2_frames import BURST, RESET
from tests.helpers import frames

SMALL = Limits(max_message=1000, max_partial=1500, max_header_list=2000, max_streams=3)


class Pair:
    """A client and a server that have shaken hands."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 (frozen)
        self.server, self.client = ServerEndpoint(limits=limits), ClientEndpoint("here:1")
        self.talk()

    def talk(self) -> list[Event]:
        """What happens at either side until both are quiet."""
        events: list[Event] = []
        while True:
            said, answered = self.client.take(), self.server.take()
            if not said and not answered:
                return events
            events += self.server.receive(said, 1.0) if said else []
            events += self.client.receive(answered, 1.0) if answered else []


class Raw:
    """A server endpoint, and a client that says frames by hand; `h2` reads the answers."""

    def __init__(self, limits: Limits = SMALL, **more: Any) -> None:
        self.endpoint = ServerEndpoint(limits=limits, **more)
        self.encoder = Encoder()
        self.answers: list[Any] = []
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.h2.data_to_send()
        self.say(PREFACE, frames.settings())

    def say(self, *data: bytes, now: float = 1.0) -> list[Event]:
        events = self.endpoint.receive(b"".join(data), now)
        self.hear()
        return events

    def hear(self) -> None:
        self.said = self.endpoint.take()

    def request(self, stream: int, body: bytes, flags: int = frames.END_STREAM) -> bytes:
        head = frames.headers(self.encoder, stream, frames.REQUEST)
        return head + frames.frame(frames.DATA, flags, stream, body)

    def open(self, stream: int = 1) -> bytes:
        return frames.headers(self.encoder, stream, frames.STREAM)


def h2_answers(raw: Raw, *fields: tuple[bytes, bytes], end: bool = True) -> list[Any]:
    """What `h2` as a client understands of the answer to one request with these fields."""
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    server = ServerEndpoint()
    client.send_headers(1, fields, end_stream=end)
    server.receive(client.data_to_send(), 1.0)
    return client.receive_data(server.take())


def replaced(name: bytes, value: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((key, value if key == name else old) for key, old in frames.REQUEST)


# both roles


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_536, 3_000_000])
def test_call_and_answer(size: int) -> None:
    pair = Pair()
    stream = pair.client.call(b"q" * size)
    assert pair.talk() == [Unary(stream, b"q" * size)]
    pair.server.answer(stream, b"a" * size)
    assert pair.talk() == [Answer(stream, b"a" * size)]
    assert (pair.server.queued, pair.client.queued, pair.server.partial, pair.client.partial) == (0, 0, 0, 0)


@given(st.lists(st.binary(max_size=40_000), max_size=6), st.integers(1, 50_000))
def test_messages_on_the_stream_keep_their_order_in_any_pieces(bodies: list[bytes], size: int) -> None:
    server, client = ServerEndpoint(), ClientEndpoint("here:1")
    stream = client.open()
    for body in bodies:
        client.send(stream, body)
    events: list[Event] = []
    while said := client.take():
        for start in range(0, len(said), size):
            events += server.receive(said[start : start + size], 1.0)
        client.receive(server.take(), 1.0)
    assert events == [StreamMessage(stream, body) for body in bodies]


def test_queued_counts_what_the_windows_hold_back() -> None:
    server, client = ServerEndpoint(), ClientEndpoint("here:1", limits=Limits(window=65_535))
    stream = client.open()
    server.receive(client.take(), 1.0)
    server.send(stream, b"x" * 100_000)
    server.send(stream, b"y")
    assert server.queued == 100_005 - 65_535 + 6
    assert server.passed == 65_535
    events: list[Event] = []
    while said := server.take():
        events += client.receive(said, 1.0)
        server.receive(client.take(), 1.0)
    assert events == [StreamMessage(stream, b"x" * 100_000), StreamMessage(stream, b"y")]
    assert server.queued == 0


def test_answer_waits_behind_its_windows_with_its_trailers() -> None:
    server, client = ServerEndpoint(), ClientEndpoint("here:1", limits=Limits(window=65_535))
    stream = client.call(b"")
    server.receive(client.take(), 1.0)
    server.answer(stream, b"x" * 100_000)
    server.answer(stream, b"again")
    assert server.queued > 0
    events: list[Event] = []
    while said := server.take():
        events += client.receive(said, 1.0)
        server.receive(client.take(), 1.0)
    assert events == [Answer(stream, b"x" * 100_000)]


def test_everything_is_a_no_op_for_a_stream_that_is_gone() -> None:
    pair = Pair()
    pair.server.answer(7, b"")
    pair.server.fail(7, 1)
    pair.server.send(7, b"")
    pair.server.end(7)
    pair.server.reset(7)
    assert pair.server.take() == b""


def test_everything_is_a_no_op_for_the_wrong_kind_of_stream() -> None:
    pair = Pair()
    call, stream = pair.client.call(b""), pair.client.open()
    pair.talk()
    pair.server.end(call)
    pair.server.answer(stream, b"")
    pair.server.fail(stream, 1)
    assert pair.talk() == []


def test_close_says_goodbye_and_drops_everything() -> None:
    pair = Pair()
    stream = pair.client.open()
    pair.talk()
    pair.server.send(stream, b"x" * 20_000_000)
    pair.server.take()
    pair.server.close()
    assert pair.server.queued == 0
    assert pair.client.receive(pair.server.take(), 1.0) == [Closing("the peer said goodbye", fault=False)]
    pair.server.close()
    pair.server.send(stream, b"")
    assert pair.server.take() == b""
    assert pair.server.receive(b"whatever", 1.0) == []
    assert not pair.client.room


# server


def test_fail_gives_status_and_text() -> None:
    pair = Pair()
    stream = pair.client.call(b"")
    pair.talk()
    pair.server.fail(stream, 5, "100 % of ü")
    assert pair.talk() == [Answer(stream, b"", 5, "100 % of ü")]


def test_end_ends_the_stream_behind_what_was_sent() -> None:
    pair = Pair()
    stream = pair.client.open()
    pair.talk()
    pair.server.send(stream, b"last")
    pair.server.end(stream, 1, "bye")
    assert pair.talk() == [StreamMessage(stream, b"last"), Ended(stream, 1, "bye")]


def test_headers_of_the_stream_go_out_when_it_opens() -> None:
    raw = Raw()
    assert raw.say(raw.open()) == []
    assert frames.kinds(raw.said) == [frames.HEADERS]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (replaced(b":method", b"GET"), "405"),
        (replaced(b"content-type", b"application/json"), "415"),
        (replaced(b"content-type", b"application/grpc-web"), "415"),
        (frames.REQUEST[:4], "415"),
    ],
)
@pytest.mark.parametrize("end", [True, False])
def test_what_is_not_grpc_gets_a_status_of_http(
    fields: tuple[tuple[bytes, bytes], ...], status: str, end: bool
) -> None:
    answers = h2_answers(Raw(), *fields, end=end)
    response = next(event for event in answers if isinstance(event, ResponseReceived))
    assert response.headers == [(":status", status)]
    assert response.stream_ended is not None
    assert any(isinstance(event, StreamReset) for event in answers) is not end


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc;x=y"])
def test_other_paths_are_unimplemented(kind: bytes) -> None:
    fields = tuple((key, {b":path": b"/x/y", b"content-type": kind}.get(key, old)) for key, old in frames.REQUEST)
    response = next(event for event in h2_answers(Raw(), *fields) if isinstance(event, ResponseReceived))
    assert dict(response.headers)["grpc-status"] == str(UNIMPLEMENTED)


def test_answer_as_h2_reads_it() -> None:
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    server = ServerEndpoint()
    client.send_headers(1, frames.REQUEST)
    client.send_data(1, frames.message(b"hallo"), end_stream=True)
    assert server.receive(client.data_to_send(), 1.0) == [Unary(1, b"hallo")]
    server.answer(1, b"echo")
    events = client.receive_data(server.take())
    response, data, trailers = (
        next(event for event in events if isinstance(event, kind))
        for kind in (ResponseReceived, DataReceived, TrailersReceived)
    )
    assert response.headers == [(":status", "200"), ("content-type", "application/grpc")]
    assert data.data == frames.message(b"echo")
    assert trailers.headers == [("grpc-status", "0")]


def test_first_of_several_messages_counts() -> None:
    raw = Raw()
    one, two = frames.message(b"one"), frames.message(b"two")
    assert raw.say(raw.request(1, one + two)) == [Unary(1, b"one")]
    assert raw.say(raw.request(3, one, 0), frames.frame(frames.DATA, 1, 3, two)) == [Unary(3, b"one")]
    assert raw.say(raw.request(5, one, 0), frames.frame(frames.DATA, 1, 5, two[:4])) == [Unary(5, b"one")]
    assert raw.endpoint.partial == 0


@pytest.mark.parametrize("body", [b"", b"\0\0", frames.message(b"abc")[:-1]])
def test_incomplete_request_fails(body: bytes) -> None:
    pair = Pair()
    stream = pair.client.call(b"xyz")
    said = pair.client.take().replace(frames.message(b"xyz"), body)
    position = said.index(b"\0\0\x08\0\x01")
    said = said[:position] + frames.number(len(body), 3) + said[position + 3 :]
    assert pair.server.receive(said, 1.0) == []
    assert pair.talk() == [Answer(stream, b"", INTERNAL, "the request is not complete")]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"\1\0\0\0\1x", UNIMPLEMENTED), (b"\0\0\1\0\0", RESOURCE_EXHAUSTED), (b"\0\xff\xff\xff\xff", RESOURCE_EXHAUSTED)],
)
def test_refused_message_fails_its_stream_alone(body: bytes, status: int) -> None:
    raw = Raw()
    assert raw.say(raw.request(1, body, 0)) == []
    assert frames.kinds(raw.said) == [frames.HEADERS, frames.RST_STREAM]
    assert raw.say(raw.request(3, frames.message(b"fine"))) == [Unary(3, b"fine")]
    assert raw.say(raw.open(5), frames.frame(frames.DATA, 0, 5, body)) == [Ended(5)]
    assert frames.kinds(raw.said) == [frames.HEADERS, frames.HEADERS, frames.RST_STREAM]
    raw.endpoint.send(5, b"")
    assert raw.endpoint.take() == b""
    assert status


def test_incomplete_messages_are_bounded_together() -> None:
    raw = Raw()
    half = frames.message(bytes(1000))[:800]
    raw.say(raw.request(1, half, 0), raw.open(3), frames.frame(frames.DATA, 0, 3, half[:600]))
    assert raw.endpoint.partial == 1400
    raw.say(raw.request(5, half, 0))
    assert frames.kinds(raw.said) == [frames.HEADERS, frames.RST_STREAM]
    assert raw.endpoint.partial == 1400
    raw.say(frames.frame(frames.DATA, 0, 3, bytes(405)))
    assert raw.endpoint.partial == 800
    raw.say(frames.frame(frames.RST_STREAM, 0, 1, frames.number(8)))
    assert raw.endpoint.partial == 0


def test_incomplete_messages_take_from_the_shared_budget() -> None:
    held: list[int] = []

    def hold(size: int) -> bool:
        if sum(held) + size > 4000:
            return False
        held.append(size)
        return True

    raw = Raw(Limits(), hold=hold)
    half = frames.message(bytes(1000))[:800]
    raw.say(raw.request(1, half, 0))
    assert sum(held) == 800 + 1500
    raw.say(raw.request(3, half, 0))
    assert frames.kinds(raw.said) == [frames.HEADERS, frames.RST_STREAM], "no room for its bytes"
    raw.say(raw.open(5))
    assert sum(held) == 800 + 1500 * 2
    raw.say(raw.open(7))
    assert frames.kinds(raw.said) == [frames.HEADERS, frames.RST_STREAM], "no room for the stream"
    raw.say(frames.frame(frames.RST_STREAM, 0, 5, frames.number(8)))
    assert raw.say(frames.frame(frames.DATA, 1, 1, bytes(205))) == [Unary(1, bytes(1000))]
    assert sum(held) == 1500
    raw.endpoint.answer(1, b"")
    assert sum(held) == 0


def test_half_close_and_reset_end_the_stream() -> None:
    raw = Raw()
    raw.say(raw.open(1), raw.open(3))
    assert raw.say(frames.frame(frames.DATA, 1, 1)) == [Ended(1)]
    raw.endpoint.send(1, b"still heard")
    assert raw.endpoint.take()
    assert raw.say(frames.frame(frames.RST_STREAM, 0, 3, frames.number(8))) == [Ended(3)]
    raw.endpoint.send(3, b"gone")
    assert raw.endpoint.take() == b""


def test_answer_to_a_request_that_was_reset_in_the_same_packet() -> None:
    raw = Raw()
    reset = frames.frame(frames.RST_STREAM, 0, 1, frames.number(8))
    assert raw.say(raw.request(1, frames.message(b"x")), reset) == [Unary(1, b"x")]
    raw.endpoint.answer(1, b"")
    assert raw.endpoint.take() == b""
    reset = frames.frame(frames.RST_STREAM, 0, 3, frames.number(8))
    assert raw.say(raw.open(3), frames.frame(frames.DATA, 0, 3, frames.message(b"x")), reset) == []


def test_too_many_streams_end_the_connection() -> None:
    raw = Raw()
    for stream in (1, 3, 5):
        raw.say(raw.open(stream))
    (closing,) = raw.say(raw.open(7))
    assert isinstance(closing, Closing)
    assert closing.reason.startswith("TooManyStreamsError")
    assert closing.fault


def test_header_list_is_bounded() -> None:
    raw = Raw()
    (closing,) = raw.say(frames.headers(raw.encoder, 1, [*frames.REQUEST, (b"x", b"y" * 3000)]))
    assert isinstance(closing, Closing)
    assert raw.endpoint.closed
    assert frames.kinds(raw.said) == [frames.GOAWAY]


@pytest.mark.parametrize("piece", [b"", b"\0"])
def test_flood_of_empty_data_ends_the_connection(piece: bytes) -> None:
    raw = Raw()
    raw.say(raw.open())
    empty = frames.frame(frames.DATA, frames.PADDED if piece else 0, 1, piece)
    (closing,) = raw.say(empty * (BURST + 1))
    assert isinstance(closing, Closing)


def test_flood_of_messages_on_the_stream_ends_the_connection() -> None:
    raw = Raw(Limits())
    raw.say(raw.open())
    *messages, closing = raw.say(frames.frame(frames.DATA, 0, 1, frames.message(b"") * (BURST + 100)))
    assert len(messages) <= BURST
    assert isinstance(closing, Closing)


def test_acknowledgements_of_what_was_sent_are_no_flood() -> None:
    raw = Raw(Limits())
    raw.say(raw.open())
    sent = 2 * BURST
    for _ in range(sent):
        raw.endpoint.send(1, b"")
    acknowledged = raw.say(*(frames.frame(frames.DATA, 0, 1, frames.message(b"x")) for _ in range(sent)))
    assert acknowledged == [StreamMessage(1, b"x")] * sent


def test_rapid_reset_ends_the_connection() -> None:
    raw, asked = Raw(), 0
    for stream in range(1, 2 * BURST, 2):
        reset = frames.frame(frames.RST_STREAM, 0, stream, frames.number(8))
        events = raw.say(raw.request(stream, frames.message(b"x"), 0), reset)
        if any(isinstance(event, Closing) for event in events):
            break
        asked += 1
    assert asked <= BURST / (RESET + 1)


def test_resets_of_answered_requests_and_slow_resets_are_fine() -> None:
    raw = Raw()
    for stream in range(1, 10_001, 2):
        assert len(raw.say(raw.request(stream, frames.message(b"x")))) == 1
        raw.endpoint.answer(stream, b"")
        assert raw.say(frames.frame(frames.RST_STREAM, 0, stream, frames.number(8))) == []
    for stream in range(10_001, 14_001, 2):  # 10 a second, as a client with time-outs
        reset = frames.frame(frames.RST_STREAM, 0, stream, frames.number(8))
        assert len(raw.say(raw.request(stream, frames.message(b"x")), reset, now=stream / 20)) == 1


def test_window_updates_in_a_flood_cannot_make_slivers_for_ever() -> None:
    raw = Raw(Limits())
    raw.say(frames.settings((4, 0)), raw.open())
    raw.endpoint.send(1, b"x" * 1_000_000)
    updates = 0
    while not raw.endpoint.closed and updates < 100_000:
        raw.say(frames.frame(frames.WINDOW_UPDATE, 0, 1, frames.number(1)))
        updates += 1
    assert updates <= BURST + 10
    assert raw.endpoint.queued == 0


def test_large_header_tables_are_not_filled() -> None:
    raw = Raw()
    raw.say(frames.settings((1, 2**32 - 1)))
    for stream in range(1, 4001, 2):
        raw.say(raw.request(stream, frames.message(b"x")), now=float(stream))
        raw.endpoint.fail(stream, 3, f"reason {stream}" * 5)
    table = raw.endpoint._h2.encoder.header_table
    assert len(table.dynamic_entries) < 60


def test_preface_decides_who_is_there() -> None:
    server = ServerEndpoint()
    assert server.take() == b""
    assert server.receive(PREFACE[:10], 1.0) == []
    assert server.take() == b""
    assert server.receive(PREFACE[10:], 1.0) == []
    assert not server.ready
    assert frames.kinds(server.take())[0] == frames.SETTINGS
    server.receive(frames.settings(), 1.0)
    assert server.ready


def test_http1_gets_an_answer_in_http1() -> None:
    server = ServerEndpoint()
    assert server.receive(b"GET /nacos/v1/ns/instance/list HTTP/1.1\r\n", 1.0) == [
        Closing("the client does not speak HTTP/2")
    ]
    answer = server.take()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"gRPC" in answer
    assert server.take() == b""


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\x00", b"PRINT\r\n", b"\0"])
def test_anything_else_gets_no_answer(said: bytes) -> None:
    server = ServerEndpoint()
    assert server.receive(said, 1.0) == [Closing("the client does not speak HTTP/2")]
    assert server.take() == b""


def test_settings_are_those_of_nacos() -> None:
    server = ServerEndpoint()
    server.receive(PREFACE + frames.settings(), 1.0)
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    client.receive_data(server.take())
    settings = client.remote_settings
    assert settings.initial_window_size == 1024 * 1024
    assert settings.max_header_list_size == 16_384
    assert settings.max_concurrent_streams == 129
    assert client.outbound_flow_control_window == 1024 * 1024


# client


class Served:
    """A client endpoint, and a server that says frames by hand."""

    def __init__(self, *first: bytes) -> None:
        self.endpoint = ClientEndpoint("here:1", limits=SMALL)
        self.encoder = Encoder()
        self.endpoint.receive(frames.settings() + b"".join(first), 1.0)

    def answer(self, stream: int, fields: tuple[tuple[bytes, bytes], ...], body: bytes | None = None) -> list[Event]:
        end = frames.END_STREAM if body is None else 0
        data = b"" if body is None else frames.frame(frames.DATA, 1, stream, body)
        return self.endpoint.receive(frames.headers(self.encoder, stream, fields, end) + data, 1.0)


def test_request_as_h2_reads_it() -> None:
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    endpoint = ClientEndpoint("here:1", tls=True)
    endpoint.call(b"hallo")
    request = next(event for event in server.receive_data(endpoint.take()) if hasattr(event, "headers"))
    assert dict(request.headers) == {  # type: ignore[attr-defined]
        b":method": b"POST",
        b":path": b"/Request/request",
        b":scheme": b"https",
        b":authority": b"here:1",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        b"user-agent": b"nacos-proxy",
    }


@pytest.mark.parametrize(
    ("http", "status"),
    [(b"401", 16), (b"403", 7), (b"404", UNIMPLEMENTED), (b"503", UNAVAILABLE), (b"500", UNKNOWN), (b"200", UNKNOWN)],
)
def test_answer_of_a_gateway_has_a_status(http: bytes, status: int) -> None:
    served = Served()
    stream = served.endpoint.call(b"")
    fields = ((b":status", http), (b"content-type", b"text/html"))
    (answer,) = served.answer(stream, fields, b"<html>" * 1000)
    assert answer == Answer(stream, b"", status, f"HTTP {http.decode()}, without a status of gRPC")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\1\0\0\0\1x", "compressed messages are not supported"),
        (b"\0\0\1\0\0", "a message of 65536 bytes, at most 1000 are allowed"),
    ],
)
def test_unreadable_answer_is_garbled(body: bytes, text: str) -> None:
    served = Served()
    stream, long = served.endpoint.call(b""), served.endpoint.open()
    assert served.answer(stream, frames.RESPONSE, body) == [Answer(stream, b"", GARBLED, text)]
    assert served.answer(long, frames.RESPONSE, body) == [Ended(long, GARBLED, text)]


def test_answer_without_message_is_garbled() -> None:
    served = Served()
    stream = served.endpoint.call(b"")
    assert served.answer(stream, (*frames.RESPONSE, (b"grpc-status", b"0"))) == [
        Answer(stream, b"", GARBLED, "the answer has no message")
    ]


@pytest.mark.parametrize(("code", "status"), [(7, NOT_HANDLED), (8, BROKEN), (2, BROKEN), (999, BROKEN)])
def test_reset_says_whether_the_call_was_handled(code: int, status: int) -> None:
    served = Served()
    stream, long = served.endpoint.call(b""), served.endpoint.open()
    for number in (stream, long):
        (event,) = served.endpoint.receive(frames.frame(frames.RST_STREAM, 0, number, frames.number(code)), 1.0)
        assert isinstance(event, Answer | Ended)
        assert event.status == (status if number == stream else BROKEN)


def test_reset_gives_a_call_up() -> None:
    pair = Pair()
    stream = pair.client.call(b"x")
    assert pair.talk() == [Unary(stream, b"x")]
    pair.client.reset(stream)
    assert pair.talk() == []
    pair.server.answer(stream, b"late")
    assert pair.talk() == []


def test_room_obeys_the_server() -> None:
    served = Served(frames.settings((3, 2)))
    first = served.endpoint.call(b"")
    assert served.endpoint.room
    served.endpoint.call(b"")
    assert not served.endpoint.room
    served.answer(first, frames.RESPONSE, frames.message(b""))
    assert served.endpoint.room
    served = Served(frames.settings((3, 0)))
    assert not served.endpoint.room


def test_http1_server_is_recognized() -> None:
    endpoint = ClientEndpoint("here:1")
    assert endpoint.receive(b"HTTP/1.1 400 Bad Request\r\n", 1.0) == [Closing("the server speaks HTTP/1, not gRPC")]


@given(st.integers(0, 2**32))
def test_all_arrives_whatever_the_windows(seed: int) -> None:
    """`h2` as a client with odd windows, which opens them late, in any order, and changes them."""
    rng = random.Random(seed)
    server, client = ServerEndpoint(), H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: rng.choice((0, 1, 100, 65_535, 1_000_000))})
    wanted: dict[int, bytes] = {}
    for stream in range(1, rng.choice((3, 9)), 2):
        long = rng.random() < 0.5
        client.send_headers(stream, frames.STREAM if long else frames.REQUEST)
        client.send_data(stream, frames.message(b"x"), end_stream=not long)
    for event in server.receive(client.data_to_send(), 1.0):
        assert isinstance(event, Unary | StreamMessage)
        bodies = [bytes(rng.choice((0, 1, 1000, 70_000))) for _ in range(rng.randrange(1, 4))]
        if isinstance(event, Unary):
            del bodies[1:]
            server.answer(event.stream, bodies[0])
        else:
            for body in bodies:
                server.send(event.stream, body)
            server.end(event.stream)
        wanted[event.stream] = b"".join(map(frames.message, bodies))
    got, ended = dict.fromkeys(wanted, b""), set[int]()
    for _ in range(10_000):
        for heard in client.receive_data(server.take()):
            if isinstance(heard, DataReceived):
                got[heard.stream_id] += heard.data
            elif isinstance(heard, StreamEnded):
                ended.add(heard.stream_id)
        if len(ended) == len(wanted):
            break
        for stream in rng.sample([0, *(set(wanted) - ended)], k=1 + rng.randrange(len(wanted) - len(ended) + 1)):
            client.increment_flow_control_window(rng.choice((1000, 20_000, 100_000)), stream or None)
        if rng.random() < 0.1:
            client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: rng.choice((0, 1000, 65_535))})
        server.receive(client.data_to_send(), 1.0)
    assert got == wanted
    assert server.queued == 0

"""Events as `text/event-stream`, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.rest.sse import HEARTBEAT, Event, decode, encode, encode_retry
from tests.helpers.sse import Decoder, Message

LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1)
DATA = st.binary(min_size=1).filter(lambda data: b"\r" not in data)


def test_encode_writes_id_name_and_data() -> None:
    assert encode("change", b'{"a":1}', "e-1") == b'id: e-1\nevent: change\ndata: {"a":1}\n\n'
    assert encode("change", b"{}") == b"event: change\ndata: {}\n\n"
    assert encode_retry(2000) == b"retry: 2000\n\n"


@given(st.lists(st.tuples(LINE, DATA, LINE), max_size=5), st.integers(1, 20))
def test_encode_is_decoded_from_any_pieces(events: list[tuple[str, bytes, str]], width: int) -> None:
    stream = encode_retry(5) + HEARTBEAT.join(encode(*event) for event in events)
    decoder = Decoder()
    found = [m for i in range(0, len(stream), width) for m in decoder.feed(stream[i : i + width])]
    assert found == [Message(*event) for event in events]
    assert decoder.retry == 5
    ours = list(decode(stream[i : i + width] for i in range(0, len(stream), width)))
    assert ours[0] == Event("", "message", "", 5)
    assert [(e.kind, e.data, e.id, e.retry) for e in ours[1:]] == [
        (m.event, m.data.decode("utf-8", "replace"), m.id, None) for m in found
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_count(end: str) -> None:
    stream = end.join([": hello", "id:1", "event:x", "data:a", "data: b", "", "data: c", "", ": "])
    assert Decoder().feed(stream.encode()) == [Message("x", b"a\nb", "1"), Message("message", b"c", "1")]


def test_a_carriage_return_at_the_end_waits_for_its_line_feed() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\n\r\n") == [Message("message", b"a")]


def test_what_carries_no_data_is_no_event() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\xef\xbb\xbfid: 7\nevent: x\n\nretry: soon\nid: a\0b\nunknown: 1\n\n") == []
    assert (decoder.last_id, decoder.retry) == ("7", None)


@pytest.mark.parametrize(("event", "number"), [("a\nb", ""), ("a", "1\r"), ("a", "\0")])
def test_encode_refuses_line_breaks_in_name_and_id(event: str, number: str) -> None:
    with pytest.raises(ValueError):
        encode(event, b"", number)


def test_encode_keeps_data_of_several_lines_in_one_event() -> None:
    assert Decoder().feed(encode("x", b"a\nb\r\nc")) == [Message("x", b"a\nb\nc")]


def test_decode_reads_crlf_and_ignores_what_is_no_event() -> None:
    assert list(decode([b"data: a\r\ndata:b\r\n\r", b"\nevent: x\n\nid: a\0b\nretry: soon\nunknown: 1\ndata\n\n"])) == [
        Event("", "message", "a\nb"),
        Event("", "message", ""),
    ]
    assert list(decode([b"data: cut off\n", b"da"])) == []

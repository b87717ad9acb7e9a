import re

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nacos_proxy.fastpath.heads import id_field, without_field, without_ids

GET = b"GET /list HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n"


@pytest.mark.parametrize(
    "field",
    [
        b"RequestId: 550e8400-e29b-41d4-a716-446655440000",
        b"requestid:1",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"X-B3-TraceId: 1\r\nX-B3-SpanId: 2\r\nX-B3-Sampled: 1",
        b"x-datadog-parent-id: 7",
        b"tracestate: ",
    ],
)
def test_without_ids_cuts_out_what_sdks_and_tracers_set_anew(field: bytes) -> None:
    for line in (b"\r\nAccept", b"\r\n\r\n"):
        assert without_ids(GET.replace(line, b"\r\n" + field + line)) == (GET, b"")


def test_without_ids_returns_the_last_id_of_the_request() -> None:
    head = GET.replace(b"\r\n\r\n", b"\r\nX-Request-Id: a\r\nRequestId: b\r\nx-request-id: \tc \r\n\r\n")
    assert without_ids(head) == (GET, b" \tc ")


@pytest.mark.parametrize(
    "field",
    [
        b"RequestIds: 1",
        b"My-RequestId: 1",
        b"RequestId : 1",
        b" RequestId: 1",
        b"RequestId: 1\r\n 2",
        b"RequestId: 1\r\n\t2",
        b"RequestId: a\0b",
        b"RequestId: a\x7fb",
        b"RequestId: a\nHost: there",
        b"RequestId",
    ],
)
def test_without_ids_leaves_what_is_not_plainly_an_id(field: bytes) -> None:
    head = GET.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n\r\n")
    assert without_ids(head) == (head, b"")


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (b"requestId: 1", b"\r\nrequestId: "),
        (b"traceparent:00-1", b"\r\ntraceparent:"),
        (b"RequestId: 1\r\ntraceparent: 2", b""),
        (b"X-Request-Id: 1", b""),
        (b"Other: 1", b""),
    ],
)
def test_id_field_is_how_a_client_begins_its_only_id(field: bytes, found: bytes) -> None:
    assert id_field(GET.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n\r\n")) == found


@given(
    st.sampled_from([b"\r\nRequestId: ", b"\r\nb3:"]), st.binary(max_size=20), st.sampled_from([b"", b" a", b"b: c"])
)
@example(b"\r\nRequestId: ", b"1-a", b"")
@example(b"\r\nRequestId: ", b"1-a", b" folded")
def test_without_field_is_without_ids_or_leaves_the_head(field: bytes, value: bytes, behind: bytes) -> None:
    head = GET.replace(b"\r\nAccept", field + value + b"\r\n" + behind + b"\r\nAccept")
    assert without_field(head, field) in (head, without_ids(head)[0])


def test_without_field_cuts_out_what_without_ids_cuts_out() -> None:
    head = GET.replace(b"\r\nAccept", b"\r\nRequestId: 550e8400-e29b-41d4\r\nAccept")
    assert without_field(head, b"\r\nRequestId: ") == without_ids(head)[0] == GET
    assert without_field(GET, b"\r\nRequestId: ") == GET


def test_without_ids_looks_at_each_byte_of_a_line_once() -> None:
    for filler in (b" ", b"\t", b"a", b" a"):
        head = GET.replace(b"\r\n\r\n", b"\r\nX-Request-Id:" + filler * 200_000)
        assert without_ids(head) == (head, b""), "in time: with the square of 200,000 it would last for minutes"


class Parsed:
    def __init__(self, head: bytes) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.whole = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(head)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.whole += 1

    def without(self, names: re.Pattern[bytes]) -> list[tuple[bytes, bytes]]:
        return [field for field in self.fields if not names.fullmatch(field[0])]


IDS = re.compile(rb"requestid|traceparent|x-request-id")
FIELDS = (b"\r\n", b"RequestId", b"traceparent", b"X-Request-Id", b":", b": ", b" ", b"\t", b"1", b"Host: a", b"X: y")
BREAKS = (b"\n", b"\r", b"\0", b"\x7f", b"\xe4", b"\r\n\r\n", b"GET / HTTP/1.1")


@given(st.lists(st.sampled_from(FIELDS + BREAKS), max_size=12).map(b"".join))
@example(b"\r\nRequestId: 1\r\nX: y")
def test_without_ids_cuts_out_only_what_the_parser_reads_as_a_field(lines: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a" + lines + b"\r\n\r\n"
    rest, id = without_ids(head)
    try:
        shorter = Parsed(rest)
    except httptools.HttpParserError:
        return  # no response is ever prepared for these bytes
    if shorter.whole != 1:
        return
    whole = Parsed(head)
    assert whole.whole == 1
    assert whole.without(IDS) == shorter.without(IDS)
    if id:
        assert [value for name, value in whole.fields if name == b"x-request-id"][-1].strip(b"\t ") == id.strip(b"\t ")

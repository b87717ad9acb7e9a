"""The shapes of answers, byte by byte as they were recorded."""

from __future__ import annotations

import json
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import Malformed
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.shapes import (
    MAX_LEVELS,
    as_int,
    as_list,
    as_object,
    as_strings,
    as_text,
    check_line,
    dumps,
    error_page,
    failure,
    phrase,
    read_exactly,
    read_json,
    result,
)
from tests.helpers.recordings import load


def test_dumps_is_compact_utf8_and_keeps_the_point_of_a_whole_number() -> None:
    assert dumps({"a": 1.0, "b": "北", "c": [1, None, True]}) == '{"a":1.0,"b":"北","c":[1,null,true]}'.encode()


def test_dumps_never_fails() -> None:
    assert dumps("\ud800") == b'"?"'
    assert dumps(2**70) == str(2**70).encode()
    assert dumps(math.nan) == b"null"


def test_check_line_has_no_content_type_and_must_not_be_cached() -> None:
    reply = check_line("Param 'port' is illegal, the value should be between 0 and 65535.")
    assert (reply.status, reply.content_type) == (400, None)
    assert reply.body == b"Param 'port' is illegal, the value should be between 0 and 65535.\r\n"
    assert dict(reply.headers) == {
        "Pragma": "no-cache",
        "Expires": "Thu, 01 Jan 1970 00:00:00 GMT",
        "Cache-Control": "no-cache,no-store",
    }


@pytest.mark.parametrize("name", ["nacos-2.5.1", "nacos-3.0.3", "auth"])
def test_error_page_equals_the_recordings(name: str) -> None:
    pages = [row for row in load(name) if row.is_error_page]
    assert len(pages) > 5
    for row in pages:
        assert error_page(row.request, row.status, row.body["message"], row.now_ms) == row.reply


def test_error_page_shows_the_context_path() -> None:
    page = json.loads(error_page(HttpRequest("GET", "/v1/ns/x", context="/registry"), 501, "no", 0).body)
    assert page["path"] == "/registry/v1/ns/x"
    assert page["timestamp"] == "1970-01-01T00:00:00.000+00:00"


def test_error_page_of_head_has_no_body() -> None:
    reply = error_page(HttpRequest("HEAD", "/v1/ns/instance/list"), 501, "no such api", 0)
    assert (reply.status, reply.content_type, reply.body) == (501, "application/json", b"")


def test_result_and_failure_have_code_message_and_data_in_this_order() -> None:
    assert result("ok").body == b'{"code":0,"message":"success","data":"ok"}'
    assert failure(200, 21003, None).body == b'{"code":21003,"message":"instance not found","data":null}'
    assert failure(500, 30000, None, message="odd").body == b'{"code":30000,"message":"odd","data":null}'
    assert failure(400, 99, "x").body == b'{"code":99,"message":"server error","data":"x"}'


def test_as_text_accepts_text_that_is_not_utf8() -> None:
    assert as_text("\ud800").body == b"?"


@pytest.mark.parametrize(("status", "words"), [(501, "Not Implemented"), (410, "Gone"), (799, "None")])
def test_phrase_of_a_status(status: int, words: str) -> None:
    assert phrase(status) == words


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"<html>", b'{"a":NaN}'])
def test_read_json_refuses_what_is_not_json(body: bytes) -> None:
    with pytest.raises(Malformed, match="not JSON"):
        read_json(body)


def test_as_object_and_its_siblings_raise_malformed() -> None:
    assert as_object({}, "x") == {} and as_list([], "x") == [] and as_strings(["a"], "x") == ("a",)
    assert as_int(5, "x") == 5 and as_int("5", "x") == 5
    for read, value in (
        (as_object, []),
        (as_list, {}),
        (as_strings, [1]),
        (as_int, "x"),
        (as_int, True),
        (as_int, 1.5),
    ):
        with pytest.raises(Malformed, match="thing"):
            read(value, "thing")


def test_dumps_keeps_a_fragment_next_to_text_without_utf_8() -> None:
    ready = orjson.Fragment(b'{"ip":"10.0.0.1"}')
    assert dumps([ready, "ok"]) == b'[{"ip":"10.0.0.1"},"ok"]'
    assert dumps([ready, "\ud800"]) == b'[{"ip":"10.0.0.1"},"?"]'


# what is read can be written again


def lists(levels: int) -> str:
    return "[" * levels + "]" * levels


def objects(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def test_read_json_leaves_out_fields_nested_too_deep() -> None:
    assert read_json(f'{{"x":{lists(400)},"y":[{{"z":{objects(1000)},"w":1}}]}}')["y"][0]["w"] == 1
    assert read_json(f'{{"x":{lists(MAX_LEVELS)},"y":1}}') == {"y": 1}
    assert read_json(f'[{{"x":{lists(MAX_LEVELS - 2)}}}]') == [{"x": json.loads(lists(MAX_LEVELS - 2))}]
    assert read_json(f'[{{"x":{lists(MAX_LEVELS - 1)}}}]') == [{}]


@pytest.mark.parametrize("text", [lists(MAX_LEVELS + 1), lists(1024), lists(100_000)])
def test_read_json_drops_lists_nested_too_deep_as_a_whole(text: str) -> None:
    with pytest.raises(Malformed):
        read_json(text)


def test_read_exactly_refuses_json_nested_too_deep() -> None:
    assert read_exactly(f'{{"x":{lists(MAX_LEVELS - 1)}}}')
    for text in (f'{{"x":{lists(MAX_LEVELS)}}}', objects(MAX_LEVELS + 1), objects(1025)):
        with pytest.raises(Malformed):
            read_exactly(text)


@pytest.mark.parametrize("text", [lists(MAX_LEVELS), objects(MAX_LEVELS), objects(400), objects(1024)])
def test_read_json_gives_what_can_be_written_inside_another_value(text: str) -> None:
    value = read_json(text)
    for _ in range(254 - MAX_LEVELS):
        value = {"around": value}
    assert orjson.dumps(value)


@pytest.mark.parametrize("text", ["NaN", "1e999", '"\\ud800"', '{"\\udfff":1}', "\ud800"])
def test_read_json_refuses_values_that_cannot_be_written(text: str) -> None:
    with pytest.raises(Malformed):
        read_json(text)


@given(
    st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
def test_read_json_gives_numbers_and_texts_that_can_be_written(value: object) -> None:
    assert orjson.dumps(read_json(json.dumps(value)))

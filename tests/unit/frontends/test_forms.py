"""A form that is read before its turn is all there when its turn comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope

from nacos_proxy.frontends.answers import whole_body
from nacos_proxy.frontends.forms import form_of
from tests.unit.frontends.conftest import memory_of

FORM = {"content-type": "application/x-www-form-urlencoded"}
CHUNKED = {**FORM, "transfer-encoding": "chunked"}
BODY = b"serviceName=orders&accessToken=t5"


def scope(**headers: str) -> Scope:
    return {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


def receiving(*chunks: bytes, then: str = "http.disconnect") -> Receive:
    left = list(chunks)

    async def receive() -> Message:
        if not left:
            return {"type": then}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


@pytest.mark.parametrize("media", ["", ";charset=UTF-8", " ; charset=utf-8"])
async def test_a_form_is_read_and_still_there(media: str) -> None:
    request = scope(**{"content-type": FORM["content-type"] + media, "content-length": str(len(BODY))})
    form, receive = await form_of(request, receiving(BODY[:10], BODY[10:]), 1000)
    assert form == BODY
    assert await whole_body(request, receive, 1000) == BODY
    assert await receive() == {"type": "http.disconnect"}


async def test_a_multipart_form_is_given_as_the_other_type_and_is_still_there() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="accessToken"\r\n\r\nt 5&\r\n--b--\r\n'
    request = scope(**{"content-type": "multipart/form-data; boundary=b", "content-length": str(len(body))})
    form, receive = await form_of(request, receiving(body[:20], body[20:]), 1000)
    assert form == b"accessToken=t+5%26"
    assert await whole_body(request, receive, 1000) == body
    cut, receive = await form_of(request, receiving(body[:40]), 1000)
    assert (cut, await whole_body(request, receive, 1000)) == (b"", body[:40])


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=8), st.integers(0, 40))
async def test_in_whatever_pieces_a_chunked_form_comes_they_all_come_again(chunks: list[bytes], most: int) -> None:
    body = b"".join(chunks)
    form, receive = await form_of(scope(**CHUNKED), receiving(*chunks), most)
    assert form == (body if len(body) <= most else b"")
    assert await whole_body(scope(**CHUNKED), receive, 1000) == body


async def test_no_more_is_held_than_was_asked_for() -> None:
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 100
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    form, _ = await form_of(scope(**CHUNKED), endless, 1000)
    assert (form, taken) == (b"", 1100)


async def test_a_form_in_tiny_pieces_takes_little_more_than_its_length() -> None:
    assert await memory_of(lambda receive: form_of(scope(**CHUNKED), receive, 1 << 20)) < 1 << 20


async def test_half_a_form_comes_again_before_its_client_is_gone() -> None:
    receive = receiving(b"a=", b"b", b"")

    async def cut() -> Message:
        message = await receive()
        return message if message.get("body") else {"type": "http.disconnect"}

    form, once_more = await form_of(scope(**CHUNKED), cut, 1000)
    half = {"type": "http.request", "body": b"a=b", "more_body": True}
    assert (form, await once_more(), await once_more()) == (b"a=b", half, {"type": "http.disconnect"})


async def test_who_goes_away_has_sent_no_form() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    form, once_more = await form_of(scope(**CHUNKED), receive, 1000)
    assert (form, await once_more()) == (b"", {"type": "http.disconnect"})


@pytest.mark.parametrize(
    "headers",
    [
        {**FORM, "content-length": "1001"},
        {**FORM, "content-length": "9" * 5000},
        {**FORM, "content-length": "0"},
        {**FORM, "content-length": "-5"},
        FORM,
        {"content-type": "application/json", "content-length": "10"},
        {"content-type": "application/json", "transfer-encoding": "chunked"},
        {"content-length": "10"},
        {},
    ],
    ids=str,
)
async def test_what_is_large_or_no_form_streams_on_unread(headers: dict[str, Any]) -> None:
    receive = receiving(BODY)
    assert await form_of(scope(**headers), receive, 1000) == (b"", receive)

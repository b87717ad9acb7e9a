"""`read_body`, and `peek_form`, after which the app can still read the body."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope

from nacos_proxy.frontends.request_body import peek_form, read_body
from nacos_proxy.model.errors import BadCall
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


@pytest.mark.parametrize(
    ("chunks", "length"),
    [([b"ab", b"cd"], "3"), ([b""], "4"), ([b""], "9" * 5000)],
    ids=["longer", "announced", "huge"],
)
async def test_read_body_refuses_a_body_above_max_bytes(chunks: list[bytes], length: str) -> None:
    with pytest.raises(BadCall) as caught:
        await read_body(scope(**{"content-length": length}), receiving(*chunks), 3)
    assert caught.value.status == 413


async def test_read_body_returns_the_whole_body() -> None:
    assert await read_body(scope(), receiving(b"ab", b"c"), 3) == b"abc"


async def test_read_body_of_tiny_pieces_takes_little_more_memory_than_the_body() -> None:
    assert await memory_of(lambda receive: read_body(scope(), receive, 1 << 20)) < 1 << 20


async def test_read_body_refuses_half_a_body() -> None:
    receive = receiving(b"ab", b"c")

    async def cut() -> Message:
        message = await receive()
        return message if message["more_body"] else {"type": "http.disconnect"}

    with pytest.raises(BadCall):
        await read_body(scope(), cut, 3)


@pytest.mark.parametrize("media", ["", ";charset=UTF-8", " ; charset=utf-8"])
async def test_peek_form_returns_the_form_and_replays_it(media: str) -> None:
    request = scope(**{"content-type": FORM["content-type"] + media, "content-length": str(len(BODY))})
    form, receive = await peek_form(request, receiving(BODY[:10], BODY[10:]), 1000)
    assert form == BODY
    assert await read_body(request, receive, 1000) == BODY
    assert await receive() == {"type": "http.disconnect"}


async def test_peek_form_returns_a_multipart_form_as_urlencoded_and_replays_it() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="accessToken"\r\n\r\nt 5&\r\n--b--\r\n'
    request = scope(**{"content-type": "multipart/form-data; boundary=b", "content-length": str(len(body))})
    form, receive = await peek_form(request, receiving(body[:20], body[20:]), 1000)
    assert form == b"accessToken=t+5%26"
    assert await read_body(request, receive, 1000) == body
    cut, receive = await peek_form(request, receiving(body[:40]), 1000)
    assert (cut, await read_body(request, receive, 1000)) == (b"", body[:40])


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=8), st.integers(0, 40))
async def test_peek_form_replays_a_chunked_form_of_any_pieces(chunks: list[bytes], most: int) -> None:
    body = b"".join(chunks)
    form, receive = await peek_form(scope(**CHUNKED), receiving(*chunks), most)
    assert form == (body if len(body) <= most else b"")
    assert await read_body(scope(**CHUNKED), receive, 1000) == body


async def test_peek_form_holds_little_more_than_max_bytes() -> None:
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 100
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    form, _ = await peek_form(scope(**CHUNKED), endless, 1000)
    assert (form, taken) == (b"", 1100)


async def test_peek_form_of_tiny_pieces_takes_little_more_memory_than_the_form() -> None:
    assert await memory_of(lambda receive: peek_form(scope(**CHUNKED), receive, 1 << 20)) < 1 << 20


async def test_peek_form_replays_half_a_form_and_then_the_disconnect() -> None:
    receive = receiving(b"a=", b"b", b"")

    async def cut() -> Message:
        message = await receive()
        return message if message.get("body") else {"type": "http.disconnect"}

    form, receive_again = await peek_form(scope(**CHUNKED), cut, 1000)
    half = {"type": "http.request", "body": b"a=b", "more_body": True}
    assert (form, await receive_again(), await receive_again()) == (b"a=b", half, {"type": "http.disconnect"})


async def test_peek_form_replays_a_disconnect() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    form, receive_again = await peek_form(scope(**CHUNKED), receive, 1000)
    assert (form, await receive_again()) == (b"", {"type": "http.disconnect"})


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
async def test_peek_form_does_not_read_a_large_body_or_one_that_is_no_form(headers: dict[str, Any]) -> None:
    receive = receiving(BODY)
    assert await peek_form(scope(**headers), receive, 1000) == (b"", receive)

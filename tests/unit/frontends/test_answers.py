"""Between ASGI and our values."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.types import Message

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness
from nacos_proxy.frontends.answers import (
    mark_cacheable,
    read_body,
    send_reply,
    to_request,
    whole_body,
)
from nacos_proxy.model.errors import BadCall
from nacos_proxy.wire.http import CACHEABLE, HttpReply
from tests.helpers.asgi import scope
from tests.helpers.build import KEY, agent, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf
from tests.unit.frontends.conftest import memory_of

FRESH = CacheResult(Freshness.FRESH, snapshot(), age=3.0, ttl=7.0)


def sending(*messages: Message, headers: dict[str, str] | None = None) -> Request:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    return Request(scope("POST", "/", headers), receive)


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_read_whole_up_to_its_bound() -> None:
    assert await read_body(sending(part(b"ab", more=True), part(b"c")), 3) == b"abc"
    for request in (
        sending(part(b"ab", more=True), part(b"cd")),
        sending(part(b""), headers={"content-length": "4"}),
        sending(part(b""), headers={"content-length": "9" * 5000}),
    ):
        with pytest.raises(BadCall) as caught:
            await read_body(request, 3)
        assert caught.value.status == 413


async def test_a_body_in_tiny_pieces_takes_little_more_than_its_length() -> None:
    assert await memory_of(lambda receive: whole_body(scope("POST", "/"), receive, 1 << 20)) < 1 << 20


async def test_half_a_body_is_no_body() -> None:
    with pytest.raises(BadCall):
        await read_body(sending(part(b"ab", more=True), {"type": "http.disconnect"}), 3)


async def test_a_reply_says_its_length_where_it_may() -> None:
    for status, length in ((200, [b"2"]), (204, []), (304, [])):
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        await send_reply(send, HttpReply(status, None, b"ab", (("X-A", "b"),)), head_only=True)
        headers = sent[0]["headers"]
        assert [value for name, value in headers if name == b"content-length"] == length
        assert (b"x-a", b"b") in headers and sent[1]["body"] == b""


def test_a_request_becomes_a_value() -> None:
    request = to_request(scope("PUT", "/nacos/v1/x?a=%20&a=2", {"Accept": "x"}), "/v1/x", b"")
    assert (request.method, request.path, request.query) == ("PUT", "/v1/x", (("a", " "), ("a", "2")))
    assert request.headers["accept"] == "x"


@pytest.mark.parametrize(
    ("look", "wants", "until"),
    [
        (FRESH, CacheControl(), 107.0),
        (FRESH, CacheControl(max_age=5), 102.0),
        (FRESH, CacheControl(max_age=50), 107.0),
        (FRESH, CacheControl(no_cache=True), None),
        (CacheResult(Freshness.STALE, snapshot(), 11.0, -1.0), CacheControl(), None),
        (CacheResult(Freshness.MISSING, None, 0.0, 0.0), CacheControl(), None),
    ],
)
def test_only_fresh_answers_that_the_request_would_take_again_are_marked(
    look: CacheResult, wants: CacheControl, until: float | None
) -> None:
    marked = scope("GET", "/")
    mark_cacheable(marked, agent(ScriptedRegistry(Shelf()), FakeClock(100.0)), look, "list", wants)
    if until is None:
        assert CACHEABLE not in marked
    else:
        assert marked[CACHEABLE][:5] == (KEY, 97.0, until, "list", None)

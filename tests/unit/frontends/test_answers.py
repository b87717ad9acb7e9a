"""Conversion between ASGI messages and our values."""

from __future__ import annotations

import pytest
from starlette.types import Message

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness
from nacos_proxy.frontends.answers import mark_cacheable, send_reply, to_request
from nacos_proxy.wire.http import CACHEABLE, OTHER, HttpReply
from tests.helpers.asgi import scope
from tests.helpers.build import KEY, agent, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf

FRESH = CacheResult(Freshness.FRESH, snapshot(), age=3.0, ttl=7.0)


async def test_send_reply_sends_a_content_length_unless_the_status_forbids_it() -> None:
    for status, length in ((200, [b"2"]), (204, []), (304, [])):
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        await send_reply(send, HttpReply(status, None, b"ab", (("X-A", "b"),)), head_only=True)
        headers = sent[0]["headers"]
        assert [value for name, value in headers if name == b"content-length"] == length
        assert (b"x-a", b"b") in headers and sent[1]["body"] == b""


def test_to_request_makes_a_value() -> None:
    request = to_request(scope("PUT", "/nacos/v1/x?a=%20&a=2", {"Accept": "x"}), "/v1/x", b"")
    assert (request.method, request.path, request.query) == ("PUT", "/v1/x", (("a", " "), ("a", "2")))
    assert request.headers["accept"] == "x"


@pytest.mark.parametrize(
    ("result", "cache_control", "valid_until"),
    [
        (FRESH, CacheControl(), 107.0),
        (FRESH, CacheControl(max_age=5), 102.0),
        (FRESH, CacheControl(max_age=50), 107.0),
        (FRESH, CacheControl(no_cache=True), None),
        (CacheResult(Freshness.STALE, snapshot(), 11.0, -1.0), CacheControl(), None),
        (CacheResult(Freshness.MISSING, None, 0.0, 0.0), CacheControl(), None),
    ],
)
def test_mark_cacheable_marks_only_fresh_results_for_as_long_as_the_request_allows(
    result: CacheResult, cache_control: CacheControl, valid_until: float | None
) -> None:
    marked = scope("GET", "/")
    mark_cacheable(marked, agent(ScriptedRegistry(Shelf()), FakeClock(100.0)), result, cache_control)
    if valid_until is None:
        assert CACHEABLE not in marked
    else:
        assert marked[CACHEABLE][:5] == (KEY, 97.0, valid_until, OTHER, None)

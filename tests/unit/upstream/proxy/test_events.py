"""Following the event stream of an upper proxy, which is a function here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import orjson
import pytest

from nacos_proxy.model.errors import Unreachable
from nacos_proxy.model.services import ServiceKey, Snapshot, Via
from nacos_proxy.runtime import Supervisor, spawn
from nacos_proxy.upstream.contract import Changed, Confirmed, Doubted, Report
from nacos_proxy.upstream.http.exchange import HttpClient, HttpPolicy
from nacos_proxy.upstream.proxy.events import AT_ONCE, ProxyEvents, ProxyEventsPolicy
from nacos_proxy.wire.rest.sse import encode, encode_retry
from nacos_proxy.wire.rest.tiers import (
    BEGIN,
    CHANGE,
    CURRENT,
    SNAPSHOT,
    UPSTREAM,
    Begin,
    via_json,
    whole_json,
    write_begin,
    write_current,
)
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle

FRESH = Via(3.0, False, "nacos-proxy; hit; ttl=7")
STOCK = key("stock")


class Line(httpx.AsyncByteStream):
    """The body of one answer, which a test writes."""

    def __init__(self) -> None:
        self.closed = False
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def send(self, *pieces: bytes | Exception | None) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def aclose(self) -> None:
        self.closed = True


class Upper(httpx.AsyncBaseTransport):
    """An upper proxy. `answer` may replace the next answers; `lines` are the streams that were begun."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.lines: list[Line] = []
        self.answer: Callable[[], httpx.Response] = self.stream

    def stream(self) -> httpx.Response:
        self.lines.append(Line())
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=self.lines[-1])

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer()

    def asked(self) -> dict[str, str]:
        """The revisions in the last request, by service."""
        services: dict[str, Any] = orjson.loads(self.requests[-1].content)["services"]
        return services["public"]["DEFAULT_GROUP"]


class World:
    def __init__(self, rng: float = 0.5, **more: Any) -> None:
        self.clock, self.upper, self.reports = FakeClock(), Upper(), list[Report]()
        http = HttpClient(HttpPolicy("nacos-proxy/1"), self.upper)
        policy = ProxyEventsPolicy(("http://a:8840", "http://b:8840"))
        self.supervisor = Supervisor(self.clock)
        self.events = ProxyEvents(policy, http, self.clock, lambda: rng, self.supervisor, **more)
        self._listening = spawn(self._listen(), name="listener")

    async def _listen(self) -> None:
        async for report in self.events.changes():
            self.reports.append(report)

    @property
    def line(self) -> Line:
        return self.upper.lines[-1]

    async def follow(self, *services: ServiceKey) -> None:
        """Watches the services, and waits for the request."""
        self.events.watch(services)
        await self.clock.advance(1.0)

    async def send(self, *events: bytes) -> None:
        self.line.send(*events)
        await settle()

    async def close(self) -> None:
        await self.events.close()
        await settle()
        assert self._listening.done()
        assert all(line.closed for line in self.upper.lines)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


def begin(reset: bool = False, outage: str = "") -> bytes:
    return encode(BEGIN, write_begin(Begin(reset, outage)))


def listed(service: Snapshot, kind: str = SNAPSHOT) -> bytes:
    return encode(kind, orjson.dumps({**whole_json(service), **via_json(FRESH)}))


def current(*unconfirmed: ServiceKey, via: Via | None = FRESH, id: str = "e-1") -> bytes:
    return encode(CURRENT, write_current(via, unconfirmed), id)


ORDERS = snapshot(instance("10.0.0.1"))


async def test_a_stream_names_the_services_and_brings_their_whole_lists(world: World) -> None:
    await world.follow(KEY, STOCK)
    assert (world.upper.requests[0].method, str(world.upper.requests[0].url)) == ("POST", "http://b:8840/api/v1/events")
    assert world.upper.asked() == {"orders": "", "stock": ""}
    assert not world.events.alive and not world.events.covers(KEY)
    await world.send(begin(), listed(ORDERS), current(STOCK))
    assert world.reports == [Doubted(""), Changed(KEY, ORDERS, whole=True), Confirmed({KEY: ORDERS}, FRESH)]
    assert world.reports[1].pushed.via == FRESH  # type: ignore[union-attr]
    assert world.events.alive and world.events.covers(KEY) and not world.events.covers(STOCK)
    assert world.events.status() == {
        "kind": "proxy",
        "servers": ["http://b:8840"],
        "subscriptions": 1,
        "resumed": 0,
        "resets": 0,
        "reconnects": 0,
    }


async def test_a_change_is_reported_and_of_several_the_last_one(world: World) -> None:
    await world.follow(KEY)
    more = snapshot(instance("10.0.0.1"), instance("10.0.0.2"))
    await world.send(begin(), current())
    world.reports.clear()
    await world.send(listed(ORDERS, CHANGE) + listed(snapshot(service=STOCK), CHANGE) + listed(more, CHANGE))
    assert world.reports == [Changed(KEY, more, whole=True)], "nobody watches the other service"


async def test_a_new_stream_replaces_the_old_one_when_more_services_are_watched(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), listed(ORDERS), current(id="e-7"))
    (old,) = world.upper.lines
    await world.follow(KEY, STOCK)
    assert world.upper.asked() == {"orders": ORDERS.revision, "stock": ""}
    assert world.upper.requests[-1].headers["last-event-id"] == "e-7"
    assert old.closed and world.events.alive and world.events.covers(KEY)
    await world.send(begin(), listed(snapshot(service=STOCK)), current())
    assert world.events.covers(STOCK)
    assert (world.events.resumed, world.events.resets, world.events.reconnects) == (1, 0, 0)


async def test_a_change_that_was_undone_before_the_new_stream_began_is_not_kept() -> None:
    world, opened = World(), asyncio.Event()
    await world.follow(KEY)
    await world.send(begin(), listed(ORDERS), current())
    old, post = world.line, world.upper.handle_async_request

    async def slowly(request: httpx.Request) -> httpx.Response:
        await opened.wait()
        return await post(request)

    world.upper.handle_async_request = slowly  # type: ignore[method-assign]
    await world.follow(KEY, STOCK)
    old.send(listed(snapshot(instance("10.0.0.2")), CHANGE))
    await settle()
    opened.set()
    await settle()
    assert world.upper.asked()["orders"] == ORDERS.revision
    world.reports.clear()
    await world.send(begin(), listed(snapshot(service=STOCK)), current())
    assert Changed(KEY) in world.reports, "only a fetch tells"
    assert [set(report.lists) for report in world.reports if isinstance(report, Confirmed)] == [{STOCK}]
    assert not world.events.covers(KEY)
    await world.close()


async def test_a_refused_stream_for_more_services_is_not_tried_again_and_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.follow(KEY)
    await world.send(begin(), listed(ORDERS), current())
    world.upper.answer = lambda: httpx.Response(503, content=b"too busy")
    await world.follow(KEY, STOCK)
    for _ in range(20):
        await world.send(current())
        await world.clock.advance(15.0)
    assert world.events.alive and "too busy" in world.events.unavailable
    assert len(world.upper.requests) <= 1 + 5 + 300 / 15, "the pauses grow to 15 to 30 s"
    assert [text for text in caplog.messages if "too busy" in text] == [
        "the event stream cannot be opened for other services: http://b:8840: status 503: too busy; "
        "it goes on for those before"
    ]
    assert world.events.status()["servers"] == ["http://b:8840"], "that of the stream, whose turn ever it is"


def at_most(upper: Upper, services: int, status: int = 429) -> Callable[[], httpx.Response]:
    """The answer of an upper proxy that refuses streams for more services."""

    def answer() -> httpx.Response:
        return upper.stream() if len(upper.asked()) <= services else httpx.Response(status, content=b"at most so many")

    return answer


@pytest.mark.parametrize("status", [413, 429])
async def test_of_too_many_services_as_many_are_followed_as_the_upper_proxy_allows(world: World, status: int) -> None:
    keys = [key(f"s{n}") for n in range(8)]
    world.upper.answer = at_most(world.upper, 3, status)
    await world.follow(*keys)
    await world.clock.advance(6.0)
    assert [len(orjson.loads(r.content)["services"]["public"]["DEFAULT_GROUP"]) for r in world.upper.requests] == [
        8,
        4,
        2,
    ]
    lists = [snapshot(service=one) for one in keys[:2]]
    await world.send(begin(), *map(listed, lists), current())
    assert world.events.alive and [one for one in keys if world.events.covers(one)] == keys[:2]
    assert world.events.status()["limit"].endswith(f"status {status}: at most so many")
    world.upper.answer = world.upper.stream
    await world.clock.advance(55.0)
    await world.send(current())
    assert len(world.upper.requests) == 3
    await world.clock.advance(10.0)
    assert len(world.upper.asked()) == 8, "all are tried again after a minute"
    await world.send(begin(), current())
    assert "limit" not in world.events.status()


async def test_after_a_loss_the_services_come_first_that_were_followed_before(world: World) -> None:
    world.upper.answer = at_most(world.upper, 2)
    await world.follow(KEY, STOCK)
    await world.send(begin(), listed(ORDERS), current())
    await world.follow(KEY, STOCK, key("a"), key("b"))
    assert len(world.upper.requests) == 2 and world.events.alive, "the old stream goes on"
    await world.send(current())
    await world.clock.advance(20.0)
    assert len(world.upper.requests) == 2
    world.line.send(None)
    await world.clock.advance(5.0)
    assert world.upper.asked() == {"orders": ORDERS.revision, "stock": ""}
    await world.send(begin(), current())
    assert world.events.alive and world.events.covers(KEY)


async def test_a_bug_in_an_attempt_does_not_end_the_attempts() -> None:
    failures = [RuntimeError("a bug")]

    async def headers(refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        if failures:
            raise failures.pop()
        return {}

    world = World(headers=headers)
    await world.follow(KEY)
    assert (world.supervisor.failures["upper proxy"], world.events.open) == (1, False)
    await world.clock.advance(3.0)
    world.supervisor.failures.clear()
    assert world.events.open
    await world.close()


async def test_services_that_nobody_watches_any_more_leave_the_stream_at_its_next_heartbeat(world: World) -> None:
    await world.follow(KEY, STOCK)
    await world.send(begin(), listed(ORDERS), current())
    await world.follow(KEY)
    assert len(world.upper.requests) == 1
    await world.send(current())
    await world.clock.advance(1.0)
    assert world.upper.asked() == {"orders": ORDERS.revision}
    await world.send(begin(), current())
    await world.follow()
    await world.send(current())
    await world.clock.advance(1.0)
    assert (len(world.upper.requests), world.events.open) == (2, False)


async def test_a_lost_stream_is_opened_again_after_the_time_that_the_upper_proxy_gave(world: World) -> None:
    await world.follow(KEY)
    await world.send(encode_retry(2000) + begin(), listed(ORDERS), current(), encode_retry(6000))
    world.line.send(None)
    await world.clock.advance(5.9)
    assert len(world.upper.requests) == 1 and world.events.alive, "it polls only after a longer loss"
    await world.clock.advance(0.2)
    assert str(world.upper.requests[1].url) == "http://a:8840/api/v1/events", "the next upper proxy"
    assert world.upper.asked() == {"orders": ORDERS.revision}
    await world.send(begin(), current())
    assert (world.events.reconnects, world.events.resumed, world.events.alive) == (1, 1, True)


@pytest.mark.parametrize(("rng", "seconds"), [(0.0, 1.0), (0.99, 2.98)])
async def test_reconnects_are_spread(rng: float, seconds: float) -> None:
    world = World(rng)
    await world.follow(KEY)
    await world.send(begin(), current())
    world.line.send(httpx.ReadError("cut"))
    await world.clock.advance(seconds - 0.1)
    assert len(world.upper.requests) == 1
    await world.clock.advance(0.2)
    assert len(world.upper.requests) == 2
    await world.close()


async def test_push_counts_as_lost_when_the_stream_does_not_come_back(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), current())
    world.upper.answer = lambda: httpx.Response(503, content=b"stopping")
    world.line.send(httpx.ReadTimeout("no answer in time"))
    await world.clock.advance(14.0)
    assert world.events.alive
    await world.clock.advance(2.0)
    assert not world.events.alive and "status 503: stopping" in world.events.unavailable
    tried = len(world.upper.requests)
    await world.clock.advance(300.0)
    assert len(world.upper.requests) - tried <= 300 / 15, "the pauses grow to 15 to 30 s"
    world.upper.answer = world.upper.stream
    await world.clock.advance(30.0)
    await world.send(begin(), current())
    assert world.events.alive and world.events.unavailable == ""


async def test_a_stream_is_opened_soon_after_the_upper_proxy_has_come_back(world: World) -> None:
    world.upper.answer = lambda: httpx.Response(503)
    await world.follow(KEY)
    await world.clock.advance(100.0)
    world.upper.answer = world.upper.stream
    tried = len(world.upper.requests)
    world.events.upstream_is_back()
    await world.clock.advance(0.9)
    assert len(world.upper.requests) == tried
    await world.clock.advance(0.2)
    assert world.events.open, "after a random part of two seconds"
    world.events.upstream_is_back()
    await world.clock.advance(60.0)
    assert len(world.upper.requests) == tried + 1


async def test_another_run_of_the_upper_proxy_may_have_lost_its_data(world: World) -> None:
    lost: list[str] = []
    world.events.on_lost.append(lambda: lost.append("lost"))
    await world.follow(KEY)
    await world.send(begin(), listed(ORDERS), current())
    world.line.send(None)
    await world.clock.advance(3.0)
    assert lost == []
    await world.send(begin(reset=True))
    assert (lost, world.events.resets, world.events.resumed) == (["lost"], 1, 0)


async def test_an_outage_behind_the_upper_proxy_is_reported_once(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(outage="refused"), current(via=None))
    down, up = b'{"state":"down","reason":"refused"}', b'{"state":"up","reason":""}'
    await world.send(encode(UPSTREAM, down), encode(UPSTREAM, up), encode(UPSTREAM, b'{"state":"down"}'))
    assert world.reports[0] == Doubted("refused")
    assert world.reports[-1] == Doubted("it does not say why")
    assert not any(isinstance(report, Confirmed) for report in world.reports)
    world.line.send(None)
    await world.clock.advance(3.0)
    world.reports.clear()
    await world.send(begin(outage="it does not say why"))
    assert world.reports == [Doubted("it does not say why")], "the loss of the stream may have ended the doubt"


async def in_outage() -> World:
    """It follows KEY at http://b:8840, which then loses its upstream. The pause for a question to a is at its end."""
    world = World()
    await world.follow(KEY)
    await world.send(begin(), listed(ORDERS), current())
    await world.send(encode(UPSTREAM, b'{"state":"down","reason":"refused"}'))
    await world.clock.advance(10.0)
    return world


async def test_during_an_outage_another_upper_proxy_is_followed_that_has_none() -> None:
    world = await in_outage()
    followed, asked = world.upper.lines
    assert [request.url.host for request in world.upper.requests] == ["b", "a"]
    asked.send(encode_retry(2000), encode(UPSTREAM, b"{}") + begin())
    await settle()
    await world.clock.advance(1.0)
    assert asked.closed and followed.closed and world.upper.requests[-1].url.host == "a"
    assert world.upper.asked() == {"orders": ORDERS.revision}
    await world.send(begin(reset=True), current())
    assert world.reports[-2:] == [Doubted(""), Confirmed({KEY: ORDERS}, FRESH)]
    await world.clock.advance(100.0)
    assert (len(world.upper.requests), world.events.status()["servers"]) == (3, ["http://a:8840"])
    await world.close()


@pytest.mark.parametrize("answer", [begin(outage="refused"), encode(BEGIN, b"{oops"), None])
async def test_an_upper_proxy_is_kept_if_the_other_one_is_not_well_either(answer: bytes | None) -> None:
    world = await in_outage()
    followed, asked = world.upper.lines
    asked.send(answer)
    await settle()
    world.upper.answer = lambda: httpx.Response(503)
    await world.clock.advance(120.0)
    assert asked.closed and not followed.closed and world.events.alive
    assert [request.url.host for request in world.upper.requests[2:]] == ["a"] * (len(world.upper.requests) - 2)
    tried = len(world.upper.requests)
    assert 3 <= tried <= 7, "the pauses grow"
    followed.send(encode(UPSTREAM, b'{"state":"up"}'))
    await world.clock.advance(120.0)
    assert len(world.upper.requests) == tried
    await world.close()


@pytest.mark.parametrize("awake", [0.0, 0.9])
async def test_events_that_waited_while_this_process_stood_still_may_be_as_old_as_that(
    world: World, awake: float
) -> None:
    await world.follow(KEY)
    await world.send(begin(), listed(ORDERS), current())
    world.reports.clear()
    world.clock.jump(300.0)
    if awake:
        await world.clock.advance(awake)
    await world.send(listed(ORDERS, CHANGE), current())
    changed, confirmed = world.reports
    assert isinstance(changed, Changed) and isinstance(confirmed, Confirmed) and changed.pushed is not None
    assert changed.pushed.via == confirmed.via and 300.0 <= confirmed.via.age <= FRESH.age + 301.0
    world.reports.clear()
    await world.clock.advance(2.0)
    await world.send(current())
    assert world.reports == [Confirmed({KEY: ORDERS}, FRESH)]


async def test_many_lists_are_confirmed_in_parts(world: World) -> None:
    keys = [key(f"s{n}") for n in range(AT_ONCE + 1)]
    world.events.watch(keys)
    await world.clock.advance(5.0)
    await world.send(begin(), *(listed(snapshot(service=one)) for one in keys))
    await settle(2 * len(keys))
    world.reports.clear()
    await world.send(current())
    assert [len(report.lists) for report in world.reports if isinstance(report, Confirmed)] == [AT_ONCE, 1]


async def test_an_event_that_is_not_one_to_resume_after_keeps_the_last_id(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), current(id="e-3"))
    await world.send(encode(UPSTREAM, b'{"state":"up"}', "e.part-5"))
    world.line.send(None)
    await world.clock.advance(5.0)
    assert world.upper.requests[-1].headers["last-event-id"] == "e-3"


@pytest.mark.parametrize("data", [b"{oops", b'{"name":1}', b"[]"])
async def test_events_that_cannot_be_read_end_the_stream(world: World, data: bytes) -> None:
    await world.follow(KEY)
    await world.send(begin(), current(), encode("of a later version", b"{}"))
    assert world.events.open
    await world.send(encode(CHANGE, data))
    assert not world.events.open and world.line.closed


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(404, content=b"no such path"), "not that of a nacos-proxy of this version"),
        (httpx.Response(200, content=b"hello"), "the answer to a request for events is no event stream"),
        (httpx.Response(429, content=b"this client may have at most 1 open streams"), "at most 1 open streams"),
        (httpx.Response(508, content=b"leads back"), "status 508: leads back"),
    ],
)
async def test_a_stream_that_is_refused_says_why(world: World, answer: httpx.Response, reason: str) -> None:
    world.upper.answer = lambda: answer
    await world.follow(KEY)
    assert reason in world.events.unavailable and not world.events.was_alive


async def test_a_refused_account_is_renewed_and_asked_with_again() -> None:
    tokens = iter(("old", "new", "new"))

    async def headers(refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        return {"accessToken": next(tokens)}

    world = World(headers=headers)

    def answer() -> httpx.Response:
        token = world.upper.requests[-1].headers["accesstoken"]
        return world.upper.stream() if token == "new" else httpx.Response(403)

    world.upper.answer = answer
    await world.follow(KEY)
    assert (len(world.upper.requests), world.events.open) == (2, True)
    await world.close()


async def test_an_account_that_is_refused_for_good_is_asked_with_once() -> None:
    async def headers(refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        return {"accessToken": "old"}

    world = World(headers=headers)
    world.upper.answer = lambda: httpx.Response(401)
    await world.follow(KEY)
    assert [request.url.host for request in world.upper.requests] == ["b", "a"], "once at each upper proxy"
    assert "status 401" in world.events.unavailable
    await world.close()


async def test_an_account_that_cannot_log_in_counts_as_no_stream() -> None:
    async def headers(refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        raise Unreachable("no server is known", arrived=False)

    world = World(headers=headers)
    await world.follow(KEY)
    assert (world.upper.requests, world.events.unavailable) == ([], "no server is known")
    await world.close()


async def test_close_ends_everything_for_good(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), current())
    await world.events.close()
    await world.follow(KEY, STOCK)
    assert (len(world.upper.requests), world.events.alive, world.line.closed) == (1, False, True)


@pytest.mark.parametrize("turns", range(8))
async def test_close_ends_a_stream_that_is_just_taking_the_place_of_another(turns: int) -> None:
    world = World()
    await world.follow(KEY)
    world.events.watch([KEY, STOCK])
    moving = spawn(world.clock.advance(1.0), name="clock")
    while len(world.upper.requests) < 2:
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    await world.close()
    await moving


async def test_an_upper_proxy_that_cannot_be_reached_is_tried_again(world: World) -> None:
    def refuse() -> httpx.Response:
        raise httpx.ConnectError("no connection: Connection refused")

    world.upper.answer = refuse
    await world.follow(KEY)
    assert world.events.unavailable.endswith(":8840: no connection: Connection refused")
    world.upper.answer = world.upper.stream
    await world.clock.advance(3.0)
    assert world.events.open


async def test_services_that_come_and_go_at_once_need_no_new_stream(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), current())
    world.events.watch([KEY, STOCK])
    await world.follow(KEY)
    assert len(world.upper.requests) == 1


async def test_a_bug_ends_the_stream_and_is_counted(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), current())
    world.line.send(RuntimeError("a bug"))
    await settle()
    assert (world.events.open, world.supervisor.failures["upper proxy"]) == (False, 1)
    await world.clock.advance(16.0)
    world.supervisor.failures.clear()
    assert world.events.open, "the next stream"


async def test_push_is_lost_if_no_stream_can_be_opened_after_a_time_without_services(world: World) -> None:
    await world.follow(KEY)
    await world.send(begin(), current())
    await world.follow()
    await world.send(current())
    await world.clock.advance(1.0)
    world.upper.answer = lambda: httpx.Response(503)
    await world.follow(KEY)
    await world.clock.advance(16.0)
    assert not world.events.alive

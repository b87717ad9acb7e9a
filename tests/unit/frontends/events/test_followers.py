"""What lower proxies get: whole snapshots, and streams of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from nacos_proxy.frontends.events.stream_quota import StreamQuotaPolicy
from nacos_proxy.frontends.events.streams import EventsPolicy
from nacos_proxy.frontends.rest.models import Whole
from nacos_proxy.model.calls import Metrics, Register
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.rest.sse import Decoder, Event
from nacos_proxy.wire.rest.tiers import read_begin, read_current, read_whole, write_follow
from tests.helpers.asgi import Exchange, scope, start
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import settle
from tests.unit.frontends.conftest import World, register

A, OFF = instance("10.0.0.1"), instance("10.0.0.2", enabled=False)
STOCK = key("stock")
AWAY = Unreachable("refused", arrived=False)
DENIED = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)


@pytest.fixture
def events_policy() -> EventsPolicy:
    return EventsPolicy(quota=StreamQuotaPolicy(services_per_client=3))


class Follower:
    """A lower proxy's stream."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    @property
    def events(self) -> list[Event]:
        return [event for event in Decoder().feed(self.exchange.body) if event.data]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


async def follow(world: World, revisions: dict[ServiceKey, str], last: str = "", held: bool = False) -> Follower:
    headers = {"content-type": "application/json", **({"last-event-id": last} if last else {})}
    request = scope("POST", "/api/v1/events", headers)
    return Follower(await start(world.app, request, write_follow(revisions), held=held))


@pytest.fixture
async def shelved(world: World) -> AsyncIterator[World]:
    world.shelf.services[KEY] = snapshot(A, OFF, threshold=0.5)
    yield world


async def test_a_whole_snapshot_has_what_readers_do_not_see(shelved: World) -> None:
    answer = await shelved.ask("GET", "/api/v1/services/orders/whole")
    assert read_whole(answer.json()).snapshot == snapshot(A, OFF, threshold=0.5)
    assert (answer.headers["age"], answer.headers["cache-status"]) == ("0", "nacos-proxy; fwd=miss; ttl=10")
    Whole.model_validate(answer.json())


async def test_a_stream_begins_with_the_lists_of_another_revision(shelved: World) -> None:
    stream = await follow(shelved, {KEY: "old", STOCK: snapshot(service=STOCK).revision})
    assert stream.kinds == ["begin", "snapshot", "current"]
    begin, listed, current = (json.loads(event.data) for event in stream.events)
    assert (read_begin(begin).reset, read_begin(begin).outage) == (False, "")
    assert read_whole(listed).snapshot == snapshot(A, OFF, threshold=0.5)
    assert (listed["age"], listed["stale"], listed["cacheStatus"]) == (0.0, False, "nacos-proxy; hit; ttl=10")
    state = read_current(current)
    assert state.via is not None and state.via.status == "nacos-proxy; hit; ttl=10"
    assert state.unconfirmed == frozenset()
    await stream.exchange.leave()
    assert shelved.events.quota.open == 0


async def test_a_change_has_the_whole_list_and_its_age(shelved: World) -> None:
    stream = await follow(shelved, {KEY: ""})
    await register(shelved, "10.0.0.9")
    event = stream.events[-1]
    changed = json.loads(event.data)
    assert (event.kind, len(read_whole(changed).snapshot.instances), changed["age"]) == ("change", 3, 0.0)
    await stream.exchange.leave()


async def test_heartbeats_say_how_old_the_lists_are_at_most(shelved: World) -> None:
    stream = await follow(shelved, {KEY: ""})
    for _ in range(8):
        await shelved.clock.advance(2.0)
        await shelved.agent.refresh(KEY)
    await shelved.clock.advance(1.0)
    state = read_current(json.loads(stream.events[-1].data))
    assert stream.kinds.count("current") > 1
    assert state.via is not None and 0.0 <= state.via.age <= 2.0 and state.unconfirmed == frozenset()
    await shelved.clock.advance(30.0)
    state = read_current(json.loads(stream.events[-1].data))
    assert state.via is None, "no list is fresh, as nothing polls here"
    await stream.exchange.leave()


async def test_heartbeats_bring_the_list_of_a_service_that_was_unknown_and_has_no_instances(world: World) -> None:
    world.registry.script = lambda call: AWAY
    stream = await follow(world, {KEY: "old"})
    assert stream.kinds == ["begin", "current"]
    world.registry.script = world.shelf
    world.shelf.services[KEY] = snapshot()
    await world.agent.refresh(KEY)
    assert stream.kinds == ["begin", "current"], "readers see no change"
    await world.clock.advance(31.0)
    assert stream.kinds[:4] == ["begin", "current", "snapshot", "current"]
    assert stream.kinds.count("snapshot") == 1
    await stream.exchange.leave()


async def test_heartbeats_do_not_repeat_the_list_that_a_change_has_brought(world: World) -> None:
    world.registry.script = lambda call: AWAY
    stream = await follow(world, {KEY: "", STOCK: ""})
    world.registry.script = world.shelf
    for each in (KEY, STOCK):
        world.shelf.services[each] = snapshot(A, service=each)
    await world.agent.refresh(KEY)
    stream.exchange.hold()
    await register(world, "10.0.0.9")  # it is being written while the next change waits
    await world.agent.refresh(STOCK)
    stream.exchange.release()
    await world.clock.advance(31.0)
    assert stream.kinds[:5] == ["begin", "current", "change", "change", "change"]
    assert stream.kinds.count("current") > 1 and "snapshot" not in stream.kinds
    await stream.exchange.leave()


async def test_heartbeats_bring_large_lists_one_after_another_as_they_are_by_then(world: World) -> None:
    world.registry.script = lambda call: AWAY
    stream = await follow(world, {KEY: "old", STOCK: "old"})
    world.registry.script = world.shelf
    for each in (KEY, STOCK):
        world.shelf.services[each] = snapshot(service=each, extra={"note": "x" * 20_000})
        await world.agent.refresh(each)
    stream.exchange.hold()
    await world.clock.advance(16.0)
    await world.agent.write(Register(STOCK, A))
    stream.exchange.release()
    await settle()
    assert stream.kinds[:5] == ["begin", "current", "snapshot", "snapshot", "current"]
    orders, stock = (read_whole(json.loads(event.data)).snapshot for event in stream.events[2:4])
    assert (orders.key, orders.instances, stock.key, stock.instances) == (KEY, (), STOCK, (A,))
    assert "change" not in stream.kinds
    await stream.exchange.leave()


async def test_the_first_lists_are_as_they_are_when_they_are_written(shelved: World) -> None:
    stream = await follow(shelved, {KEY: ""}, held=True)
    await register(shelved, "10.0.0.9")
    stream.exchange.release()
    await settle()
    assert stream.kinds == ["begin", "snapshot", "current"]
    assert len(read_whole(json.loads(stream.events[1].data)).snapshot.instances) == 3
    await stream.exchange.leave()


async def test_lists_are_confirmed_only_after_the_changes_that_waited(shelved: World) -> None:
    stream = await follow(shelved, {KEY: shelved.shelf.services[KEY].revision}, held=True)
    await register(shelved, "10.0.0.9")
    stream.exchange.release()
    await settle()
    assert stream.kinds == ["begin", "change", "current"]
    await stream.exchange.leave()


async def test_nothing_is_confirmed_during_an_outage(shelved: World) -> None:
    stream = await follow(shelved, {KEY: ""})
    shelved.registry.script = lambda call: AWAY
    while shelved.agent.catalog.breaker.up:
        with pytest.raises(Unreachable):
            await shelved.agent.send(Metrics())
    await shelved.clock.advance(16.0)
    assert stream.kinds == ["begin", "snapshot", "current", "upstream"]
    late = await follow(shelved, {KEY: ""})
    begin, current = (json.loads(event.data) for event in (late.events[0], late.events[-1]))
    assert (read_begin(begin).outage, read_current(current).via) == ("refused", None)
    for each in (stream, late):
        await each.exchange.leave()


async def test_a_service_that_the_upstream_no_longer_shows_ends_no_stream(shelved: World) -> None:
    stream = await follow(shelved, {KEY: "", STOCK: ""})
    stream.exchange.hold()
    for ip in ("10.0.0.8", "10.0.0.9"):
        await register(shelved, ip)
    shelved.agent.catalog.cache.reject(KEY, DENIED, shelved.clock.now(), forbidden=True)
    shelved.events.refuse(DENIED, KEY)
    stream.exchange.release()
    await shelved.agent.refresh(STOCK)
    await shelved.clock.advance(15.0)
    assert shelved.events.readers == 1
    assert stream.kinds.count("change") == 1, "the second waited"
    state = read_current(json.loads(stream.events[-1].data))
    assert state.via is not None and state.unconfirmed == {KEY}


async def test_a_service_that_the_upstream_shows_again_is_sent_again(shelved: World) -> None:
    stream = await follow(shelved, {KEY: ""})
    shelved.agent.catalog.cache.reject(KEY, DENIED, shelved.clock.now(), forbidden=True)
    shelved.events.refuse(DENIED, KEY)
    await shelved.clock.advance(15.0)
    await shelved.agent.refresh(KEY)
    await shelved.clock.advance(15.0)
    assert stream.kinds.count("snapshot") + stream.kinds.count("change") == 2
    assert read_whole(json.loads(stream.events[-2].data)).snapshot == snapshot(A, OFF, threshold=0.5)
    assert read_current(json.loads(stream.events[-1].data)).unconfirmed == frozenset()
    await stream.exchange.leave()


async def test_a_stream_ends_when_all_services_are_refused(shelved: World) -> None:
    await follow(shelved, {KEY: ""})
    shelved.events.refuse(DENIED)
    await settle()
    assert shelved.events.readers == 0


@pytest.mark.parametrize(("last", "reset"), [("e-0", False), ("f-7", True)])
async def test_a_stream_says_whether_it_is_another_run(shelved: World, last: str, reset: bool) -> None:
    stream = await follow(shelved, {KEY: ""}, last)
    assert read_begin(json.loads(stream.events[0].data)).reset is reset
    await stream.exchange.leave()


async def test_a_slow_follower_gets_no_heartbeats(shelved: World) -> None:
    stream = await follow(shelved, {KEY: ""})
    stream.exchange.hold()
    await register(shelved, "10.0.0.9")
    before = len(stream.exchange.body)
    await shelved.clock.advance(40.0)
    assert len(stream.exchange.body) == before
    stream.exchange.release()
    await stream.exchange.leave()


async def test_too_many_services_and_a_proxy_that_stops_are_refused(shelved: World) -> None:
    stream = await follow(shelved, {key(name): "" for name in "abcd"})
    assert stream.exchange.status == 429
    stream = await follow(shelved, {key(f"illegal {name}"): "" for name in "abcd"})
    assert stream.exchange.status == 429, "their number is checked first"
    shelved.events.close()
    stream = await follow(shelved, {KEY: ""})
    assert (stream.exchange.status, stream.exchange.headers["retry-after"]) == (503, "2")


async def test_an_illegal_name_does_not_end_the_stream_of_the_others(shelved: World) -> None:
    stream = await follow(shelved, {KEY: "", key("a b"): "", key("x", group="?"): ""})
    assert stream.kinds == ["begin", "snapshot", "current"]
    assert shelved.agent.catalog.cache.get(key("a b")) is None
    state = read_current(json.loads(stream.events[-1].data))
    assert state.via is not None and state.unconfirmed == {key("a b"), key("x", group="?")}
    await stream.exchange.leave()
    assert shelved.events.quota.open == 0


async def test_followers_and_readers_of_one_change_get_their_own_forms(shelved: World) -> None:
    reader = await shelved.start("/api/v1/events?service=orders")
    stream = await follow(shelved, {KEY: ""})
    await register(shelved, "10.0.0.9")
    assert ("added" in reader.events()[-1][2], "added" in json.loads(stream.events[-1].data)) == (True, False)
    await reader.leave()
    await stream.exchange.leave()


@pytest.mark.parametrize("body", [{}, {"services": []}, {"services": {"public": {"g": {"a": 1}}}}, {"service": {}}])
async def test_a_body_of_another_shape_is_refused(world: World, body: object) -> None:
    assert (await world.ask("POST", "/api/v1/events", json_body=body)).status == 400

"""Event streams, driven by hand."""

from __future__ import annotations

import asyncio

import pytest

from nacos_proxy.frontends.events.stream_quota import StreamQuota, StreamQuotaPolicy
from nacos_proxy.frontends.events.streams import EventsPolicy
from nacos_proxy.frontends.rest.models import Snapshot
from nacos_proxy.model.calls import Deregister, Register
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.wire.http import STREAM, Channel
from tests.helpers.asgi import scope
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import settle
from tests.unit.frontends.conftest import Change, World, ips, register

A, B = instance("10.0.0.1"), instance("10.0.0.2", cluster="c2", weight=2.0)


def names(events: list[tuple[str, str, dict]]) -> list[str]:
    return [name for name, _, _ in events]


async def test_a_stream_begins_with_the_snapshot_and_goes_on_with_changes(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    stream = await world.start("/api/v1/events?service=orders")
    assert stream.headers["content-type"] == "text/event-stream"
    assert (stream.headers["cache-control"], "content-length" in stream.headers) == ("no-store", False)
    assert stream.body.startswith(b"retry: 2000\n\n")
    await register(world, "10.0.0.9")
    (first, first_id, shown), (second, second_id, change) = stream.events()
    assert (first, ips(shown["hosts"]), "reset" in shown) == ("snapshot", ["10.0.0.1"], False)
    assert (second, ips(change["hosts"]), change["source"]) == ("change", ["10.0.0.1", "10.0.0.9"], "write")
    assert (ips(change["added"]), change["modified"], change["removed"]) == (["10.0.0.9"], [], [])
    assert (first_id, second_id) == ("e-1", "e-2")
    Snapshot.model_validate(shown)
    Change.model_validate(change)
    await stream.leave()


async def test_many_services_share_a_stream_and_only_the_last_snapshot_has_an_id(world: World) -> None:
    other = key("stock", "g")
    world.shelf.services |= {KEY: snapshot(A), other: snapshot(B, service=other)}
    stream = await world.start("/api/v1/events?service=orders&service=g@@stock")
    events = stream.events()
    assert sorted(shown["name"] for _, _, shown in events) == ["DEFAULT_GROUP@@orders", "g@@stock"]
    assert [number for _, number, _ in events] == ["", "e-2"]
    await world.agent.write(Deregister(other, B.ip, B.port))
    await stream.until("event: change")
    assert ips(stream.events()[-1][2]["removed"]) == ["10.0.0.2"]
    await stream.leave()


async def test_a_stream_sends_only_changes_that_its_view_shows(world: World) -> None:
    world.shelf.services[KEY] = snapshot(B)
    stream = await world.start("/api/v1/events?service=orders&clusters=c2&healthy_only=true")
    await register(world, "10.0.0.8")
    await register(world, "10.0.0.9", cluster="c2", healthy=False)
    assert names(stream.events()) == ["snapshot"]
    await register(world, "10.0.0.7", cluster="c2")
    _, number, change = stream.events()[-1]
    assert (ips(change["added"]), ips(change["hosts"]), change["clusters"]) == (
        ["10.0.0.7"],
        ["10.0.0.2", "10.0.0.7"],
        "c2",
    )
    assert number == "e-4"
    await stream.leave()


async def test_a_stream_resumes_with_missed_changes_and_no_snapshot(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    first = await world.start("/api/v1/events?service=orders")
    last = first.events()[-1][1]
    await first.leave()
    await register(world, "10.0.0.9")
    for headers, query in (({"last-event-id": last}, ""), ({}, f"&lastEventId={last}")):
        again = await world.start(f"/api/v1/events?service=orders{query}", headers)
        assert [(name, ips(data["added"])) for name, _, data in again.events()] == [("change", ["10.0.0.9"])]
        await again.leave()


async def test_a_stream_resumes_on_an_empty_service_with_its_snapshot_and_missed_changes(
    world: World,
) -> None:
    """It may have heard of some, before the service was forgotten here. The id stays that of what is still to come."""
    world.shelf.services[KEY] = snapshot(A)
    first = await world.start("/api/v1/events?service=orders&service=stock")
    last = first.events()[-1][1]
    await first.leave()
    await register(world, "10.0.0.9")
    again = await world.start("/api/v1/events?service=orders&service=stock", {"last-event-id": last})
    (empty, no_id, shown), (change, number, _) = again.events()
    assert (empty, no_id, shown["name"], shown["hosts"]) == ("snapshot", "", "DEFAULT_GROUP@@stock", [])
    assert (change, number) == ("change", "e-2")
    await again.leave()


@pytest.mark.parametrize("last", ["other-1", "e-999", "nonsense", "e-x"])
async def test_a_stream_that_cannot_resume_starts_with_a_reset_snapshot(world: World, last: str) -> None:
    world.shelf.services[KEY] = snapshot(A)
    stream = await world.start("/api/v1/events?service=orders", {"last-event-id": last})
    ((name, _, shown),) = stream.events()
    assert (name, shown["reset"]) == ("snapshot", True)
    await stream.leave()


async def test_a_slow_reader_gets_the_newest_state_in_one_change(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    stream = await world.start("/api/v1/events?service=orders")
    stream.hold()
    for number in range(10, 60):
        await register(world, f"10.0.0.{number}")
    stream.release()
    await settle()
    changes = [data for name, _, data in stream.events() if name == "change"]
    assert len(changes) == 2  # the one under way when the reader stopped, and all the others as one
    assert len(changes[-1]["hosts"]) == 51 and len(changes[-1]["added"]) == 49
    await stream.leave()


async def test_one_slow_reader_does_not_hold_up_another(world: World) -> None:
    slow = await world.start("/api/v1/events?service=orders")
    quick = await world.start("/api/v1/events?service=orders")
    slow.hold()
    for number in range(5):
        await register(world, f"10.0.0.{number}")
    assert names(quick.events()) == ["snapshot"] + ["change"] * 5
    slow.release()
    await slow.leave()
    await quick.leave()


async def test_a_stream_sends_the_loss_and_return_of_the_upstream(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    stream = await world.start("/api/v1/events?service=orders")
    world.registry.script = lambda call: Unreachable("connection refused", arrived=False)
    for _ in range(3):
        world.agent.refresh(KEY)
        await settle()
    late = await world.start("/api/v1/events?service=orders")
    world.registry.script = world.shelf
    world.agent.refresh(KEY)
    await settle()
    assert [(name, data.get("state")) for name, _, data in stream.events()][1:] == [
        ("upstream", "down"),
        ("upstream", "up"),
    ]
    assert [(name, data.get("state")) for name, _, data in late.events()] == [
        ("snapshot", None),
        ("upstream", "down"),
        ("upstream", "up"),
    ]
    assert late.events()[1][2]["reason"] == "connection refused"
    await stream.leave()
    await late.leave()


async def test_heartbeats_keep_idle_streams_alive_at_different_moments(world: World) -> None:
    streams = [await world.start("/api/v1/events?service=orders") for _ in range(3)]
    beats = [stream.body.count(b"\n:\n") for stream in streams]
    for _ in range(15):
        await world.clock.advance(1)
    assert [stream.body.count(b"\n:\n") for stream in streams] == [b + 1 for b in beats]
    await world.clock.advance(15)
    assert [stream.body.count(b"\n:\n") for stream in streams] == [b + 2 for b in beats]
    for stream in streams:
        await stream.leave()


async def test_a_stream_of_star_follows_all_services_of_a_group_and_calls_discover(world: World) -> None:
    world.shelf.services = {k: snapshot(A, service=k) for k in (key("a", "g"), key("b", "g"), key("c"))}
    await world.agent.read(key("a", "g"))
    await world.agent.read(key("c"))
    stream = await world.start("/api/v1/events?service=*&group=g")
    await world.agent.read(key("b", "g"))
    await world.agent.write(Register(key("c"), instance("10.0.0.3")))
    await settle()
    assert [(name, data["name"]) for name, _, data in stream.events()] == [("snapshot", "g@@a"), ("change", "g@@b")]
    assert world.discovered == [("discover", "public", "g")]
    await stream.leave()
    assert world.discovered[1:] == [("forget", "public", "g")]


async def test_a_stream_whose_client_disconnects_is_forgotten(world: World) -> None:
    stream = await world.start("/api/v1/events?service=orders")
    entry = world.agent.catalog.cache.get(KEY)
    assert entry is not None
    assert (world.events.readers, world.agent.catalog.hub.readers, entry.watcher_count) == (1, 1, 1)
    assert repr(world.events) == "<EventsApi 1 readers, 0 polls, 1 clients>"
    await stream.leave()
    assert (world.events.readers, world.agent.catalog.hub.readers, entry.watcher_count) == (0, 0, 0)
    assert world.events.quota.clients == {}


async def test_close_sends_streams_a_time_to_reconnect(world: World) -> None:
    world.rng.next = [0.5, 0.5]
    stream = await world.start("/api/v1/events?service=orders")
    poll = await world.start("/api/v1/services/orders/watch?index=" + stream.events()[0][2]["revision"])
    world.events.close()
    await stream.ended()
    await poll.ended()
    assert stream.complete and stream.body.endswith(b"\n\nretry: 4500\n\n")
    assert poll.status == 200
    late = await world.ask("GET", "/api/v1/events?service=orders")
    assert (late.status, late.headers["content-type"]) == (503, "application/problem+json")


async def test_head_begins_no_stream(world: World) -> None:
    answer = await world.ask("HEAD", "/api/v1/events?service=orders")
    assert (answer.status, answer.body, world.events.quota.clients) == (200, b"", {})


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("", "service"),
        ("?service=", "service"),
        ("?service=*&service=a", "service"),
        ("?service=@@a", "service"),
        ("?service=a&clusters=%20x", None),
        ("?service=a&clusters=a%20x", "clusters"),
        ("?service=a&healthy_only=x", "healthy_only"),
        ("?" + "&".join(f"service=s{n}" for n in range(501)), "service"),
    ],
)
async def test_events_refuses_bad_parameters_by_name(world: World, query: str, parameter: str | None) -> None:
    stream = await world.start(f"/api/v1/events{query}")
    if parameter is None:
        assert stream.status == 200
        await stream.leave()
        return
    assert (stream.status, stream.json()["parameter"]) == (400, parameter)
    assert world.events.quota.clients == {}


# a channel of the connection's own


class Pipe:
    """A `Channel` in memory; `room` is whether it takes more."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.room = True
        self.closed = False
        self.last_words = b""
        self.drained = self.gone = lambda: None

    @staticmethod
    def frame(data: bytes) -> bytes:
        return b"<%b>" % data if data else b""

    def write(self, chunk: bytes) -> bool:
        self.written.append(chunk)
        return self.room

    def on_drain(self, callback) -> None:
        self.drained = callback

    def on_close(self, callback) -> None:
        self.gone = callback

    def farewell(self, chunk: bytes) -> None:
        self.last_words = chunk

    def close(self) -> None:
        self.closed = True
        self.gone()


async def test_a_stream_with_a_channel_lets_the_app_return(world: World) -> None:
    pipe = Pipe()
    channel: Channel = pipe
    stream = await world.start("/api/v1/events?service=orders", extensions={STREAM: lambda: channel})
    await stream.ended()
    assert (stream.status, stream.complete, stream.body) == (200, False, b"")
    assert pipe.written[0].startswith(b"<retry: 2000\n\nid: e-0\nevent: snapshot\n")
    pipe.room = False
    await register(world, "10.0.0.1")
    await register(world, "10.0.0.2")
    await register(world, "10.0.0.3")
    assert len(pipe.written) == 2
    pipe.room = True
    pipe.drained()
    assert len(pipe.written) == 3 and pipe.written[2].startswith(b"<id: e-3\nevent: change\n")
    await world.clock.advance(15)
    assert pipe.written[3:] == [b"<:\n\n>"]
    assert pipe.last_words == b"<retry: 2000\n\n>"
    pipe.gone()
    assert world.events.quota.clients == {} and world.agent.catalog.hub.readers == 0


async def test_a_stream_whose_events_fail_ends_alone(world: World) -> None:
    class Broken(Pipe):
        def write(self, chunk: bytes) -> bool:
            if self.written:
                raise RuntimeError("a bug")
            return super().write(chunk)

    broken, pipe = Broken(), Pipe()
    for one in (broken, pipe):
        await world.start("/api/v1/events?service=orders", extensions={STREAM: lambda one=one: one})
    await register(world, "10.0.0.9")
    assert pipe.written[1].startswith(b"<id: e-1\nevent: change\n")
    assert world.agent.supervisor.failing == {"event stream": "RuntimeError: a bug"}
    assert world.agent.catalog.hub.readers == 1


async def test_close_ends_the_other_streams_if_one_fails_to_end(world: World) -> None:
    class Broken(Pipe):
        def close(self) -> None:
            raise RuntimeError("a bug")

    pipes = Broken(), Pipe()
    for pipe in pipes:
        await world.start("/api/v1/events?service=orders", extensions={STREAM: lambda pipe=pipe: pipe})
    world.events.refuse(Refused(Reason.NO_RIGHT, "token expired!"), KEY)
    assert pipes[1].closed
    assert world.agent.supervisor.failing == {"event stream": "RuntimeError: a bug"}


async def test_a_stream_of_many_services_writes_only_as_much_as_the_reader_takes(world: World) -> None:
    """Snapshots, and what changed while it read them, a piece at a time; no id before the last snapshot."""
    keys = [key(f"s{number}") for number in range(100)]
    hosts = [instance(f"10.0.1.{number}") for number in range(20)]
    world.shelf.services = {k: snapshot(*hosts, service=k) for k in keys}
    pipe = Pipe()
    pipe.room = False
    query = "&".join(f"service={k.name}" for k in keys)
    await world.start(f"/api/v1/events?{query}", extensions={STREAM: lambda: pipe})
    assert len(pipe.written) == 1
    for k in keys:
        await world.agent.write(Register(k, instance("10.0.0.9")))
    await settle()
    assert len(pipe.written) == 1, "a reader that does not read gets no more"
    while pipe.written[-1]:
        before = len(pipe.written)
        pipe.drained()
        if len(pipe.written) == before:
            break
    assert max(map(len, pipe.written)) < 40_000
    events = [event for event in b"".join(pipe.written).replace(b"><", b"").split(b"\n\n") if b"event: " in event]
    snapshots, changes = events[:100], events[100:]
    assert all(b"event: snapshot" in event and b"10.0.0.9" not in event for event in snapshots)
    assert [b"id: e-" in event for event in snapshots] == [False] * 99 + [True]
    assert len(changes) == 100 and all(b"event: change" in event and b"10.0.0.9" in event for event in changes)
    await register(world, "10.0.0.7")
    assert len(pipe.written) == before, "of another service"
    await world.agent.write(Register(keys[0], instance("10.0.0.8")))
    assert b"10.0.0.8" in pipe.written[-1], "it has caught up"
    pipe.gone()


async def test_an_event_is_encoded_once_for_all_streams_with_the_same_view(world: World) -> None:
    pipes = [Pipe() for _ in range(3)]
    for pipe in pipes:
        await world.start("/api/v1/events?service=orders", extensions={STREAM: lambda pipe=pipe: pipe})
    await register(world, "10.0.0.9")
    assert len({id(pipe.written[-1]) for pipe in pipes}) == 1


async def test_a_stream_without_a_channel_is_sent_by_asgi(world: World) -> None:
    stream = await world.start("/api/v1/events?service=orders", extensions={STREAM: lambda: None})
    assert names(stream.events()) == ["snapshot"]
    await stream.leave()


async def test_close_closes_channels_after_the_retry(world: World) -> None:
    pipe = Pipe()
    await world.start("/api/v1/events?service=orders", extensions={STREAM: lambda: pipe})
    world.events.close()
    assert (pipe.closed, pipe.written[-1], world.events.readers) == (True, b"<retry: 2000\n\n>", 0)


async def test_a_stream_that_begins_after_close_ends_at_once(world: World) -> None:
    """It was let in before, and waited for its first snapshot meanwhile."""
    gate = asyncio.Event()

    async def slow(call: object) -> object:
        await gate.wait()
        return world.shelf(call)  # type: ignore[arg-type]

    world.registry.script = slow
    stream = await world.start("/api/v1/events?service=orders")
    world.events.close()
    gate.set()
    await stream.ended()
    assert stream.complete and stream.body.startswith(b"retry: 2000\n\nid: e-0\nevent: snapshot")
    assert stream.body.endswith(b"\n\nretry: 2000\n\n") and world.events.quota.clients == {}


async def test_a_stream_whose_start_fails_leaves_nothing_behind(world: World) -> None:
    async def gone(message: object) -> None:
        raise OSError("the reader has gone")

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    with pytest.raises(OSError):
        await world.app(scope("GET", "/api/v1/events?service=*"), receive, gone)  # type: ignore[arg-type]
    assert (world.events.quota.clients, world.agent.catalog.hub.readers) == ({}, 0)
    assert [what for what, *_ in world.discovered] == ["discover", "forget"]


# limits


class TestLimits:
    @pytest.fixture
    def events_policy(self) -> EventsPolicy:
        return EventsPolicy(quota=StreamQuotaPolicy(max_streams=3, streams_per_client=2))

    async def test_streams_are_bounded_per_client_and_in_total(self, world: World) -> None:
        target = "/api/v1/events?service=orders"
        streams = [await world.start(target), await world.start(target)]
        refused = await world.ask("GET", target)
        assert (refused.status, "this client may have at most 2" in refused.json()["detail"]) == (429, True)
        streams.append(await world.start(target, client="10.0.0.1"))
        full = await world.ask("GET", target, client="10.0.0.2")
        assert (full.status, "the proxy may have at most 3" in full.json()["detail"]) == (429, True)
        assert world.events.quota.refused == 2
        await streams.pop().leave()
        streams.append(await world.start(target, client="10.0.0.2"))
        for stream in streams:
            await stream.leave()
        assert world.events.quota.clients == {}

    async def test_streams_and_long_polls_of_a_client_watch_a_bounded_number_of_services(self, world: World) -> None:
        """What is listened to is asked for again and again: a million names would leave no poll for the others."""
        world.events.quota = world.events.polls.quota = StreamQuota(StreamQuotaPolicy(services_per_client=3))
        streams = [
            await world.start("/api/v1/events?service=a&service=b"),
            await world.start("/api/v1/events?service=a&service=c"),
        ]
        for target in ("/api/v1/events?service=d", "/api/v1/services/d/watch"):
            refused = await world.ask("GET", target)
            assert (refused.status, "watched services" in refused.json()["detail"]) == (429, True)
        streams.append(await world.start("/api/v1/events?service=d", client="10.0.0.1"))
        await streams.pop(0).leave()
        streams.append(await world.start("/api/v1/events?service=a&service=d"))
        for stream in streams:
            await stream.leave()
        assert world.events.quota.clients == {}

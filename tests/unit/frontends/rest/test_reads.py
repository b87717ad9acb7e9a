"""`Reads` and its helpers, without routes."""

from __future__ import annotations

import tracemalloc
from functools import partial

from starlette.requests import Request

from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness
from nacos_proxy.frontends.rest.reads import Bodies, Reads, oldest, tagged
from nacos_proxy.model.services import Snapshot
from tests.helpers import build
from tests.helpers.asgi import scope
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf


def request() -> Request:
    return Request(scope("GET", "/"))


class Maker:
    """Makes a body and records each call."""

    def __init__(self) -> None:
        self.made: list[tuple[str, bool]] = []

    def __call__(self, found: Snapshot, stale: bool) -> object:
        self.made.append((found.revision, stale))
        return {"n": len(found.instances)}


async def test_reads_answer_makes_a_body_once_per_snapshot_and_variant() -> None:
    shelf, clock, make = Shelf(snapshot(instance())), FakeClock(), Maker()
    agent = build.agent(ScriptedRegistry(shelf), clock)
    reads = Reads(agent)
    for _ in range(3):
        assert (await reads.answer(request(), KEY, "x", ("a",), make)).body == b'{"n":1}'
    assert len(make.made) == 1
    await reads.answer(request(), KEY, "x", ("b",), make)
    await reads.answer(request(), KEY, "y", ("a",), make)
    assert len(make.made) == 3
    shelf.services[KEY] = snapshot(instance(), instance("10.0.0.2"))
    await clock.advance(11)
    await reads.answer(request(), KEY, "x", ("a",), make)
    await clock.advance(0)
    assert (await reads.answer(request(), KEY, "x", ("a",), make)).body == b'{"n":2}'
    assert [stale for _, stale in make.made[3:]] == [True, False]
    await agent.close()


async def test_reads_reply_drops_bodies_of_older_snapshots_first() -> None:
    make = Maker()
    agent = build.agent(ScriptedRegistry(Shelf()), FakeClock())
    reads = Reads(agent, prepared=2_000)
    fresh = partial(CacheResult, Freshness.FRESH, age=0.0, ttl=10.0)

    def ask(found: Snapshot) -> None:
        reads.reply(request(), fresh(snapshot=found), CacheControl(), "x", (), make)

    calm = snapshot(instance(), service=key("calm"))
    ask(calm)
    for number in range(50):
        ask(snapshot(instance(weight=number + 1)))
    made = len(make.made)
    ask(calm)
    assert len(make.made) == made
    await agent.close()


async def test_bodies_counts_the_length_of_variants() -> None:
    """Small bodies with ever-new, long values of `clusters`."""
    bodies, body = Bodies(100_000), b"x"
    tracemalloc.start()
    try:
        for number in range(500):
            assert bodies.of(snapshot(instance()), (f"{number}" + "c" * 20_000,), lambda: body) == body
        assert tracemalloc.get_traced_memory()[0] < 150_000
    finally:
        tracemalloc.stop()


async def test_reads_answer_does_not_keep_a_body_above_the_bound() -> None:
    make = Maker()
    agent = build.agent(ScriptedRegistry(Shelf()), FakeClock())
    reads = Reads(agent, prepared=10)
    for _ in range(2):
        assert (await reads.answer(request(), KEY, "x", (), make)).status == 200
    assert len(make.made) == 2
    await agent.close()


def test_oldest_gives_the_greatest_age() -> None:
    results = [CacheResult(Freshness.FRESH, snapshot(), age, 10 - age) for age in (1.0, 5.0, 3.0)]
    assert dict(oldest(results))["age"] == "5"
    assert [name for name, _ in oldest([])] == ["cache-control"]


def test_tagged_compares_the_bytes_of_the_body() -> None:
    first = tagged(request(), b"[1]", (("age", "0"),))
    (tag,) = [value for name, value in first.headers if name == "etag"]
    asked = Request(scope("GET", "/", {"if-none-match": f'"x", W/{tag}'}))
    again = tagged(asked, b"[1]", (("age", "1"),))
    assert (first.status, again.status, again.body) == (200, 304, b"")
    assert again.headers == (("age", "1"), ("etag", tag))
    assert tagged(asked, b"[2]", ()).status == 200

"""Numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nacos_proxy.catalog.freshness import Freshness
from nacos_proxy.frontends.operations.metrics import METRICS, Answered, Metrics, Sources, census
from nacos_proxy.model.calls import Beat, Deregister, Register
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.model.histogram import Histogram
from nacos_proxy.wire.http import RouteName
from tests.helpers import build
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

LISTS, QUERIES = RouteName("v1", "GET /v1/ns/instance/list"), RouteName("dns", "query")


async def test_scrape_has_every_metric_with_its_value() -> None:
    registry, clock = ScriptedRegistry(Shelf()), FakeClock()
    agent = build.agent(registry, clock)
    await agent.read(KEY)
    fetched_at = clock.wall()
    await agent.write(Register(KEY, instance()))
    await agent.read(KEY)
    registry.script = lambda call: Unreachable("gone", arrived=False)
    await agent.write(Beat(KEY, "10.0.0.1", 80))
    agent.outage.journal.add(Deregister(KEY, "10.0.0.1", 80), 0.0)
    agent.counts.outage["accepted"] = 1
    agent.accept_pushed(snapshot(instance("10.0.0.2"), service=key("unknown")))
    for _ in range(3):
        agent.refresh(KEY)
        await settle()
    clock.jump(4.0)
    timed = Histogram()
    timed.add(0.003)
    sources = Sources(
        agent,
        "1.2.3",
        push_up=lambda: True,
        subscribers=lambda: 5,
        refused=lambda: 2,
        answered=lambda: [Answered(LISTS, "200", timed, 7), Answered(QUERIES, "NXDOMAIN", Histogram(), 1)],
        repeated=lambda: {"head": 6, "target": 1},
        reads=lambda: {"hit": 7, "stale": 1},
        lines=lambda: {"warning": 2},
        certificate_ends=2e9,
    )
    metrics = Metrics(sources)
    text = (await metrics.scrape(generate_latest)).decode()
    families = list(text_string_to_metric_families(text))
    samples = {
        (sample.name.removeprefix("nacos_proxy_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert set(METRICS) <= {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    expected = {
        ("requests_total", *LISTS, "200"): 8,
        ("requests_total", *QUERIES, "NXDOMAIN"): 1,
        ("repeated_total", "head"): 6,
        ("request_duration_seconds_bucket", LISTS.frontend, "0.001", LISTS.template, "200"): 7,
        ("request_duration_seconds_bucket", LISTS.frontend, "0.005", LISTS.template, "200"): 8,
        ("request_duration_seconds_count", *LISTS, "200"): 8,
        ("request_duration_seconds_sum", *LISTS, "200"): 0.003,
        ("upstream_duration_seconds_count", "Register", "ok"): 1,
        ("upstream_duration_seconds_count", "Fetch", "ok"): 1,
        ("upstream_duration_seconds_count", "Fetch", "Unreachable"): 3,
        ("reads_total", "miss"): 1,
        ("reads_total", "hit"): 8,
        ("reads_total", "stale"): 1,
        ("reads_total", "none"): 0,
        ("writes_total", "ok"): 1,
        ("fetches_total", "Unreachable"): 3,
        ("changes_total", "write"): 1,
        ("pushes_total", "fetched"): 1,
        ("local_beats_total",): 1,
        ("outage_writes_total", "accepted"): 1,
        ("outage_writes_waiting",): 1,
        ("log_lines_total", "warning"): 2,
        ("upstream_up",): 0,
        ("push_up",): 1,
        ("last_fetch_timestamp_seconds",): fetched_at,
        ("oldest_snapshot_age_seconds",): 4.0,
        ("tls_certificate_expiry_timestamp_seconds",): 2e9,
        ("subscribers",): 5,
        ("subscribers_refused_total",): 2,
        ("services", "fresh"): 1,
        ("services", "missing"): 0,
        ("quarantined_total",): 0,
        ("instances",): 1,
        ("registrations",): 1,
        ("info", "1.2.3"): 1,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert ("process_resident_memory_bytes",) in samples
    assert metrics.reads() == (10, 8)
    await agent.close()


async def test_scrape_lacks_push_tls_and_the_last_fetch_if_there_was_none() -> None:
    agent = build.agent(ScriptedRegistry(Shelf()), FakeClock())
    text = await Metrics(Sources(agent, "1")).scrape(generate_latest)
    assert all(absent not in text for absent in (b"push_up", b"last_fetch", b"tls_"))
    await agent.close()


async def test_census_finds_the_oldest_watched_snapshot() -> None:
    other = snapshot(instance(), service=key("younger"))
    shelf, clock = Shelf(snapshot(instance("10.0.0.1"), instance("10.0.0.2")), other), FakeClock()
    agent = build.agent(ScriptedRegistry(shelf), clock)
    await agent.read(KEY)
    clock.jump(5.0)
    await agent.read(key("younger"))
    found = await census(agent)
    assert (found.instances, found.watched, found.oldest_age) == (3, 2, 5.0)
    clock.jump(3600.0)  # nobody has read them for an hour, so they are watched no longer
    found = await census(agent)
    assert (found.watched, found.oldest_age, found.states[Freshness.FRESH]) == (0, None, 0)
    await agent.close()

"""Numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nacos_proxy.frontends.operations.metrics import METRICS, Metrics, Repeated, Sources
from nacos_proxy.model.calls import Beat, Deregister, Register
from nacos_proxy.model.errors import Unreachable
from tests.helpers import build
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf


async def test_scrape_has_every_metric_with_its_value() -> None:
    registry, clock = ScriptedRegistry(Shelf()), FakeClock()
    agent = build.agent(registry, clock)
    await agent.read(KEY)
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
    repeated = [Repeated("list", 200, "head", 7), Repeated("pick", 200, "target", 1)]
    sources = Sources(agent, "1.2.3", lambda: True, lambda: 5, lambda: 2, lambda: repeated)
    text = (await Metrics(sources).scrape(generate_latest)).decode()
    samples = {
        (sample.name.removeprefix("nacos_proxy_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {name.removeprefix("nacos_proxy_") for name in METRICS} <= {name for name, *_ in samples}
    expected = {
        ("reads_total", "miss"): 1,
        ("reads_total", "hit"): 1,
        ("repeated_total", "list", "head", "200"): 7,
        ("writes_total", "ok"): 1,
        ("fetches_total", "Unreachable"): 3,
        ("changes_total", "write"): 1,
        ("pushes_total", "fetched"): 1,
        ("local_beats_total",): 1,
        ("outage_writes_total", "accepted"): 1,
        ("outage_writes_waiting",): 1,
        ("upstream_up",): 0,
        ("push_up",): 1,
        ("subscribers",): 5,
        ("subscribers_refused_total",): 2,
        ("services", "fresh"): 1,
        ("services", "missing"): 0,
        ("instances",): 1,
        ("registrations",): 1,
        ("info", "1.2.3"): 1,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert ("process_resident_memory_bytes",) in samples
    await agent.close()


async def test_scrape_has_no_push_up_without_push() -> None:
    agent = build.agent(ScriptedRegistry(Shelf()), FakeClock())
    assert b"push_up" not in await Metrics(Sources(agent, "1")).scrape(generate_latest)
    await agent.close()

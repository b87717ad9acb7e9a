"""Metrics for Prometheus, read from the components at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nacos_proxy.catalog.freshness import Freshness
from nacos_proxy.core.agent import Agent
from nacos_proxy.runtime import in_turns

PREFIX = "nacos_proxy_"

Samples = Iterable[tuple[tuple[str, ...], float]]


class Repeated(NamedTuple):
    """The `number` of answers of a kind and status that the fast path repeated; lookup `stage`: `head` or `target`."""

    kind: str
    status: int
    stage: str
    number: int


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of the metrics. `push_up` returns None if push is not in use."""

    agent: Agent
    version: str
    push_up: Callable[[], bool | None] = lambda: None
    subscribers: Callable[[], int] = lambda: 0
    refused: Callable[[], int] = lambda: 0
    repeated: Callable[[], Iterable[Repeated]] = lambda: ()
    more: Callable[[], Iterable[Metric]] = lambda: ()


Table = dict[str, tuple[tuple[str, ...], str]]
"""Labels and help text by name, without the prefix and a counter's `_total`."""

COUNTERS: Table = {
    "reads": (("outcome",), "Reads that the cache answered: hit, stale, miss (waited for the upstream), none"),
    "repeated": (("kind", "status", "stage"), "Answers that the fast path repeated from memory"),
    "fetches": (("outcome",), "Fetches of a service from the upstream: ok, or the error"),
    "writes": (("outcome",), "Writes sent to the upstream: ok, or the error"),
    "changes": (("source",), "Changes of services: poll, push, write"),
    "pushes": (("outcome",), "Lists that the upstream pushed: used, or fetched because a push does not say all"),
    "outage_writes": (
        ("outcome",),
        "Writes while the upstream was away: accepted; then sent, refused by it, or lapsed (the client is dead)",
    ),
    "events_published": ((), "Events published to subscribers"),
    "subscribers_refused": ((), "Streams refused because there were too many"),
    "healed": ((), "Instances registered again after the upstream had lost them"),
    "local_beats": ((), "Beats answered here while the upstream was away"),
}
GAUGES: Table = {
    "info": (("version",), "1, with the version"),
    "upstream_up": ((), "1 while the upstream answers"),
    "push_up": ((), "1 while the upstream pushes changes, 0 while push is lost; absent if push is not in use"),
    "subscribers": ((), "Event streams that are open"),
    "services": (("state",), "Services in the cache: fresh, stale, expired, missing"),
    "services_watched": ((), "Services that are kept up to date"),
    "instances": ((), "Instances of all services in the cache"),
    "registrations": ((), "Instances registered through this proxy"),
    "outage_writes_waiting": ((), "Writes accepted here that have not been sent to the upstream yet"),
}
METRICS = tuple(f"{PREFIX}{n}_total" for n in COUNTERS) + tuple(PREFIX + n for n in GAUGES)


@dataclass(slots=True)
class Census:
    """Counts of the cache's entries."""

    states: Counter[Freshness] = field(default_factory=lambda: Counter({state: 0 for state in Freshness}))
    watched: int = 0
    instances: int = 0


async def census(agent: Agent) -> Census:
    """Lets other tasks run in between: there may be 10,000 services."""
    cache, now, found = agent.catalog.cache, agent.clock.now(), Census()
    async for entry in in_turns(list(cache.entries()), 1_000):
        found.states[cache.result_of(entry, now).freshness] += 1
        found.watched += cache.is_watched(entry, now)
        found.instances += len(entry.visible.instances) if entry.visible is not None else 0
    return found


class ProxyCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self.census = Census()
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for kind, rows, values in (
            (CounterMetricFamily, COUNTERS, self._counters()),
            (GaugeMetricFamily, GAUGES, self._gauges()),
        ):
            for name, samples in values:
                labels, text = rows[name]
                family = kind(PREFIX + name, text, labels=labels)
                for label_values, value in samples:
                    family.add_metric(label_values, value)
                yield family
        yield from self._sources.more()

    def _counters(self) -> Iterator[tuple[str, Samples]]:
        sources, counts = self._sources, self._sources.agent.counts
        for name, values in (
            ("reads", counts.reads),
            ("fetches", counts.fetches),
            ("writes", counts.writes),
            ("changes", counts.changes),
            ("pushes", counts.pushes),
            ("outage_writes", counts.outage),
        ):
            yield name, (((label,), value) for label, value in sorted(values.items()))
        yield "repeated", (((r.kind, str(r.status), r.stage), r.number) for r in sources.repeated())
        yield "events_published", [((), sources.agent.catalog.hub.published)]
        yield "subscribers_refused", [((), sources.refused())]
        yield "healed", [((), counts.healed)]
        yield "local_beats", [((), counts.local_beats)]

    def _gauges(self) -> Iterator[tuple[str, Samples]]:
        sources, catalog = self._sources, self._sources.agent.catalog
        yield "services", (((state.value,), number) for state, number in self.census.states.items())
        push = sources.push_up()
        if push is not None:
            yield "push_up", [((), int(push))]
        yield "info", [((sources.version,), 1)]
        yield "upstream_up", [((), int(catalog.breaker.up))]
        yield "subscribers", [((), sources.subscribers())]
        yield "services_watched", [((), self.census.watched)]
        yield "instances", [((), self.census.instances)]
        yield "registrations", [((), len(catalog.registrations))]
        yield "outage_writes_waiting", [((), len(sources.agent.outage.journal))]


class Metrics:
    """The proxy's metrics, and those of the process, the interpreter and its memory."""

    def __init__(self, sources: Sources) -> None:
        self.registry = CollectorRegistry()
        self._agent = sources.agent
        self._collector = ProxyCollector(sources)
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    async def scrape(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        """The metrics as a function of `prometheus_client.exposition` encodes them."""
        self._collector.census = await census(self._agent)
        return encode(self.registry)

"""Numbers for Prometheus, read from the parts at each scrape: nothing is counted twice, there is no global registry.

Not for: deciding anything. Every metric is listed in `METRICS`; the docs' table is held against it.
"""

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


class Repeated(NamedTuple):
    """How many answers (`number`) of a kind and status the fast path repeated; `door` is `head` or `target`."""

    kind: str
    status: int
    door: str
    number: int


def _none() -> Iterable[Repeated]:
    return ()


def _zero() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from. `push_up` gives None where push is not in use."""

    agent: Agent
    version: str
    push_up: Callable[[], bool | None] = lambda: None
    subscribers: Callable[[], int] = _zero
    refused: Callable[[], int] = _zero
    repeated: Callable[[], Iterable[Repeated]] = _none
    more: Callable[[], Iterable[Metric]] = lambda: ()


class Row(NamedTuple):
    """A metric's name behind the prefix (a counter's without `_total`), its labels, what it says."""

    name: str
    labels: tuple[str, ...]
    text: str


COUNTERS = {
    row.name: row
    for row in (
        Row("reads", ("outcome",), "Reads that the cache answered: hit, stale, miss (waited for the upstream), none"),
        Row("repeated", ("kind", "status", "door"), "Answers that the fast path repeated from memory"),
        Row("fetches", ("outcome",), "Fetches of a service from the upstream: ok, or the error"),
        Row("writes", ("outcome",), "Writes sent to the upstream: ok, or the error"),
        Row("changes", ("source",), "Changes of services: poll, push, write"),
        Row(
            "outage_writes",
            ("outcome",),
            "Writes while the upstream was away: accepted; then sent, refused by it, or lapsed (the client is dead)",
        ),
        Row("events_published", (), "Events published to subscribers"),
        Row("subscribers_refused", (), "Streams refused since there were too many"),
        Row("healed", (), "Instances registered again after the upstream had lost them"),
        Row("local_beats", (), "Beats answered here while the upstream was away"),
    )
}
GAUGES = {
    row.name: row
    for row in (
        Row("info", ("version",), "1, with the version"),
        Row("upstream_up", (), "1 while the upstream answers"),
        Row("push_up", (), "1 while changes are pushed to us, 0 while push is lost; absent where none is in use"),
        Row("subscribers", (), "Event streams that are open"),
        Row("services", ("state",), "Services in the cache: fresh, stale, expired, missing"),
        Row("services_watched", (), "Services that are kept up to date"),
        Row("instances", (), "Instances of all services in the cache"),
        Row("registrations", (), "Instances registered through this proxy"),
        Row("outage_writes_waiting", (), "Writes accepted here that the upstream has not heard of yet"),
    )
}
METRICS = tuple(f"{PREFIX}{n}_total" for n in COUNTERS) + tuple(PREFIX + n for n in GAUGES)


@dataclass(slots=True)
class Census:
    """What the cache holds."""

    states: Counter[Freshness] = field(default_factory=lambda: Counter({state: 0 for state in Freshness}))
    watched: int = 0
    instances: int = 0


async def census(agent: Agent) -> Census:
    """Counted in turns: there may be 10,000 services."""
    cache, now, found = agent.catalog.cache, agent.clock.now(), Census()
    async for entry in in_turns(list(cache.entries()), 1_000):
        found.states[cache.result_of(entry, now).freshness] += 1
        found.watched += cache.watches(entry, now)
        found.instances += len(entry.visible.instances) if entry.visible is not None else 0
    return found


class ProxyCollector(Collector):
    """Makes the metric families at each scrape; the census is taken before."""

    def __init__(self, sources: Sources) -> None:
        self.census = Census()
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._gauges()
        yield from self._sources.more()

    def _counters(self) -> Iterator[Metric]:
        sources, counts = self._sources, self._sources.agent.counts
        for name, values in (
            ("reads", counts.reads),
            ("fetches", counts.fetches),
            ("writes", counts.writes),
            ("changes", counts.changes),
            ("outage_writes", counts.outage),
        ):
            yield _counter(name, (((label,), value) for label, value in sorted(values.items())))
        yield _counter("repeated", (((r.kind, str(r.status), r.door), r.number) for r in sources.repeated()))
        for name, value in (
            ("events_published", sources.agent.catalog.hub.published),
            ("subscribers_refused", sources.refused()),
            ("healed", counts.healed),
            ("local_beats", counts.local_beats),
        ):
            yield _counter(name, [((), value)])

    def _gauges(self) -> Iterator[Metric]:
        sources, catalog = self._sources, self._sources.agent.catalog
        yield _gauge("services", (((state.value,), number) for state, number in self.census.states.items()))
        push = sources.push_up()
        if push is not None:
            yield _gauge("push_up", [((), int(push))])
        yield _gauge("info", [((sources.version,), 1)])
        for name, value in (
            ("upstream_up", int(catalog.breaker.up)),
            ("subscribers", sources.subscribers()),
            ("services_watched", self.census.watched),
            ("instances", self.census.instances),
            ("registrations", len(catalog.registrations)),
            ("outage_writes_waiting", len(sources.agent.outage.journal)),
        ):
            yield _gauge(name, [((), value)])


def _counter(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    row = COUNTERS[name]
    family = CounterMetricFamily(PREFIX + name, row.text, labels=row.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _gauge(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    row = GAUGES[name]
    family = GaugeMetricFamily(PREFIX + name, row.text, labels=row.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


class Metrics:
    """Ours, and those of the process, the interpreter and its memory."""

    def __init__(self, sources: Sources) -> None:
        self.registry = CollectorRegistry()
        self._agent = sources.agent
        self._collector = ProxyCollector(sources)
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    async def scrape(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        """As `encode` of prometheus_client writes them."""
        self._collector.census = await census(self._agent)
        return encode(self.registry)

"""Metrics for Prometheus, read from the components at each scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.operations.census import Census
from nacos_proxy.model.histogram import Histogram
from nacos_proxy.runtime import in_turns
from nacos_proxy.wire.http import RouteName

PREFIX = "nacos_proxy_"

Samples = Iterable[tuple[tuple[str, ...], float]]


class Answered(NamedTuple):
    """The requests of one route and status: those with `durations`, and `instant` ones, which nobody timed."""

    route: RouteName
    status: str
    durations: Histogram
    instant: int = 0

    @property
    def number(self) -> int:
        return self.durations.count + self.instant


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of the metrics. `push_up` returns None if push is not in use.

    `repeated`: answers of the fast path, by stage. `reads`: reads of the cache that the agent did not count, by
    outcome. `lines`: log lines by level. `certificate_ends`: in seconds since 1970, None without TLS.
    """

    agent: Agent
    version: str
    push_up: Callable[[], bool | None] = lambda: None
    subscribers: Callable[[], int] = lambda: 0
    refused: Callable[[], int] = lambda: 0
    answered: Callable[[], Iterable[Answered]] = lambda: ()
    repeated: Callable[[], Mapping[str, int]] = dict
    reads: Callable[[], Mapping[str, int]] = dict
    lines: Callable[[], Mapping[str, int]] = dict
    certificate_ends: float | None = None
    more: Callable[[], Iterable[Metric]] = lambda: ()


Table = dict[str, tuple[tuple[str, ...], str]]
"""Labels and help text by name, without the prefix and a counter's `_total`."""

READS = ("hit", "stale", "miss", "none")
COUNTERS: Table = {
    "requests": (
        ("frontend", "route", "status"),
        "Requests that were answered, repeated ones included; status: of HTTP, DNS, or for gRPC ok or the error",
    ),
    "repeated": (("stage",), "Those of the requests that the fast path repeated from memory"),
    "reads": (("outcome",), "Reads of services: hit, stale, miss (waited for the upstream), none"),
    "fetches": (("outcome",), "Fetches of a service from the upstream: ok, or the error"),
    "writes": (("outcome",), "Writes sent to the upstream: ok, or the error"),
    "changes": (("source",), "Changes of services: poll, push, write"),
    "pushes": (("outcome",), "Lists that the upstream pushed: used, or fetched because a push does not say all"),
    "quarantined": ((), "Lists that lacked so much that readers kept the old one until another list confirmed it"),
    "outage_writes": (
        ("outcome",),
        "Writes while the upstream was away: accepted; then sent, refused by it, or lapsed (the client is dead)",
    ),
    "events_published": ((), "Events published to subscribers"),
    "subscribers_refused": ((), "Streams refused because there were too many"),
    "healed": ((), "Instances registered again after the upstream had lost them"),
    "local_beats": ((), "Beats answered here while the upstream was away"),
    "log_lines": (("level",), "Lines written to the log"),
}
GAUGES: Table = {
    "info": (("version",), "1, with the version"),
    "upstream_up": ((), "1 while the upstream answers"),
    "push_up": ((), "1 while the upstream pushes changes, 0 while push is lost; absent if push is not in use"),
    "subscribers": ((), "Event streams that are open"),
    "services": (("state",), "Services in the cache: fresh, stale, expired, missing"),
    "services_watched": ((), "Services that are kept up to date"),
    "oldest_snapshot_age_seconds": ((), "Age of the oldest snapshot of a watched service; 0 if none is watched"),
    "last_fetch_timestamp_seconds": ((), "When a fetch from the upstream last succeeded; absent before the first"),
    "instances": ((), "Instances of all services in the cache"),
    "registrations": ((), "Instances registered through this proxy"),
    "outage_writes_waiting": ((), "Writes accepted here that have not been sent to the upstream yet"),
    "tls_certificate_expiry_timestamp_seconds": (
        (),
        "When the certificate ends that clients of this proxy see; absent without TLS",
    ),
}
HISTOGRAMS: Table = {
    "request_duration_seconds": (
        ("frontend", "route", "status"),
        "Time until an answer begins. Repeated answers are not timed: they count in the lowest bucket, with 0 seconds",
    ),
    "upstream_duration_seconds": (
        ("call", "outcome"),
        "Time of a call to the upstream, with its tries at other nodes; outcome: ok, or the error",
    ),
}
METRICS = (*(f"{PREFIX}{n}_total" for n in COUNTERS), *(PREFIX + n for n in (*GAUGES, *HISTOGRAMS)))


async def census(agent: Agent) -> Census:
    """Lets other tasks run in between: there may be 10,000 services."""
    cache, now, found = agent.catalog.cache, agent.clock.now(), Census()
    async for entry in in_turns(list(cache.entries()), 500):
        found.add(entry, cache.result_of(entry, now), cache.is_watched(entry, now))
    return found


class ProxyCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self.census = Census()
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        answered = list(self._sources.answered())
        for kind, rows, values in (
            (CounterMetricFamily, COUNTERS, self._counters(answered)),
            (GaugeMetricFamily, GAUGES, self._gauges()),
        ):
            for name, samples in values:
                labels, text = rows[name]
                family = kind(PREFIX + name, text, labels=labels)
                for label_values, value in samples:
                    family.add_metric(label_values, value)
                yield family
        yield _histogram("request_duration_seconds", (((*a.route, a.status), a.durations, a.instant) for a in answered))
        calls = self._sources.agent.durations
        yield _histogram("upstream_duration_seconds", ((labels, calls[labels], 0) for labels in sorted(calls)))
        yield from self._sources.more()

    def reads(self) -> Mapping[str, int]:
        """All reads by outcome: those that the agent counted, and those that were answered without it."""
        counted, others = self._sources.agent.counts.reads, self._sources.reads()
        return {outcome: counted.get(outcome, 0) + others.get(outcome, 0) for outcome in READS}

    def _counters(self, answered: Iterable[Answered]) -> Iterator[tuple[str, Samples]]:
        sources, counts = self._sources, self._sources.agent.counts
        yield "requests", (((*a.route, a.status), a.number) for a in answered)
        for name, label_values in (
            ("repeated", sources.repeated()),
            ("reads", self.reads()),
            ("fetches", counts.fetches),
            ("writes", counts.writes),
            ("changes", counts.changes),
            ("pushes", counts.pushes),
            ("outage_writes", counts.outage),
            ("log_lines", sources.lines()),
        ):
            yield name, (((label,), value) for label, value in sorted(label_values.items()))
        yield "quarantined", [((), sources.agent.catalog.cache.quarantined)]
        yield "events_published", [((), sources.agent.catalog.hub.published)]
        yield "subscribers_refused", [((), sources.refused())]
        yield "healed", [((), counts.healed)]
        yield "local_beats", [((), counts.local_beats)]

    def _gauges(self) -> Iterator[tuple[str, Samples]]:
        sources, catalog, found = self._sources, self._sources.agent.catalog, self.census
        yield "services", (((state.value,), number) for state, number in found.states.items())
        push, fetched_at = sources.push_up(), sources.agent.fetched_at
        if push is not None:
            yield "push_up", [((), int(push))]
        if fetched_at is not None:
            yield "last_fetch_timestamp_seconds", [((), fetched_at)]
        if sources.certificate_ends is not None:
            yield "tls_certificate_expiry_timestamp_seconds", [((), sources.certificate_ends)]
        yield "info", [((sources.version,), 1)]
        yield "upstream_up", [((), int(catalog.breaker.up))]
        yield "subscribers", [((), sources.subscribers())]
        yield "services_watched", [((), found.watched)]
        yield "oldest_snapshot_age_seconds", [((), round(found.oldest_age or 0.0, 3))]
        yield "instances", [((), found.instances)]
        yield "registrations", [((), len(catalog.registrations))]
        yield "outage_writes_waiting", [((), len(sources.agent.outage.journal))]


def _histogram(name: str, rows: Iterable[tuple[tuple[str, ...], Histogram, int]]) -> Metric:
    labels, text = HISTOGRAMS[name]
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, durations, instant in rows:
        family.add_metric(label_values, durations.buckets(instant), durations.seconds)
    return family


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

    def reads(self) -> tuple[int, int]:
        """How many reads were answered since the start, and how many of them were hits."""
        reads = self._collector.reads()
        return sum(reads.values()), reads["hit"]

    async def scrape(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        """The metrics as a function of `prometheus_client.exposition` encodes them.

        It does so in a thread: a few thousand series take some 50 ms, in which no client would get an answer.
        """
        self._collector.census = await census(self._agent)
        return await asyncio.to_thread(encode, _Collected(list(self.registry.collect())))


class _Collected(CollectorRegistry):
    """Metrics with their values of one moment."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)

"""The goals, and what the runs found. Pure: measures nothing and reads no file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.rounds import Series

OURS = "nacos-proxy"
HOT = "nacos-proxy, one hot service"
SERVER = "r-nacos"
CACHE = "nginx proxy_cache"
REVERSE = "nginx reverse proxy"
BARE = "bare uvloop protocol"

Results = Mapping[str, Series]
Find = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """`limit` is a minimum, or a maximum with `most`, in `unit`; "x" is a ratio."""

    what: str
    limit: float
    unit: str
    find: Find
    most: bool = False

    def held(self, found: float) -> bool:
        return found <= self.limit if self.most else found >= self.limit


def _series(results: Results, question: str) -> Series | None:
    """The series whose question has all of these words; of several, the one with the most readers or services."""
    fitting = [series for name, series in results.items() if all(word in name for word in question.split("|"))]
    return max(fitting, key=lambda series: (len(series.question), series.question), default=None)


def ratio(question: str, figure: str, ours: str, other: str) -> Find:
    def find(results: Results) -> float | None:
        series = _series(results, question)
        spread = series.ratio(ours, other, figure) if series is not None else None
        return None if spread is None else spread.median

    return find


def figure(question: str, contender: str, name: str) -> Find:
    def find(results: Results) -> float | None:
        series = _series(results, question)
        spread = series.spread(contender, name) if series is not None else None
        return None if spread is None else spread.median

    return find


def added(question: str, name: str, direct: str = SERVER) -> Find:
    """How much more the proxy takes than a direct call of its upstream, round by round."""

    def find(results: Results) -> float | None:
        series = _series(results, question)
        if series is None:
            return None
        pairs = zip(series.values(OURS, name), series.values(direct, name), strict=False)
        return statistics.median(more) if (more := [ours - other for ours, other in pairs]) else None

    return find


def worst(*finds: Find) -> Find:
    """The largest of several; None if one was not measured."""

    def find(results: Results) -> float | None:
        found = [value for each in finds if (value := each(results)) is not None]
        return max(found) if len(found) == len(finds) else None

    return find


SDKS = ("Java SDK polls", "Java SDK asks once", "Go SDK polls", "Node SDK polls", "Python SDK asks")
WORST_P99 = worst(*(ratio(sdk, "p99", OURS, CACHE) for sdk in SDKS))


def _at_least(what: str, limit: float, unit: str, find: Find) -> Goal:
    return Goal(what, limit, unit, find)


def _at_most(what: str, limit: float, unit: str, find: Find) -> Goal:
    return Goal(what, limit, unit, find, most=True)


GOALS = (
    *(_at_least(f"reads as the {sdk}, compared with nginx's cache", 1.2, "x", ratio(sdk, "rate", OURS, CACHE))
      for sdk in SDKS),
    _at_most("p99 of these reads, compared with nginx's cache: the worst", 1.0, "x", WORST_P99),
    _at_least("beats, compared with nginx as a reverse proxy", 0.6, "x", ratio("beats|32", "rate", OURS, REVERSE)),
    _at_least("registrations, compared with the same", 0.45, "x", ratio("registrations|32", "rate", OURS, REVERSE)),
    _at_most("a beat over one connection: added to the median", 0.4, "ms", added("beats|1 connection", "p50")),
    _at_most("a registration over one connection: the same", 0.4, "ms", added("registrations|1 connection", "p50")),
    _at_most("first read of a cold service: added to the median", 1.0, "ms", added("first read", "p50")),
    _at_most("upstream requests for 100 simultaneous readers of a cold service", 1.0, "",
             figure("counting", OURS, "upstream_requests")),
    _at_least("identical heads, compared with a bare protocol on uvloop", 0.9, "x",
              ratio("one hot", "rate", OURS, BARE)),
    _at_least("identical heads, compared with nginx's cache", 1.5, "x", ratio("one hot", "rate", OURS, CACHE)),
    _at_most("p99 of identical heads, compared with the same", 1.0, "x", ratio("one hot", "p99", OURS, CACHE)),
    _at_most("p99 over 200 connections, compared with the same", 1.0, "x",
             ratio("200 connections", "p99", OURS, CACHE)),
    _at_least("random services, compared with our reads of one", 0.8, "x", ratio("at random", "rate", OURS, HOT)),
    _at_least("reads during 100 writes/s, compared with our reads of one service", 0.8, "x",
              ratio("beside", "rate", OURS, HOT)),
    _at_most("idle with 1,000 services, push", 2.0, "% of a core",
             figure("push on", "1000 services", "cpu_percent")),
    _at_most("idle with 5,000 services, push", 5.0, "% of a core",
             figure("push on", "5000 services", "cpu_percent")),
    _at_most("idle with 1,000 services, polling", 20.0, "% of a core",
             figure("push off", "1000 services", "cpu_percent")),
    _at_most("start to the first answer, 10,000 services on disk", 1.5, "s", figure("start|10,000", OURS, "answer_s")),
    _at_most("memory, 10,000 services of 10 instances", 300, "MiB", figure("memory|10,000", OURS, "memory")),
    _at_most("soak: growth of memory over the last half", 2.0, "MiB an hour", figure("soak", OURS, "memory_per_hour")),
    _at_most("soak: growth of open files over the last half", 2.0, "an hour", figure("soak", OURS, "files_per_hour")),
    _at_most("soak: violated invariants", 0.0, "", figure("soak", OURS, "violations")),
    _at_most("tiers: requests to Nacos with 1,000 hosts, compared with 10", 1.1, "x",
             ratio("tiers|requests", "requests_a_second", "1000 hosts", "10 hosts")),
    _at_most("tiers: a change at the last of 1,000 hosts, p99", 1000, "ms",
             figure("tiers|change", "1000 hosts", "last_p99_ms")),
    _at_most("tiers: hosts with a wrong list after a site proxy was killed", 0.0, "",
             figure("tiers|killed", "1000 hosts", "wrong")),
    _at_most("tiers: attempts to reconnect within 100 ms, of its hosts", 25, "%",
             figure("tiers|killed", "1000 hosts", "attempts_in_100_ms_percent")),
    _at_most("last of 10,000 SSE readers, compared with nchan", 1.0, "x",
             ratio("fanout|10000", "last_ms", OURS, "nchan")),
    _at_most("memory per idle SSE reader", 10.0, "KiB", figure("fanout|10000", OURS, "kib_per_reader")),
    _at_most("from a write through the proxy to an SSE reader, p99", 10.0, "ms",
             figure("propagation", "own write", "p99_ms")),
    _at_least("gRPC: ServiceQuery of 10 hosts", 2000, "/s", figure("queries over gRPC", OURS, "rate")),
    _at_most("gRPC: last of 1,000 subscribers to hear", 300, "ms", figure("pushes over gRPC|1000", OURS, "last_ms")),
    _at_most("gRPC: last of 1,000 subscribers, compared with r-nacos", 1.0, "x",
             ratio("pushes over gRPC|1000", "last_ms", OURS, SERVER)),
    _at_most("gRPC: memory per idle connection", 40.0, "KiB",
             figure("pushes over gRPC|1000", OURS, "kib_per_connection")),
    _at_most("gRPC: from a server's push to an SSE reader", 20.0, "ms",
             figure("events after gRPC push", OURS, "added_ms")),
    _at_least("hot HTTP reads with 100 gRPC sessions, compared with none", 0.95, "x",
              ratio("with 100 gRPC sessions", "rate", "nacos-proxy, 100 sessions", OURS)),
    _at_least("DNS: answers with 8 addresses, on one core", 30_000, "/s", figure("DNS, one", OURS, "rate")),
    _at_least("DNS: the same, compared with CoreDNS's cache", 1.0, "x",
              ratio("DNS, one", "rate", OURS, "CoreDNS cache")),
)  # fmt: skip


def table(results: Results) -> str:
    """Markdown: each goal with the measured value."""
    lines = ["| what | goal | measured | |", "| --- | ---: | ---: | --- |"]
    for goal in GOALS:
        found = goal.find(results)
        sign = "≤" if goal.most else "≥"
        shown = "not measured" if found is None else _amount(found, goal.unit)
        verdict = "" if found is None else "reached" if goal.held(found) else "not reached"
        lines.append(f"| {goal.what} | {sign} {_amount(goal.limit, goal.unit)} | {shown} | {verdict} |")
    return "\n".join(lines)


def missed(results: Results) -> list[Goal]:
    """The goals that were measured and not reached."""
    found = ((goal, goal.find(results)) for goal in GOALS)
    return [goal for goal, value in found if value is not None and not goal.held(value)]


def _amount(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.2f} times"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number}{unit}" if unit.startswith("/") else f"{number} {unit}".strip()

"""The goals, and what the runs found. Pure: measures nothing and reads no file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.rounds import Series

OURS = "nacos-proxy"
HOT = "nacos-proxy, one hot service"
NGINX = "nginx proxy_cache"
RAW = "raw ASGI"

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


def added(question: str, name: str) -> Find:
    """How much more the proxy takes than a direct call of its upstream."""

    def find(results: Results) -> float | None:
        series = _series(results, question)
        if series is None:
            return None
        direct = next(contender for contender in series.contenders if contender != OURS)
        pairs = zip(series.values(OURS, name), series.values(direct, name), strict=False)
        return statistics.median(ours - other for ours, other in pairs)

    return find


GOALS = (
    Goal("hot reads, compared with nginx proxy_cache", 1.5, "x", ratio("one hot", "rate", OURS, NGINX)),
    Goal("p99 of hot reads, compared with nginx", 1.0, "x", ratio("one hot", "p99", OURS, NGINX), most=True),
    Goal("hot reads, compared with a raw ASGI app on uvicorn", 2.5, "x", ratio("one hot", "rate", OURS, RAW)),
    Goal("random services, compared with our hot reads", 0.8, "x", ratio("at random", "rate", OURS, HOT)),
    Goal("unique header per request, compared with a raw ASGI app", 0.7, "x", ratio("unique", "rate", OURS, RAW)),
    Goal("hot reads during 100 writes/s, compared with our hot reads", 0.8, "x", ratio("beside", "rate", OURS, HOT)),
    Goal(
        "last of 10,000 SSE readers, compared with nchan",
        1.0,
        "x",
        ratio("fanout|10000", "last_ms", OURS, "nchan"),
        True,
    ),
    Goal("forwarded write, one caller: added to the median", 1.0, "ms", added("register|1 caller", "p50"), True),
    Goal("forwarded writes, 32 callers", 2000, "/s", figure("register|32", OURS, "rate")),
    Goal(
        "from a write through the proxy to an SSE reader, p99",
        10.0,
        "ms",
        figure("propagation", "own write", "p99_ms"),
        True,
    ),
    Goal(
        "idle with 1,000 services, polling",
        20.0,
        "% of a core",
        figure("push off", "1000 services", "cpu_percent"),
        True,
    ),
    Goal("idle with 1,000 services, push", 2.0, "% of a core", figure("push on", "1000 services", "cpu_percent"), True),
    Goal("memory, 1,000 services of 10 instances", 150, "MiB", figure("push off", "1000 services", "memory"), True),
    Goal("memory per idle SSE reader", 10.0, "KiB", figure("fanout|10000", OURS, "kib_per_reader"), True),
    Goal("gRPC: ServiceQuery of 10 hosts", 2000, "/s", figure("queries over gRPC", OURS, "rate")),
    Goal("gRPC: last of 1,000 subscribers to hear", 300, "ms", figure("pushes over gRPC|1000", OURS, "last_ms"), True),
    Goal(
        "gRPC: last of 1,000 subscribers, compared with r-nacos",
        1.0,
        "x",
        ratio("pushes over gRPC|1000", "last_ms", OURS, "r-nacos"),
        True,
    ),
    Goal(
        "gRPC: memory per idle connection",
        40.0,
        "KiB",
        figure("pushes over gRPC|1000", OURS, "kib_per_connection"),
        True,
    ),
    Goal(
        "gRPC: from a server's push to an SSE reader",
        20.0,
        "ms",
        figure("events after gRPC push", OURS, "added_ms"),
        True,
    ),
    Goal(
        "hot HTTP reads with 100 gRPC sessions, compared with none",
        0.95,
        "x",
        ratio("with 100 gRPC sessions", "rate", "nacos-proxy, 100 sessions", OURS),
    ),
    Goal("DNS: answers with 8 addresses, on one core", 30_000, "/s", figure("DNS, one", OURS, "rate")),
    Goal("DNS: the same, compared with CoreDNS's cache", 1.0, "x", ratio("DNS, one", "rate", OURS, "CoreDNS cache")),
    Goal(
        "upstream requests for 100 simultaneous readers of a cold service",
        1.0,
        "",
        figure("counting", OURS, "upstream_requests"),
        most=True,
    ),
)


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


def _amount(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.2f} times"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number}{unit}" if unit.startswith("/") else f"{number} {unit}".strip()

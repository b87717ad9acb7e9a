"""The goals, with made-up results."""

import pytest

from loadtest.goals import GOALS, Goal, Results, table
from loadtest.rounds import Sample, Series


def series(question: str, *samples: tuple[str, dict[str, float]]) -> Series:
    made = Series(question)
    for contender, figures in samples:
        made.add(Sample(contender, figures))
    return made


def results(*all_series: Series) -> Results:
    return {one.question: one for one in all_series}


def goal(what: str) -> Goal:
    return next(goal for goal in GOALS if goal.what.startswith(what))


HOT = series(
    "reads, one hot service",
    ("nginx proxy_cache", {"rate": 50_000, "p99": 1.0}),
    ("raw ASGI", {"rate": 30_000}),
    ("nacos-proxy", {"rate": 100_000, "p99": 0.8}),
)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("hot reads, compared with nginx", 2.0),
        ("p99 of hot reads", 0.8),
        ("hot reads, compared with a raw ASGI app", 100 / 30),
        ("random services", 0.9),
        ("unique header", 1.5),
        ("hot reads during", 0.85),
        ("last of 10,000", 0.75),
        ("forwarded write, one caller", 0.5),
        ("forwarded writes, 32 callers", 2500.0),
        ("from a write through the proxy", 4.0),
        ("idle with 1,000 services, polling", 12.0),
        ("idle with 1,000 services, push", 1.5),
        ("memory, 1,000 services", 90.0),
        ("memory per idle SSE reader", 5.0),
        ("upstream requests", 1.0),
        ("gRPC: ServiceQuery", 6000.0),
        ("gRPC: last of 1,000 subscribers to hear", 250.0),
        ("gRPC: last of 1,000 subscribers, compared", 0.25),
        ("gRPC: memory", 22.0),
        ("gRPC: from a server's push", 1.5),
        ("hot HTTP reads with 100 gRPC sessions", 0.96),
        ("DNS: answers", 80_000.0),
        ("DNS: the same", 2.0),
    ],
)
def test_goal_find_reads_the_results_of_its_question(what: str, found: float) -> None:
    own = ("nacos-proxy, one hot service", {"rate": 100.0})
    scale = {"cpu_percent": 12.0, "memory": 90.0}
    taken = results(
        HOT,
        series("reads, 1000 services at random", ("nacos-proxy", {"rate": 90}), own),
        series("reads, unique header per request", ("raw ASGI", {"rate": 30}), ("nacos-proxy", {"rate": 45})),
        series("reads, 100 writes a second beside", ("nacos-proxy", {"rate": 85}), own),
        series("fanout, 1000 readers", ("nchan", {"last_ms": 1}), ("nacos-proxy", {"last_ms": 9})),
        series(
            "fanout, 10000 readers",
            ("nchan", {"last_ms": 80}),
            ("nacos-proxy", {"last_ms": 60, "kib_per_reader": 5}),
        ),
        series("writes, register, 1 caller", ("r-nacos", {"p50": 0.5}), ("nacos-proxy", {"p50": 1.0})),
        series("writes, register, 32 callers", ("r-nacos", {"rate": 35_000}), ("nacos-proxy", {"rate": 2_500})),
        series("propagation, change to event", ("own write", {"p99_ms": 4})),
        series("scale, watched services, push off", ("10 services", {"cpu_percent": 1}), ("1000 services", scale)),
        series("scale, watched services, push on", ("1000 services", {"cpu_percent": 1.5, "memory": 99})),
        series(
            "queries over gRPC, a service of 10 hosts", ("r-nacos", {"rate": 20_000}), ("nacos-proxy", {"rate": 6_000})
        ),
        series(
            "pushes over gRPC, 1000 subscribers",
            ("r-nacos", {"last_ms": 1_000}),
            ("nacos-proxy", {"last_ms": 250, "kib_per_connection": 22}),
        ),
        series("events after gRPC push, change at the server to an SSE reader", ("nacos-proxy", {"added_ms": 1.5})),
        series(
            "hot HTTP reads with 100 gRPC sessions",
            ("nacos-proxy", {"rate": 100}),
            ("nacos-proxy, 100 sessions", {"rate": 96}),
        ),
        series("DNS, one service of 8 hosts", ("CoreDNS cache", {"rate": 40_000}), ("nacos-proxy", {"rate": 80_000})),
        series("misses, 100 callers at once on a counting upstream", ("nacos-proxy", {"upstream_requests": 1})),
    )
    assert goal(what).find(taken) == pytest.approx(found)
    assert "not" not in table(taken)


def test_table_says_not_measured_without_a_result() -> None:
    assert goal("last of 10,000").find(results(HOT)) is None
    lines = table(results(HOT)).splitlines()
    assert "| hot reads, compared with nginx proxy_cache | ≥ 1.50 times | 2.00 times | reached |" in lines
    assert "| from a write through the proxy to an SSE reader, p99 | ≤ 10 ms | not measured |  |" in lines


def test_goal_find_is_none_if_one_half_of_a_ratio_is_missing() -> None:
    alone = results(series("reads, one hot service", ("nacos-proxy", {"rate": 1.0})))
    assert goal("hot reads, compared with nginx").find(alone) is None


def test_table_names_a_goal_that_was_not_reached() -> None:
    missed = series("propagation, change to event", ("own write", {"p99_ms": 11}))
    assert "| from a write through the proxy to an SSE reader, p99 | ≤ 10 ms | 11 ms | not reached |" in table(
        results(missed)
    )

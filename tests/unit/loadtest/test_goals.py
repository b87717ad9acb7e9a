"""The goals, with made-up results."""

import pytest

from loadtest.causes import CAUSES
from loadtest.goals import GOALS, Goal, Results, missed, table
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
    ("bare uvloop protocol", {"rate": 110_000}),
    ("nacos-proxy", {"rate": 100_000, "p99": 0.8}),
)
SDKS = ("Java SDK polls", "Java SDK asks once", "Go SDK polls", "Node SDK polls", "Python SDK asks")


def as_sdk(name: str, p99: float) -> Series:
    ours = {"rate": 65, "p99": p99}
    return series(f"reads, as the {name}", ("nginx proxy_cache", {"rate": 50, "p99": 2.0}), ("nacos-proxy", ours))


def writes(kind: str, connections: str, server: float, nginx: float, ours: float) -> Series:
    return series(
        f"writes, {kind} as the Java SDK, {connections}",
        ("r-nacos", {"p50": server}),
        ("nginx reverse proxy", {"rate": nginx}),
        ("nacos-proxy", {"rate": ours, "p50": server + 0.3}),
    )


@pytest.mark.parametrize(
    ("what", "found"),
    [
        *((f"reads as the {sdk}", 1.3) for sdk in SDKS),
        ("p99 of these reads", 0.95),
        ("beats, compared", 0.7),
        ("registrations, compared", 0.5),
        ("a beat over one", 0.3),
        ("a registration over one", 0.3),
        ("first read of a cold", 0.75),
        ("upstream requests", 1.0),
        ("identical heads, compared with a bare", 100 / 110),
        ("identical heads, compared with nginx", 2.0),
        ("p99 of identical heads", 0.8),
        ("p99 over 200 connections", 0.9),
        ("random services", 0.9),
        ("reads during", 0.85),
        ("idle with 1,000 services, push", 1.5),
        ("idle with 5,000 services, push", 4.5),
        ("idle with 1,000 services, polling", 12.0),
        ("start to", 1.25),
        ("memory, 10,000", 290.0),
        ("soak: growth of memory", 0.5),
        ("soak: growth of open files", -0.25),
        ("soak: violated", 0.0),
        ("tiers: requests", 1.05),
        ("tiers: a change", 800.0),
        ("tiers: hosts with", 0.0),
        ("tiers: attempts", 12.0),
        ("last of 10,000", 0.75),
        ("memory per idle SSE reader", 5.0),
        ("from a write through the proxy", 4.0),
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
    killed = {"wrong": 0.0, "attempts_in_100_ms_percent": 12.0}
    taken = results(
        HOT,
        *(as_sdk(sdk, 1.9 if sdk == "Go SDK polls" else 1.5) for sdk in SDKS),
        series("reads, 200 connections", ("nginx proxy_cache", {"p99": 10.0}), ("nacos-proxy", {"p99": 9.0})),
        series("reads, 1000 services at random", ("nacos-proxy", {"rate": 90}), own),
        series("reads, 100 writes a second beside", ("nacos-proxy", {"rate": 85}), own),
        series("fanout, 1000 readers", ("nchan", {"last_ms": 1}), ("nacos-proxy", {"last_ms": 9})),
        series(
            "fanout, 10000 readers",
            ("nchan", {"last_ms": 80}),
            ("nacos-proxy", {"last_ms": 60, "kib_per_reader": 5}),
        ),
        writes("beats", "1 connection", 0.1, 9, 1),
        writes("beats", "32 connections", 1.0, 100, 70),
        writes("registrations", "1 connection", 0.1, 9, 1),
        writes("registrations", "32 connections", 1.0, 100, 50),
        series("propagation, change to event", ("own write", {"p99_ms": 4})),
        series("scale, watched services, push off", ("1000 services", {"cpu_percent": 12.0, "memory": 90.0})),
        series(
            "scale, watched services, push on",
            ("1000 services", {"cpu_percent": 1.5, "memory": 99}),
            ("5000 services", {"cpu_percent": 4.5}),
        ),
        series("start, 10,000 services on disk", ("nacos-proxy", {"answer_s": 1.25})),
        series("memory, 10,000 services of 10", ("nacos-proxy", {"memory": 290})),
        series(
            "soak, 60 minutes",
            ("nacos-proxy", {"memory_per_hour": 0.5, "files_per_hour": -0.25, "violations": 0}),
        ),
        series(
            "tiers, requests to Nacos by hosts",
            ("10 hosts", {"requests_a_second": 20}),
            ("1000 hosts", {"requests_a_second": 21}),
        ),
        series("tiers, a change to the last of the hosts", ("1000 hosts", {"last_p99_ms": 800})),
        series("tiers, a site proxy killed", ("1000 hosts", killed)),
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
        series("misses, first read of a cold service", ("r-nacos", {"p50": 0.25}), ("nacos-proxy", {"p50": 1.0})),
        series("misses, 100 callers at once on a counting upstream", ("nacos-proxy", {"upstream_requests": 1})),
    )
    assert goal(what).find(taken) == pytest.approx(found)
    assert "not" not in table(taken)
    assert missed(taken) == []


def test_table_says_not_measured_without_a_result() -> None:
    assert goal("last of 10,000").find(results(HOT)) is None
    assert goal("p99 of these reads").find(results(as_sdk("Go SDK polls", 1.0))) is None
    lines = table(results(HOT)).splitlines()
    assert "| identical heads, compared with nginx's cache | ≥ 1.50 times | 2.00 times | reached |" in lines
    assert "| from a write through the proxy to an SSE reader, p99 | ≤ 10 ms | not measured |  |" in lines


def test_goal_find_is_none_if_one_half_of_a_ratio_is_missing() -> None:
    alone = results(series("reads, one hot service", ("nacos-proxy", {"rate": 1.0})))
    assert goal("identical heads, compared with nginx").find(alone) is None


def test_added_is_none_without_the_direct_call() -> None:
    alone = results(series("misses, first read of a cold service", ("nacos-proxy", {"p50": 1.0})))
    assert goal("first read of a cold").find(alone) is None


def test_table_names_a_goal_that_was_not_reached() -> None:
    slow = results(series("propagation, change to event", ("own write", {"p99_ms": 11})))
    assert "| from a write through the proxy to an SSE reader, p99 | ≤ 10 ms | 11 ms | not reached |" in table(slow)
    assert [goal.what for goal in missed(slow)] == ["from a write through the proxy to an SSE reader, p99"]


def test_each_cause_is_of_a_goal() -> None:
    assert CAUSES.keys() <= {goal.what for goal in GOALS}

"""The performance page."""

import pytest

from loadtest.causes import CAUSES
from loadtest.page import page, sizing
from loadtest.report import Result
from loadtest.rounds import Sample, Series


def test_page_has_the_goals_and_every_result_with_its_chart() -> None:
    series = Series("writes, beat, 1 caller", [Sample("r-nacos", {"rate": 2.0}), Sample("nacos-proxy", {"rate": 1.0})])
    text = page([Result(series, "r-nacos", "rate", "2 cores of some kind")])
    assert "Machine: 2 cores of some kind." in text
    assert "| identical heads, compared with nginx's cache | ≥ 1.50 times | not measured |  |" in text
    assert "## Writes, beat, 1 caller" in text
    assert "| nacos-proxy | 1 (1-1) | 0.50 (0.50-0.50) |" in text
    assert "](../loadtest/results/writes-beat-1-caller.svg)" in text


def result(question: str, *samples: tuple[str, dict[str, float]]) -> Result:
    return Result(Series(question, [Sample(*sample) for sample in samples]), "r-nacos", "rate", "2 cores")


def test_page_begins_with_what_sdks_send_and_leaves_details_to_the_results() -> None:
    figures = {"rate": 1.0, "p999": 2.0, "errors": 0.0, "requests": 3.0}
    text = page([
        result("reads, one hot service", ("nacos-proxy", figures)),
        result("reads, as the Java SDK polls", ("nacos-proxy", {**figures, "errors": 1.0})),
    ])  # fmt: skip
    sdk, hot = text.index("### Reads, as the Java SDK polls"), text.index("### Reads, one hot service")
    assert text.index("## Requests as SDKs send them") < sdk < text.index("## Reads that repeat") < hot
    assert "| | rate | errors | rate ÷ r-nacos |" in text[sdk:hot]
    assert "| | rate | rate ÷ r-nacos |" in text[hot:]
    assert "![" not in text  # a single contender


def test_page_has_the_cause_of_each_goal_that_was_missed() -> None:
    both = [("r-nacos", {"p50": 0.1}), ("nacos-proxy", {"p50": 1.0})]
    text = page([result(f"writes, {what} as the Java SDK, 1 connection", *both) for what in ("beats", "registrations")])
    together = "a beat over one connection: added to the median; a registration over one connection: the same"
    assert f"- **{together}**: {CAUSES[together.partition(';')[0]]}" in text
    slow = page([result("propagation, change to event", ("own write", {"p99_ms": 11.0}))])
    assert "- **from a write through the proxy to an SSE reader, p99**: not known yet." in slow
    assert "Why some goals" not in page([result("propagation, change to event", ("own write", {"p99_ms": 1.0}))])


def test_page_without_results_raises() -> None:
    with pytest.raises(ValueError, match="python -m loadtest all"):
        page([])


def test_sizing_has_a_row_for_each_host_and_the_performance_page_leaves_it_out() -> None:
    figures = {
        "cpu_percent_idle": 0.34,
        "cpu_percent": 12.0,
        "memory": 80.2,
        "reads_a_second": 9.8,
        "upstream_a_second": 20.0,
        "load": 0.12,
    }
    series = Series("sizing, by services", [Sample("10 services", figures)])
    result = Result(series, "10 services", "cpu_percent", "2 cores of some kind")
    assert "| 10 services | 0.3 % | 12.0 % | 80 MiB | 10/s | 20/s |" in sizing([result])
    assert "Machine: 2 cores of some kind. Its load average was 0.1 before" in sizing([result])
    assert "10 services" not in page([result])


def test_sizing_without_results_raises() -> None:
    with pytest.raises(ValueError, match="python -m loadtest sizing"):
        sizing([])

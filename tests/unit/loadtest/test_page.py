"""The performance page."""

import pytest

from loadtest.page import page
from loadtest.report import Result
from loadtest.rounds import Sample, Series


def test_page_has_the_goals_and_every_result_with_its_chart() -> None:
    series = Series("writes, beat, 1 caller", [Sample("r-nacos", {"rate": 2.0}), Sample("nacos-proxy", {"rate": 1.0})])
    text = page([Result(series, "r-nacos", "rate", "2 cores of some kind")])
    assert "Machine: 2 cores of some kind." in text
    assert "| hot reads, compared with nginx proxy_cache | ≥ 1.50 times | not measured |  |" in text
    assert "## Writes, beat, 1 caller" in text
    assert "| nacos-proxy | 1 (1-1) | 0.50 (0.50-0.50) |" in text
    assert "](../loadtest/results/writes-beat-1-caller.svg)" in text


def test_page_without_results_raises() -> None:
    with pytest.raises(ValueError, match="python -m loadtest all"):
        page([])

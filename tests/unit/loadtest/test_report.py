"""Tables, JSON and charts of made-up results."""

import json
from pathlib import Path
from xml.etree import ElementTree

from loadtest.report import Result, chart, load, machine, save, table
from loadtest.rounds import Sample, Series


def series() -> Series:
    taken = Series("reads, one <hot> service")
    for ours, theirs in ((90_000.0, 50_000.0), (110_000.0, 50_000.0)):
        taken.add(Sample("nacos-proxy", {"rate": ours, "p99": 0.5}))
        taken.add(Sample("nginx", {"rate": theirs}))
    return taken


def test_table_has_medians_spreads_and_the_ratio_to_the_baseline() -> None:
    assert table(series(), "nginx").splitlines() == [
        "| | rate | p99 | rate ÷ nginx |",
        "| --- | ---: | ---: | ---: |",
        "| nacos-proxy | 100,000 (90,000-110,000) | 0.5 (0.5-0.5) | 2.00 (1.80-2.20) |",
        "| nginx | 50,000 (50,000-50,000) | - | 1.00 (1.00-1.00) |",
    ]


def test_table_has_no_ratio_without_a_baseline() -> None:
    assert table(series(), "nchan").splitlines()[2].endswith("| 0.5 (0.5-0.5) |  |")


def test_chart_is_well_formed_and_has_a_bar_for_each_contender() -> None:
    root = ElementTree.fromstring(chart(series(), "rate"))
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    texts = [text.text for text in root.findall("{http://www.w3.org/2000/svg}text")]
    assert len(bars) == 2
    assert texts[0] == "reads, one <hot> service: rate"
    assert float(bars[0].attrib["width"]) == 2 * float(bars[1].attrib["width"])


def test_load_returns_what_save_wrote(tmp_path: Path) -> None:
    save(series(), "nginx", "rate", ["a note"], tmp_path / "results")
    (loaded,) = load(tmp_path / "results")
    assert loaded == Result(series(), "nginx", "rate", machine())
    assert sorted(path.suffix for path in (tmp_path / "results").iterdir()) == [".json", ".md", ".svg"]
    assert json.loads((tmp_path / "results" / f"{loaded.stem}.json").read_text())["notes"] == ["a note"]
    assert "- a note" in (tmp_path / "results" / f"{loaded.stem}.md").read_text()

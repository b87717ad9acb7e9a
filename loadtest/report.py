"""Results of a run: a table for people, JSON for programs, a chart for the documentation."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import psutil

from loadtest.rounds import Sample, Series

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """A saved series: its baseline, the figure that counts, the machine that it ran on."""

    series: Series
    baseline: str
    figure: str
    machine: str

    @property
    def stem(self) -> str:
        return stem(self.series.question)


def stem(question: str) -> str:
    """The name of a question's files."""
    return question.replace(" ", "-").replace(",", "")


def machine() -> str:
    """The machine in one line, to quote with every figure."""
    memory = psutil.virtual_memory().total / (1 << 30)
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {python}"


def table(series: Series, baseline: str, figures: Sequence[str] = ()) -> str:
    """Markdown: medians with their spread, and the ratio to the baseline in the first figure."""
    names = list(figures) or series.figures
    lines = ["| | " + " | ".join(names) + f" | {names[0]} ÷ {baseline} |", "| --- |" + " ---: |" * (len(names) + 1)]
    for contender in series.contenders:
        cells = [_cell(series, contender, name) for name in names]
        ratio = series.ratio(contender, baseline, names[0])
        cells.append("" if ratio is None else f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f})")
        lines.append(f"| {contender} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(series: Series, contender: str, figure: str) -> str:
    spread = series.spread(contender, figure)
    if spread is None:
        return "-"
    return f"{_number(spread.median)} ({_number(spread.least)}-{_number(spread.most)})"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def chart(series: Series, figure: str) -> str:
    """SVG: bars for the medians of one figure, with their spread as a line."""
    rows = [(name, spread) for name in series.contenders if (spread := series.spread(name, figure)) is not None]
    widest = max((spread.most for _, spread in rows), default=1.0) or 1.0
    height = 34 * len(rows) + 44
    size = f'width="760" height="{height}" font-family="sans-serif" font-size="13"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>']
    parts.append(f'<text x="8" y="20" font-weight="bold">{escape(series.question)}: {escape(figure)}</text>')
    for number, (name, spread) in enumerate(rows):
        y = 34 * number + 36
        scale = 460 / widest
        ours = "#2f6f4f" if name.startswith("nacos-proxy") else "#9aa5ad"
        parts.append(f'<text x="8" y="{y + 15}">{escape(name)}</text>')
        parts.append(f'<rect x="200" y="{y}" width="{spread.median * scale:.1f}" height="20" fill="{ours}"/>')
        x1, x2 = 200 + spread.least * scale, 200 + spread.most * scale
        parts.append(f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="#222"/>')
        parts.append(f'<text x="{206 + spread.most * scale:.1f}" y="{y + 15}">{_number(spread.median)}</text>')
    return "\n".join([*parts, "</svg>"])


def save(series: Series, baseline: str, figure: str, notes: Sequence[str], folder: Path = RESULTS) -> None:
    """`QUESTION.json`, `.md` and `.svg` under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = stem(series.question)
    samples = [{"contender": s.contender, **s.figures} for s in series.samples]
    body = {
        "question": series.question,
        "machine": machine(),
        "baseline": baseline,
        "figure": figure,
        "notes": list(notes),
        "samples": samples,
    }
    (folder / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")
    text = [f"# {series.question}", "", machine(), "", table(series, baseline), "", *(f"- {note}" for note in notes)]
    (folder / f"{name}.md").write_text("\n".join(text).rstrip() + "\n")
    (folder / f"{name}.svg").write_text(chart(series, figure) + "\n")


def load(folder: Path = RESULTS) -> list[Result]:
    """The results that `save` wrote there, sorted by name."""
    results: list[Result] = []
    for path in sorted(folder.glob("*.json")):
        body = json.loads(path.read_text())
        series = Series(body["question"])
        for sample in body["samples"]:
            series.add(Sample(sample.pop("contender"), sample))
        results.append(Result(series, body["baseline"], body["figure"], body["machine"]))
    return results

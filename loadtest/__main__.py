"""`python -m loadtest QUESTION [--quick] [--upstream URL]`; the questions are reads, misses, writes and so on."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from loadtest import page, report
from loadtest.contenders import Missing

DOCS = Path(__file__).resolve().parent.parent / "docs"
QUESTIONS = ("reads", "misses", "writes", "fanout", "propagation", "scale", "restart", "tiers", "sizing", "grpc", "dns")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _notes(module: ModuleType) -> list[str]:
    """What it measures: the first line about it."""
    return (module.__doc__ or "").splitlines()[:1]


def main() -> int:
    parser = argparse.ArgumentParser("loadtest", description=__doc__)
    parser.add_argument("question", choices=[*QUESTIONS, "soak", "all", "docs"])
    parser.add_argument(
        "--quick", action="store_true", help="few, short rounds: to see whether it runs, not to measure"
    )
    parser.add_argument("--upstream", metavar="URL", help="a running Nacos server, in place of r-nacos")
    parser.add_argument("--only", metavar="WORDS", help="of reads and writes: only the questions with these words")
    parser.add_argument("--results", type=Path, help="folder for tables, JSON and charts (loadtest/results)")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long a soak lasts")
    options = parser.parse_args()
    results = options.results or (report.RESULTS / "quick" if options.quick else report.RESULTS)
    if options.question == "docs":
        found = report.load(results)
        (DOCS / "performance.md").write_text(page.page(found), "utf-8")
        (DOCS / "sizing.md").write_text(page.sizing(found), "utf-8")
        return 0
    if options.question == "soak":
        soak = importlib.import_module("loadtest.soak")
        series, good = soak.run(options.minutes, options.upstream, say)
        report.save(series, series.contenders[0], "memory", _notes(soak), results)
        return 0 if good else 1
    some = {"only": options.only} if options.only else {}
    wanted = QUESTIONS if options.question == "all" else (options.question,)
    for name in wanted:
        module = importlib.import_module(f"loadtest.{name}")
        try:
            for series, baseline, figure in module.run(options.quick, options.upstream, say, **some):
                print(f"\n## {series.question}\n\n{report.table(series, baseline)}\n", flush=True)
                report.save(series, baseline, figure, _notes(module), results)
        except Missing as error:
            say(f"{name} left out: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

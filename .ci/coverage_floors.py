"""Fails if a folder of proxy/nacos_proxy is covered less than its floor in pyproject.toml: `coverage_floors.py REPORT`.

The percentage counts lines and branches together, as `coverage report` does.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = "proxy/nacos_proxy/"


def percentages(report: dict[str, dict[str, dict[str, dict[str, int]]]]) -> dict[str, float]:
    """The covered share of each folder, in percent; modules at the root count for themselves."""
    covered, total = Counter[str](), Counter[str]()
    for path, found in report["files"].items():
        folder = path.removeprefix(PACKAGE).partition("/")[0]
        if path.startswith(PACKAGE) and not folder.startswith("__"):
            summary = found["summary"]
            covered[folder] += summary["covered_lines"] + summary["covered_branches"]
            total[folder] += summary["num_statements"] + summary["num_branches"]
    return {folder: 100 * covered[folder] / total[folder] for folder in total if total[folder]}


def main(report: str) -> int:
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["coverage_floors"]
    found = percentages(json.loads(Path(report).read_text("utf-8")))
    failed = 0
    for folder in sorted(found.keys() | floors.keys()):
        percent, floor = found.get(folder, 0.0), floors.get(folder, 100)
        failed += percent < floor
        print(f"{folder:24} {percent:5.1f} %  floor {floor} %{'  BELOW' if percent < floor else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

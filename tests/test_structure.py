"""The repository checks itself: public names, a test file for every module, one version, bounded modules."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import proxy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "tests" / "unit"
MODULES = sorted(
    path.relative_to(ROOT / "proxy") for path in (ROOT / "proxy").rglob("*.py") if not path.name.startswith("__")
)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_every_module_has_its_test_file() -> None:
    missing = [str(path) for path in MODULES if not (UNIT / path.with_name(f"test_{path.name}")).exists()]
    assert missing == []


def test_every_unit_test_file_has_its_module() -> None:
    """`tests/unit/loadtest/` mirrors `loadtest/`, everything else `proxy/`."""
    orphans: list[str] = []
    for path in sorted(UNIT.rglob("test_*.py")):
        place = path.relative_to(UNIT)
        base = ROOT if place.parts[0] == "loadtest" else ROOT / "proxy"
        if not (base / place.with_name(path.name.removeprefix("test_"))).exists():
            orphans.append(str(place))
    assert orphans == []


def test_every_module_has_its_line_in_the_map() -> None:
    """The tables of docs/architecture.md name each module once, and none that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row.split(" | ")[0])]
    assert sorted(named) == sorted(path.as_posix() for path in MODULES)


def test_public_names_are_sorted_and_exactly_those_listed() -> None:
    public = {
        name
        for name, value in vars(proxy).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    listed = list(proxy.__all__)
    assert listed == sorted(listed, key=str.casefold)
    assert public - {"TYPE_CHECKING"} <= set(listed)
    assert [name for name in listed if not hasattr(proxy, name)] == []


def test_one_version_everywhere() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert proxy.__version__ == PROJECT["version"]
    assert headings[1:2] in ([], [PROJECT["version"]])


def test_every_dependency_says_why_it_earns_its_place() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    named = set(re.findall(r"^\| ([\w-]*\w) \|", page, re.MULTILINE))
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    legacy = (ROOT / "tests" / "legacy-sdk.txt").read_text("utf-8").split()
    required = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in [*PROJECT["dependencies"], *extras, *legacy]}
    assert named - {"package"} == required


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_is_one_noun_of_bounded_size(path: Path) -> None:
    source = (ROOT / "proxy" / path).read_text("utf-8")
    assert path.stem not in {"utils", "helpers", "manager", "common", "misc"}
    lines = source.count("\n")
    assert lines <= 400
    assert [name for name, length in functions(source) if length > 40] == []


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1

"""Rules for the whole repository: public names, the architecture map, package docstrings, one version."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nacos_proxy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy" / "nacos_proxy"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_architecture_page_lists_every_module() -> None:
    """The tables of docs/architecture.md name each existing module once and no other."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row.split(" | ")[0])]
    assert sorted(named) == sorted(path.as_posix() for path in MODULES)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(PACKAGE).as_posix())
def test_packages_say_what_lives_there_and_what_never_does(room: Path) -> None:
    doc = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    assert "Never here: " in doc
    assert len([line for line in doc.splitlines() if line]) <= 4


def test_public_names_are_exactly_those_listed_in_all() -> None:
    public = {
        name
        for name, value in vars(nacos_proxy).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    listed = list(nacos_proxy.__all__)
    assert public - {"TYPE_CHECKING"} <= set(listed)
    assert [name for name in listed if not hasattr(nacos_proxy, name)] == []


def test_version_is_the_same_everywhere() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert nacos_proxy.__version__ == PROJECT["version"]
    assert headings[1:2] in ([], [PROJECT["version"]])


def in_docs(section: str) -> set[str]:
    """The packages in the table of a section of docs/dependencies.md."""
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    (text,) = (part for part in page.split("\n## ") if part.startswith(f"{section}\n"))
    return set(re.findall(r"^\| ([\w-]*\w) \|", text, re.MULTILINE)) - {"package"}


def names(lines: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines if line}


def test_dependencies_have_a_reason() -> None:
    legacy = (ROOT / "tests" / "legacy-sdk.txt").read_text("utf-8").splitlines()
    extras = (line for lines in PROJECT["optional-dependencies"].values() for line in lines)
    assert in_docs("At run time") == names(PROJECT["dependencies"])
    otel, docs = (names(PROJECT["optional-dependencies"][extra]) for extra in ("otel", "docs"))
    assert (in_docs("With the extra otel"), in_docs("For the documentation")) == (otel, docs)
    assert (
        in_docs("For development") == names((*extras, *legacy)) - in_docs("At run time") - {"nacos-proxy"} - otel - docs
    )


def needed_by(lines: Iterable[str], known: set[str]) -> set[str]:
    """Adds to `known` the packages that pip installs for these requirements, here and now."""
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in known:
            known.add(name)
            needed_by(metadata.requires(name) or (), known)
    return known


def test_dependencies_page_lists_everything_that_an_installation_contains() -> None:
    installed, direct = needed_by(PROJECT["dependencies"], set()), names(PROJECT["dependencies"])
    other_pythons = {"exceptiongroup"} if sys.version_info >= (3, 11) else set[str]()
    assert in_docs("What an installation contains") - other_pythons == installed - direct

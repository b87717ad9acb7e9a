"""Columns of text."""

from __future__ import annotations

import os
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.cli.tables import Cell, cut, lines_of, width_of
from tests.helpers.live import ProxyProcess
from tests.unit.cli.test_main import on_terminal
from tests.unit.conftest import Run

TEXTS = st.text(alphabet="aé订한\u0301😀…- ", max_size=12)


def rows(*texts: tuple[str, ...]) -> list[tuple[Cell, ...]]:
    return [tuple(map(Cell, row)) for row in texts]


def test_lines_of_aligns_columns() -> None:
    assert list(lines_of(("ADDRESS", "X"), rows(("10.0.0.1:80", "a"), ("b", "")))) == [
        "ADDRESS      X",
        "10.0.0.1:80  a",
        "b",
    ]
    assert list(lines_of((), [])) == []


def test_lines_of_counts_the_columns_of_wide_and_combining_characters() -> None:
    assert width_of("订单") == 4
    assert width_of("e\u0301") == 1
    assert list(lines_of((), rows(("订单", "1"), ("order", "2")))) == ["订单   1", "order  2"]


def test_lines_of_escapes_control_characters() -> None:
    (line,) = lines_of((), [(Cell("a\x1b[2J\n", "red"), Cell("\u202eb"))])
    assert click.unstyle(line) == r"a\x1b[2J\n  \u202eb"


def test_lines_of_cuts_the_last_column_only() -> None:
    long = rows(("10.0.0.1:8080", "zone=a version=2"))
    assert list(lines_of((), long, 20)) == ["10.0.0.1:8080  zone…"]
    assert list(lines_of((), long, 5)) == ["10.0.0.1:8080  …"]
    assert list(lines_of((), long)) == ["10.0.0.1:8080  zone=a version=2"]


@given(TEXTS, st.integers(1, 12))
def test_cut_fits_and_marks_what_is_missing(text: str, width: int) -> None:
    shown = cut(text, width)
    assert width_of(shown) <= width
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))


@pytest.mark.parametrize(("output", "whole"), [("table", False), ("wide", True)])
def test_print_table_cuts_lines_on_a_terminal(running: ProxyProcess, ask: Run, output: str, whole: bool) -> None:
    ask("register", "lengthy", "10.0.0.1:80", "--metadata", f"key={'x' * 200}")
    command = [sys.executable, "-m", "nacos_proxy", "get", "lengthy", "-o", output, "--server", running.url]
    shown = click.unstyle(on_terminal(command, {"COLUMNS": "100"}).decode())
    assert (max(map(len, shown.splitlines())) > 100, "10.0.0.1:80" in shown, "…" in shown) == (whole, True, not whole)
    assert f"key={'x' * 200}" in ask("get", "lengthy", COLUMNS="100").output
    assert os.environ.get("NO_COLOR") or b"\x1b[" in on_terminal(command, {})

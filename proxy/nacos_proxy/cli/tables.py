"""Columns of text for people and for scripts. Never here: what the columns are about.

Columns are aligned by how wide a terminal shows each character. No line is wrapped: where `width` is given, the last
column is cut.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import click

from nacos_proxy.model.printable import printable

GAP = "  "
ELLIPSIS = "…"


class Cell(NamedTuple):
    """The text of a cell, and its colour on a terminal ('': none)."""

    text: str
    colour: str = ""


def print_table(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, whole: bool = False) -> None:
    """Prints to standard output. On a terminal, lines are cut at its width, unless `whole`."""
    for line in lines_of(header, rows, None if whole else screen_width()):
        click.echo(line)


def screen_width() -> int | None:
    """The columns of the terminal; None if standard output is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def lines_of(header: Sequence[str], rows: Iterable[Sequence[Cell]], width: int | None = None) -> Iterator[str]:
    """The lines, with ANSI colours. Control characters are escaped. `width`: columns of the terminal."""
    table = [[Cell(title) for title in header], *rows] if header else list(rows)
    table = [[Cell(printable(text), colour) for text, colour in row] for row in table]
    widths = [max(map(width_of, column)) for column in zip(*((text for text, _ in row) for row in table), strict=True)]
    left = None if width is None else max(1, width - sum(widths[:-1]) - len(GAP) * (len(widths) - 1))
    for *row, last in table:
        padded = [
            Cell(text + " " * (size - width_of(text)), colour)
            for (text, colour), size in zip(row, widths, strict=False)
        ]
        padded.append(last if left is None else Cell(cut(last.text, left), last.colour))
        yield GAP.join(click.style(text, colour) if colour and text else text for text, colour in padded).rstrip()


def width_of(text: str) -> int:
    """The columns that a terminal needs for `text`."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def cut(text: str, width: int) -> str:
    """The beginning of `text` that fits, with … at its end if something is missing."""
    if width_of(text) <= width:
        return text
    used, kept = width_of(ELLIPSIS), ""
    for character in text:
        used += _width(character)
        if used > width:
            break
        kept += character
    return kept + ELLIPSIS


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # drawn over the character before it
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1

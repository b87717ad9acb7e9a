"""The code blocks of docs/recipes, for tests that run them.

A block that is tested has a title in its info string: ```` ```nginx title=nginx.conf ````.
"""

from __future__ import annotations

from pathlib import Path

from tests.helpers.pages import blocks

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"


def block(page: str, title: str, replace: dict[str, str] | None = None) -> str:
    """The text of a block of `docs/recipes/PAGE.md`, with each key of `replace` replaced. Each must occur."""
    text = {found.title: found.text for found in blocks(RECIPES / f"{page}.md")}[title]
    for old, new in (replace or {}).items():
        if old not in text:
            raise ValueError(f"{page}.md, {title}: {old!r} does not occur in\n{text}")
        text = text.replace(old, new)
    return text

"""The code blocks of docs/recipes, for tests that run them.

A block that is tested has a title in its info string: ```` ```nginx title=nginx.conf ````.
"""

from __future__ import annotations

import re
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
_BLOCK = re.compile(r"^```\w*[ \t]+title=(?P<title>\S+)[ \t]*\n(?P<text>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def block(page: str, title: str, replace: dict[str, str] | None = None) -> str:
    """The text of a block of `docs/recipes/PAGE.md`, with each key of `replace` replaced. Each must occur."""
    blocks = {found["title"]: found["text"] for found in _BLOCK.finditer((RECIPES / f"{page}.md").read_text("utf-8"))}
    text = blocks[title]
    for old, new in (replace or {}).items():
        if old not in text:
            raise ValueError(f"{page}.md, {title}: {old!r} does not occur in\n{text}")
        text = text.replace(old, new)
    return text

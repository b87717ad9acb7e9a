"""Text from outside, made safe for a terminal and a log. It knows nothing of what the text is about."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escapes control characters, so that text from outside is safe for a terminal and stays on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)

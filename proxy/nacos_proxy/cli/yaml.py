"""Writes values of JSON as YAML 1.1 for people. Only writes: the proxy reads no YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# Text that no reader takes for a number, a date, a truth value or syntax; all other text is quoted.
_PLAIN = re.compile(r"[A-Za-z/_][\w./@+-]*( [\w./@+-]+)*|\d{1,3}(\.\d{1,3}){3}", re.ASCII)
_RESERVED = re.compile(r"y|n|yes|no|on|off|true|false|null", re.IGNORECASE)
_UNPRINTABLE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def yaml_of(value: Any) -> str:
    """A document that ends with a line feed. The keys of objects are texts."""
    return "\n".join(_block(value)) + "\n"


def _block(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            lines = list(_block(item))
            if _is_nested(item):
                yield f"{_scalar(key)}:"
                # A list stands below its key without indentation, as kubectl prints it.
                yield from lines if isinstance(item, list) else (f"  {line}" for line in lines)
            else:
                yield f"{_scalar(key)}: {lines[0]}"
    elif isinstance(value, list) and value:
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            first, *rest = _block(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)  # pyright: ignore[reportUnknownArgumentType]


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _RESERVED.fullmatch(value):
        return value
    if isinstance(value, float) and "e" in (text := repr(value)) and "." not in text:
        return text.replace("e", ".0e")  # without a point, YAML 1.1 reads text
    quoted = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\U{ord(found[0]):08x}", quoted)

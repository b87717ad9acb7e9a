"""How the value of a setting is written, both ways: text to value and back. Pure."""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic.fields import FieldInfo

from nacos_proxy.model.masking import MASK, shown_url

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
_SHOWN_UNITS = (("d", 172_800.0, 86_400.0), ("h", 3600.0, 3600.0), ("m", 60.0, 60.0), ("s", 1.0, 1.0))
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

_URLS = ("upstream", "endpoint")  # settings that hold them
_DURATION_HINT = "a duration is written like 500ms, 5s, 10m, 24h, 7d or forever"


def duration(value: Any) -> Any:
    """Seconds from text such as 500ms, 5s, 24h, forever; what is no text is left alone. Raises `ValueError`."""
    if isinstance(value, bool):
        raise ValueError(_DURATION_HINT)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in ("forever", "inf"):
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", text)
    if found is None:
        raise ValueError(_DURATION_HINT)
    return float(found[1]) * _UNITS[found[2]]


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", value.strip().lower())
    if found is None:
        raise ValueError("a size is written like 8192, 64KiB or 1MiB")
    return int(found[1]) * _SIZES[found[2]]


def _several(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _secrets(value: Any) -> Any:
    """A list of secrets as the text that separates them by commas. What is refused is never shown."""
    if not isinstance(value, list):
        return value
    given: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    if not all(isinstance(item, str) for item in given):
        raise ValueError("each of the list is a text in quotes")
    if any("," in item for item in given):
        raise ValueError("one of the list holds a comma")
    return ",".join(given)


def _path(value: Any) -> Any:
    return None if value == "" else value


def _context(value: str) -> str:
    path = value.strip().strip("/")
    if re.fullmatch(r"[\w.~/-]*", path, re.ASCII) is None or ".." in path or "//" in path:
        raise ValueError("a context path is written like /nacos, or / for none")
    return f"/{path}" if path else ""


def _url(value: str) -> str:
    if value:
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError("a URL is written like http://10.0.0.1:8080/nacos/serverlist")
    return value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f"{value!r} is no network; one is written like 10.0.0.0/8 or fd00::/8") from None
    return values


Duration = Annotated[float, BeforeValidator(duration), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
Secrets = Annotated[SecretStr, BeforeValidator(_secrets)]
Networks = Annotated[Several, AfterValidator(_networks)]
File = Annotated[Path | None, BeforeValidator(_path)]
Url = Annotated[str, AfterValidator(_url)]
ContextPath = Annotated[str, AfterValidator(_context)]


Kind = Literal["switch", "choice", "duration", "size", "list", "path", "secret", "number", "text"]


def kind_of(field: FieldInfo) -> Kind:
    """How a setting's value is written."""
    functions = {item.func for item in field.metadata if isinstance(item, BeforeValidator)}
    if functions:
        kinds: dict[Any, Kind] = {duration: "duration", _size: "size", _several: "list", _path: "path"}
        kinds[_secrets] = "secret"
        return kinds[functions.pop()]
    if get_origin(field.annotation) is Literal:
        return "choice"
    plain: dict[Any, Kind] = {bool: "switch", SecretStr: "secret", Path: "path", int: "number", float: "number"}
    return plain.get(field.annotation, "text")


def text_of(value: object, kind: Kind = "text") -> str:
    """A value as it is written in a flag or a variable; secrets masked."""
    if kind == "duration" and isinstance(value, float):
        return _duration_text(value)
    if kind == "size" and isinstance(value, int):
        units = (unit for unit in "gmk" if value and value % _SIZES[unit] == 0)
        unit = next(units, "")
        return f"{value // _SIZES[unit]}{unit.upper()}iB" if unit else str(value)
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def shown_text(name: str, value: object, kind: Kind) -> str:
    """As `text_of`, for people: who logs in by a URL is masked."""
    if name in _URLS:
        parts = value if isinstance(value, tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]
        return ",".join(shown_url(str(part)) for part in parts)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return text_of(value, kind)


def _duration_text(seconds: float) -> str:
    if seconds == math.inf:
        return "forever"
    for unit, least, length in _SHOWN_UNITS:
        if seconds >= least and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.12g}s" if seconds == 0 or seconds > 1 else f"{1000 * seconds:.12g}ms"

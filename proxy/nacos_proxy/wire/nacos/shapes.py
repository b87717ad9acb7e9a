"""The shapes of Nacos's answers, written and read (nacos-http.md 1.4).

T is plain text, P a line of the parameter check, J the web server's error page, V a result `{code, message, data}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import Any, cast

import orjson

from nacos_proxy.model.errors import Malformed
from nacos_proxy.wire.http import JSON_TYPE, TEXT_TYPE, HttpReply, HttpRequest

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NO_CACHE = (
    ("Pragma", "no-cache"),
    ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("Cache-Control", "no-cache,no-store"),
)

# Result codes and their texts (nacos-http.md 1.5).
CODES: Mapping[int, str] = {
    0: "success",
    10000: "parameter missing",
    10001: "access denied",
    20002: "parameter validate error",
    20004: "resource not found",
    21001: "weight error",
    21003: "instance not found",
    21004: "instance error",
    21006: "selector error",
    21007: "service already exist",
    21008: "service not exist",
    21009: "service delete failure",
    30000: "server error",
}


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON as Jackson writes it. Never fails: characters without UTF-8 become question marks."""
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates, integers beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_default).encode("utf-8", "replace")


def _default(value: Any) -> Any:
    return json.loads(orjson.dumps(value)) if isinstance(value, orjson.Fragment) else str(value)


def as_json(value: Any, status: int = 200) -> HttpReply:
    return HttpReply(status, JSON_TYPE, dumps(value))


def as_text(text: str, status: int = 200) -> HttpReply:
    """Shape T."""
    return HttpReply(status, TEXT_TYPE, text.encode("utf-8", "replace"))


def check_line(text: str) -> HttpReply:
    """Shape P: always 400, without a content type (recording "v1 register, port abc")."""
    return HttpReply(400, None, f"{text}\r\n".encode("utf-8", "replace"), _NO_CACHE)


def error_page(request: HttpRequest, status: int, message: str, now_ms: int) -> HttpReply:
    """Shape J; without a body for HEAD (recording "v1 HEAD list")."""
    if request.method == "HEAD":
        return HttpReply(status, JSON_TYPE, b"")
    page = {
        "timestamp": (_EPOCH + timedelta(milliseconds=now_ms)).isoformat(timespec="milliseconds"),
        "status": status,
        "error": phrase(status),
        "message": message,
        "path": request.context + request.path,
    }
    return as_json(page, status)


def phrase(status: int) -> str:
    """The reason phrase of a status; `None`, as Spring writes it, for an unknown one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "None"


def result(data: Any) -> HttpReply:
    """Shape V for a success."""
    return as_json({"code": 0, "message": "success", "data": data})


def failure(status: int, code: int, data: str | None, message: str = "") -> HttpReply:
    """Shape V for a failure, by default with the message of its code."""
    return as_json({"code": code, "message": message or CODES.get(code, "server error"), "data": data}, status)


MAX_LEVELS = 64  # of nested JSON that are accepted; orjson reads 1,024 and writes 254
_EXTRA_LEVELS = 254 - MAX_LEVELS
_TOO_DEEP_TEXT = f"JSON nested deeper than {MAX_LEVELS} levels"


def read_json(text: bytes | str) -> Any:
    """A server's JSON, whatever its content type, because r-nacos sends some without one. Raises `Malformed`.

    All foreign JSON that we store passes through this function or `read_exactly`. orjson can write such a value again,
    also inside another value: fields that are nested too deep are dropped, and orjson reads no lone surrogates, no
    infinite numbers and no integers beyond 64 bits.
    """
    value = _loads(text)
    if not _shallow(text, value) and (value := _pruned(value, MAX_LEVELS)) is _TOO_DEEP:
        raise Malformed(_TOO_DEEP_TEXT)
    return value


def read_exactly(text: bytes | str) -> Any:
    """A client's JSON. Unlike `read_json`, drops nothing: raises `Malformed` if it is nested too deep."""
    value = _loads(text)
    if not _shallow(text, value):
        raise Malformed(_TOO_DEEP_TEXT)
    return value


def _loads(text: bytes | str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise Malformed(f"not JSON: {error}") from error


_TOO_DEEP = object()


def _shallow(text: bytes | str, value: Any) -> bool:
    """Whether the value of a text has at most `MAX_LEVELS` levels. To write it costs less than to visit each part."""
    opened = text.count("{") + text.count("[") if isinstance(text, str) else text.count(b"{") + text.count(b"[")
    if opened <= MAX_LEVELS:
        return True
    for _ in range(_EXTRA_LEVELS):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def _pruned(value: Any, levels: int) -> Any:
    """The value without the fields that need more levels. A list with such an item is dropped as a whole."""
    if not isinstance(value, dict | list):
        return value
    if not levels:
        return _TOO_DEEP
    if isinstance(value, dict):
        fields = {name: _pruned(item, levels - 1) for name, item in cast("dict[str, Any]", value).items()}
        return {name: item for name, item in fields.items() if item is not _TOO_DEEP}
    items = [_pruned(item, levels - 1) for item in cast("list[Any]", value)]
    return _TOO_DEEP if any(item is _TOO_DEEP for item in items) else items


def as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    return cast("dict[str, Any]", value)


def as_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{what} is not a list")
    return cast("list[Any]", value)


def as_strings(value: Any, what: str) -> tuple[str, ...]:
    items = as_list(value, what)
    if not all(isinstance(item, str) for item in items):
        raise Malformed(f"{what} contains an item that is not text")
    return tuple(items)


def as_int(value: Any, what: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value[:19])
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed(f"{what} is not a whole number")
    return value

"""Answers of real servers from `tests/recordings/`, as requests and replies, and how to compare with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from nacos_proxy.wire.http import FORM_TYPE, HttpReply, HttpRequest

FOLDER = Path(__file__).parent.parent / "recordings"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Row:
    """One exchange. `path` includes the context path; `wait` is in seconds, before the request."""

    case: str
    server: str
    method: str
    path: str
    status: int
    type: str | None
    body: Any
    wait: float = 0.0
    query: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def below(self) -> str:
        """The path without the context path."""
        return self.path.removeprefix("/nacos")

    @property
    def request(self) -> HttpRequest:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.form:
            headers["content-type"] = FORM_TYPE
        return HttpRequest(self.method, self.below, tuple(self.query.items()), tuple(self.form.items()), headers)

    @property
    def reply(self) -> HttpReply:
        """The answer; its JSON is compact and in recorded order, as on the wire."""
        text = self.body if isinstance(self.body, str) else compact(self.body)
        return HttpReply(self.status, self.type, text.encode())

    @property
    def is_error_page(self) -> bool:
        return isinstance(self.body, dict) and "timestamp" in self.body

    @property
    def now_ms(self) -> int:
        """The time on an error page; 0 if there is none."""
        if not self.is_error_page:
            return 0
        moment = datetime.fromisoformat(self.body["timestamp"])
        return (moment - _EPOCH) // timedelta(milliseconds=1)

    def __str__(self) -> str:
        return f"{self.server}: {self.case}"


def load(name: str) -> list[Row]:
    """All rows of a file, in order. A row without a server belongs to the server in the file name."""
    rows: list[Row] = []
    for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines():
        rows.append(Row(**{"server": name, **json.loads(line)}))
    return rows


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def comparable(body: bytes, *, loosely: bool = False) -> Any:
    """Converts a body so that `==` compares the order of fields, except in maps that Java hashes.

    `loosely`: ignores the order of hosts, and instance ids, which servers omit for what v2 or v3 registered.
    """
    try:
        return _ordered(json.loads(body), loosely)
    except ValueError:
        return body


def _ordered(value: Any, loosely: bool, sort: bool = False) -> Any:
    if isinstance(value, dict):
        hashed = ("metadata", "clusterMap")
        pairs = [(name, _ordered(item, loosely, name in hashed)) for name, item in value.items()]
        if loosely:
            pairs = [pair for pair in pairs if pair[0] != "instanceId"]
        return sorted(pairs) if sort else pairs
    if not isinstance(value, list):
        return value
    items = [_ordered(item, loosely) for item in value]
    return sorted(items, key=str) if loosely else items

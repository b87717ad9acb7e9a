"""Recorded conversations over gRPC from `tests/recordings/grpc/`, as payloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from nacos_proxy.wire.nacos.grpc.payload import Payload
from tests.helpers.recordings import FOLDER, compact

GRPC = FOLDER / "grpc"
FILES = sorted(path.stem for path in GRPC.glob("*.jsonl"))


@dataclass(frozen=True)
class Message:
    """One payload. `sender` is `client` or `server`; `case` is '' but in the raw cases. `stream`: not unary."""

    file: str
    sender: str
    payload: Payload
    stream: bool
    case: str = ""

    @property
    def body(self) -> Any:
        return json.loads(self.payload.body)

    @property
    def is_object(self) -> bool:
        """Whether the body is a JSON object. Some raw cases send others."""
        return self.payload.body[:2] in (b'{"', b"{}")

    def __str__(self) -> str:
        return f"{self.file}: {self.case or self.payload.type}"


@dataclass(frozen=True)
class Exchange:
    """A unary request and its answer."""

    request: Message
    answer: Message

    def __str__(self) -> str:
        return str(self.request)


@cache
def exchanges(file: str) -> tuple[Exchange, ...]:
    """The unary calls of a recording, in order."""
    return tuple(item for item in _items(file) if isinstance(item, Exchange))


@cache
def streamed(file: str) -> tuple[Message, ...]:
    """What both sides sent on the streams, in order. The `faults` files have no bodies of pushes."""
    return tuple(item for item in _items(file) if isinstance(item, Message))


def _items(file: str) -> Iterator[Exchange | Message]:
    waiting: dict[tuple[str, int], Message] = {}
    for line in (GRPC / f"{file}.jsonl").read_text("utf-8").splitlines():
        event: dict[str, Any] = json.loads(line)
        kind, headers = event.get("event"), event.get("headers", {})
        if kind == "payload":
            stream = event["path"] != "/Request/request"
            payload = _payload(event["type"], event["body"], headers, event["clientIp"])
            message = Message(file, event["dir"], payload, stream)
            place = (event["conn"], event["stream"])
            if stream:
                yield message
            elif event["dir"] == "client":
                waiting[place] = message
            else:
                yield Exchange(waiting.pop(place), message)
        elif "answer" in event:
            case = event.get("case", "")
            request = Message(file, "client", _payload(event["type"], event["body"], headers), False, case)
            answer = _payload(event["answer"], event["result"])
            yield Exchange(request, Message(file, "server", answer, False, case))
        elif kind in ("stream-sent", "stream"):
            yield Message(file, "client", _payload(event["type"], event["body"], headers), True)
        elif kind in ("stream-got", "push") and "body" in event:
            yield Message(file, "server", _payload(event["type"], event["body"]), True)


def _payload(kind: str, body: Any, headers: Any = None, client_ip: str = "") -> Payload:
    text = body if isinstance(body, str) else compact(body)
    return Payload(kind, text.encode(), headers or {}, client_ip)

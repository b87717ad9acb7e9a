"""Events as `text/event-stream` (HTML standard, "Server-sent events", 9.2.5 and 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"

_UNSAFE = ("\r", "\n", "\0")


class Event(NamedTuple):
    """A dispatched event. `id` is the last one that the stream named; `retry`: milliseconds, if it was set since."""

    id: str
    kind: str
    data: str
    retry: int | None = None


def encode(event: str, data: bytes, id: str = "") -> bytes:
    """One event, with a data line for each line of `data`. Raises `ValueError` for a line break in `event` or `id`."""
    if any(mark in text for text in (event, id) for mark in _UNSAFE):
        raise ValueError("an event's name and id are single lines without NUL")
    head = f"id: {id}\n" if id else ""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return f"{head}event: {event}\ndata: ".encode() + lines + b"\n\n"


def encode_retry(millis: int) -> bytes:
    """Tells the reader how long to wait before it reconnects; this is not an event."""
    return b"retry: %d\n\n" % millis


def decode(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream, from its bytes in any pieces, with LF or CRLF as line ends.

    A block without data is no event, but if it sets `retry`, it is yielded with an empty `data`.
    """
    id = kind = ""
    data: list[str] = []
    retry: int | None = None
    for line in _lines(chunks):
        if not line:
            if data or retry is not None:
                yield Event(id, kind or "message", "\n".join(data), retry)
            kind, data, retry = "", [], None
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            id = value
        elif name == "retry" and value.isascii() and value.isdecimal():
            retry = int(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The complete lines, without their ends."""
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        if others:
            *lines, rest = (b"".join(pieces), *others)
            pieces = [rest]
            yield from (line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines)

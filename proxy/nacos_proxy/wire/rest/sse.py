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
    """The events of a stream, from its bytes in any pieces. As `Decoder`."""
    decoder = Decoder()
    for chunk in chunks:
        yield from decoder.feed(chunk)


class Decoder:
    """Reads a stream, with LF or CRLF as line ends.

    A block without data is no event, but if it sets `retry`, it is yielded with an empty `data`.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of an incomplete line
        self._id = self._kind = ""
        self._data: list[str] = []
        self._retry: int | None = None

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that are complete with this chunk. Take all of them before the next chunk."""
        first, *others = chunk.split(b"\n")
        self._pieces.append(first)
        if not others:
            return
        *lines, rest = (b"".join(self._pieces), *others)
        self._pieces = [rest]
        for line in lines:
            if (event := self._take(line.removesuffix(b"\r").decode("utf-8", "replace"))) is not None:
                yield event

    def _take(self, line: str) -> Event | None:
        if not line:
            found = bool(self._data) or self._retry is not None
            event = Event(self._id, self._kind or "message", "\n".join(self._data), self._retry) if found else None
            self._kind, self._data, self._retry = "", [], None
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdecimal():
            self._retry = int(value)
        return None

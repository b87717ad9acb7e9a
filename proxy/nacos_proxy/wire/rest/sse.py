"""Events as `text/event-stream` (HTML standard, "Server-sent events", 9.2.5 and 9.2.6)."""

from __future__ import annotations

CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"

_UNSAFE = ("\r", "\n", "\0")


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

"""Reads `text/event-stream` (HTML standard, "Server-sent events", 9.2.6), whatever pieces it arrives in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


@dataclass(frozen=True, slots=True)
class Message:
    """One event. `data` is UTF-8 text; `id` is the last id in the stream so far, '' if there was none."""

    event: str = "message"
    data: bytes = b""
    id: str = ""


@dataclass(slots=True)
class Decoder:
    """Reads a stream in pieces of any size. A reader reconnects with `last_id` after `retry` ms."""

    last_id: str = ""
    retry: int | None = None
    _buffer: bytes = b""
    _started: bool = False
    _event: str = ""
    _data: list[bytes] = field(default_factory=lambda: [])

    def feed(self, piece: bytes) -> list[Message]:
        """The events that this piece completes."""
        self._buffer += piece
        if not self._started and len(self._buffer) >= len(_BOM):
            self._started = True
            self._buffer = self._buffer.removeprefix(_BOM)
        messages: list[Message] = []
        done = 0
        # A CR at the very end waits: the next piece may begin with its LF.
        while (end := _LINE_END.search(self._buffer, done)) is not None:
            line, done = self._buffer[done : end.start()], end.end()
            if line:
                self._field(line)
            elif (message := self._dispatch()) is not None:
                messages.append(message)
        self._buffer = self._buffer[done:]
        return messages

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"event":
                self._event = value.decode("utf-8", "replace")
            case b"data":
                self._data.append(value)
            case b"id" if b"\0" not in value:
                self.last_id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit():
                self.retry = int(value)
            case _:
                pass

    def _dispatch(self) -> Message | None:
        event, data = self._event, self._data
        self._event, self._data = "", []
        return Message(event or "message", b"\n".join(data), self.last_id) if data else None

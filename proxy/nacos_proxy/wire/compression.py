"""No answer may be compressed: a few bytes can expand to gigabytes."""

from __future__ import annotations

from collections.abc import Iterable

NO_COMPRESSION = ("Accept-Encoding", "identity")  # sent to every server
COMPRESSED_ANSWER = (
    "the answer is compressed ({}), although we asked for an uncompressed one: turn compression off at the server"
)


def content_codings(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """The content codings that the raw headers of an answer name; '' if it is not compressed (RFC 9110 8.4)."""
    named = (value for name, value in fields if name.lower() == b"content-encoding")
    codings = (part.strip().lower() for value in named for part in value.split(b","))
    return ", ".join(coding[:40].decode("latin-1") for coding in codings if coding not in (b"", b"identity"))

"""Reads request bodies; or reads a form early, for the token in it, and replays it to the app behind."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.types import Message, Receive, Scope

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.wire.http import FORM_TYPE, form_pairs
from nacos_proxy.wire.multipart import MULTIPART_TYPE

_BLOCK = 64 << 10  # bytes


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body. Raises `BadCall`: with status 413 if it is longer than `max_bytes`, or on a disconnect.

    It takes no `Request`, which costs as much to make as a small body costs to read.
    """
    if any(_length_of(value) > max_bytes for name, value in scope["headers"] if name == b"content-length"):
        raise _too_large(max_bytes)
    body, _, disconnected = await _receive_body(receive, max_bytes)
    if disconnected:
        raise BadCall("", Violation.BODY, "the client disconnected before its request was complete")
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


async def peek_form(scope: Scope, receive: Receive, max_bytes: int) -> tuple[bytes, Receive]:
    """The urlencoded form in a request, and a `receive` that replays the body. The form is b"" if there is none of up
    to `max_bytes`.

    A body whose Content-Length exceeds that is not read. If a chunked one exceeds it, the rest streams on.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    media = content_type.partition(";")[0].strip().lower()
    announced = _length_of(headers.get(b"content-length", b""))
    if media not in (FORM_TYPE, MULTIPART_TYPE):
        return b"", receive
    if not (0 < announced <= max_bytes or b"transfer-encoding" in headers):
        return b"", receive
    body, more, disconnected = await _receive_body(receive, max_bytes)
    replay: list[Message] = [{"type": "http.disconnect"}] if disconnected else []  # popped from its end
    if body or not disconnected:
        replay.append({"type": "http.request", "body": body, "more_body": more or disconnected})

    async def receive_again() -> Message:
        return replay.pop() if replay else await receive()

    if more or len(body) > max_bytes:
        return b"", receive_again
    return (body if media == FORM_TYPE else _urlencoded(content_type, body)), receive_again


async def _receive_body(receive: Receive, max_bytes: int) -> tuple[bytes, bool, bool]:
    """The body up to its end, to over `max_bytes`, or to a disconnect; whether more comes; whether it disconnected."""
    # Blocks: a list of pieces of one byte each takes many times the memory, and bytearrays that grow side by side to a
    # megabyte each leave gaps in the heap.
    blocks, size, more = [bytearray()], 0, True
    while more and size <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(blocks), False, True
        piece = message.get("body", b"")
        if len(blocks[-1]) + len(piece) > _BLOCK and blocks[-1]:
            blocks.append(bytearray())
        blocks[-1] += piece
        size += len(piece)
        more = message.get("more_body", False)
    return b"".join(blocks), more, False


def _length_of(value: bytes) -> int:
    """A Content-Length; 0 if it is not a number. Python refuses to parse thousands of digits."""
    return int(value[:20]) if value.isdigit() else 0


def _too_large(max_bytes: int) -> BadCall:
    return BadCall("", Violation.BODY, f"the body is longer than {max_bytes} bytes", status=413)


def _urlencoded(content_type: str, body: bytes) -> bytes:
    try:
        return urlencode(form_pairs(content_type, body)).encode()
    except BadCall:  # the app behind reports it
        return b""

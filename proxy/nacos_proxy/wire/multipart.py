"""Parameters in a `multipart/form-data` body (RFC 7578), read as Nacos 2.5.1 and 3.0.3 do. Files are skipped.

Values are always UTF-8, and no transfer encoding is decoded. The first delimiter without a line break after it is the
last one (`tests/conformance/test_multipart.py` compares with a real server). `email` reads only the headers of a part,
because it would take seconds to find a megabyte of delimiters.
"""

from __future__ import annotations

from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value

from nacos_proxy.model.errors import BadCall, Violation

MULTIPART_TYPE = "multipart/form-data"
MAX_PARTS = 100
MAX_HEAD = 1024  # bytes of Content-Type, or of a part's headers: `email` takes quadratic time


def read_multipart(content_type: str, body: bytes) -> tuple[tuple[str, str], ...]:
    """Names and values in the order of the parts. Raises `BadCall` if the body is truncated or not multipart."""
    delimiter = b"--" + boundary_of(content_type)
    _, first, rest = body.partition(delimiter)  # the first delimiter may stand anywhere, the others start a line
    pieces = rest.split(b"\r\n" + delimiter, MAX_PARTS) if first else []
    found: list[tuple[str, str]] = []
    for number, piece in enumerate(pieces, 1):
        if not piece.startswith((b"\r\n", b"\n")) and (piece or number == len(pieces)):
            return tuple(found)
        head, blank, value = piece.partition(b"\r\n\r\n")
        if not (head.strip() and blank and len(head) <= MAX_HEAD):
            raise _refused("a part of it has no headers, or is cut short")
        if name := part_name(head.decode("utf-8", "replace")):
            found.append((name, value.decode("utf-8", "replace")))
    if pieces:
        raise _refused(f"it is cut short, or has more than {MAX_PARTS} parts")
    return ()


def boundary_of(content_type: str) -> bytes:
    """The boundary between parts, without `--`. Raises `BadCall` if the Content-Type names no readable boundary."""
    message = Message()
    message["content-type"] = content_type if len(content_type) <= MAX_HEAD else ""
    boundary = _parameter(message, "boundary", "content-type")
    if not boundary:
        raise _refused("its Content-Type names no boundary")
    return boundary.encode("latin-1", "replace")


def part_name(head: str) -> str:
    """The name of the parameter in a part; '' for a file, or anything but form data."""
    part = HeaderParser().parsestr(head.lstrip("\r\n"))
    file = _parameter(part, "filename", "content-disposition") is not None
    if file or part.get_content_disposition() != "form-data":
        return ""
    return _parameter(part, "name", "content-disposition") or ""


def _parameter(message: Message, name: str, header: str) -> str | None:
    value = message.get_param(name, header=header)
    try:
        return None if value is None else collapse_rfc2231_value(value)
    except ValueError:  # an unknown charset, or one with a NUL in its name (RFC 2231)
        return None


def _refused(why: str) -> BadCall:
    return BadCall("", Violation.BODY, f"the body is not valid {MULTIPART_TYPE}: {why}")

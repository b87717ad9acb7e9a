"""The parameters of a `multipart/form-data` body (RFC 7578), as Nacos 2.5.1 and 3.0.3 read them: UTF-8 whatever a part
says, no decoding, and a delimiter with anything but a line break behind it is the last one. Not for: files, which are
left out. `tests/conformance/test_multipart.py` asks a real server.

The delimiters are found here and not by `email`, which would take seconds for a megabyte of them; it reads the headers.
"""

from __future__ import annotations

from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value

from nacos_proxy.model.errors import BadCall, Violation

MULTIPART_TYPE = "multipart/form-data"
MOST_PARTS = 100
LONGEST_HEAD = 1024  # of Content-Type and a part's headers: `email` takes the square of it in time


def read_multipart(content_type: str, body: bytes) -> tuple[tuple[str, str], ...]:
    """Names and values in the order of the parts. Raises `BadCall` for what is cut short, or no such body."""
    delimiter = b"--" + boundary_of(content_type)
    _, first, rest = body.partition(delimiter)  # the first one may stand anywhere, the others begin a line
    pieces = rest.split(b"\r\n" + delimiter, MOST_PARTS) if first else []
    found: list[tuple[str, str]] = []
    for number, piece in enumerate(pieces, 1):
        if not piece.startswith((b"\r\n", b"\n")) and (piece or number == len(pieces)):
            return tuple(found)
        head, blank, value = piece.partition(b"\r\n\r\n")
        if not (head.strip() and blank and len(head) <= LONGEST_HEAD):
            raise _refused("a part of it has no headers, or is cut short")
        if name := part_name(head.decode("utf-8", "replace")):
            found.append((name, value.decode("utf-8", "replace")))
    if pieces:
        raise _refused(f"it is cut short, or has more than {MOST_PARTS} parts")
    return ()


def boundary_of(content_type: str) -> bytes:
    """What stands between the parts, behind `--`. Raises `BadCall` where a Content-Type names nothing readable."""
    message = Message()
    message["content-type"] = content_type if len(content_type) <= LONGEST_HEAD else ""
    boundary = _parameter(message, "boundary", "content-type")
    if not boundary:
        raise _refused("its Content-Type names no boundary")
    return boundary.encode("latin-1", "replace")


def part_name(head: str) -> str:
    """The parameter that a part is; '' for a file, and for what is none."""
    part = HeaderParser().parsestr(head.lstrip("\r\n"))
    file = _parameter(part, "filename", "content-disposition") is not None
    if file or part.get_content_disposition() != "form-data":
        return ""
    return _parameter(part, "name", "content-disposition") or ""


def _parameter(message: Message, name: str, header: str) -> str | None:
    value = message.get_param(name, header=header)
    try:
        return None if value is None else collapse_rfc2231_value(value)
    except ValueError:  # a charset of another kind, or with a NUL in its name (RFC 2231)
        return None


def _refused(why: str) -> BadCall:
    return BadCall("", Violation.BODY, f"the body is no {MULTIPART_TYPE}: {why}")

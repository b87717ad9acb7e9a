"""UDP push to legacy clients, both roles: their agents, the datagram, the acknowledgement (nacos-http.md 6)."""

from __future__ import annotations

import gzip
import re
import zlib
from typing import Any, NamedTuple, cast

import orjson

GZIP_FROM = 1024  # bytes: real servers compress from this size on
MAX_UNPACKED = 4 << 20  # bytes to which a datagram may unpack
MAX_DATAGRAM = 65_507 - 100  # bytes; the limit of UDP over IPv4 is 65,507

# The client types to which a server pushes, with their minimum versions (switches pushJavaVersion and so on).
_MIN_VERSIONS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("Nacos-Java-Client", (0, 1, 0)),
    ("Nacos-Go-Client", (0, 1, 0)),
    ("Nacos-C-Client", (1, 0, 12)),
    ("vip-client4cpp", (1, 0, 12)),
    ("Nacos-CSharp-Client", (0, 9, 0)),
    ("Nacos-DNS", (0, 4, 3)),
)
_VERSION = re.compile(r":v(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?", re.ASCII)


def qualifies(agent: str) -> bool:
    """Whether a User-Agent gets pushes; Python clients never do (nacos-http.md 6)."""
    minimum = next((version for prefix, version in _MIN_VERSIONS if agent.startswith(prefix)), None)
    if minimum is None:
        return False
    found = _VERSION.search(agent)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    return version >= minimum


def write_push(text: bytes, reference: int) -> bytes | None:
    """The datagram with a list body; None if it would be too large: then the client has to poll.

    The acknowledgement repeats `reference`; real servers use nanoseconds since their start.
    """
    data = text.decode()
    packet = orjson.dumps({"type": "dom", "data": data, "lastRefTime": reference})
    if len(packet) >= GZIP_FROM:
        packet = gzip.compress(packet, 6, mtime=0)
    return packet if len(packet) <= MAX_DATAGRAM else None


def read_ack(packet: bytes) -> int | None:
    """The reference that a client acknowledges; None for any other packet."""
    try:
        ack = orjson.loads(packet)
        if isinstance(ack, dict) and ack.get("type") == "push-ack":  # pyright: ignore[reportUnknownMemberType]
            return int(ack["lastRefTime"])  # pyright: ignore[reportUnknownArgumentType]
    except (ValueError, KeyError, TypeError):
        return None
    return None


class Push(NamedTuple):
    """A pushed change: the service as `group@@name`, and the reference to acknowledge."""

    service: str
    reference: str


def read_push(packet: bytes) -> Push | None:
    """Reads a datagram of `write_push` or of a real server; None for any other packet."""
    try:
        if packet[:2] == b"\x1f\x8b":
            packet = zlib.decompressobj(wbits=31).decompress(packet, MAX_UNPACKED)
        outer = cast("dict[str, Any]", orjson.loads(packet))
        if outer["type"] not in ("dom", "service"):
            return None
        name, reference = orjson.loads(outer["data"])["name"], outer["lastRefTime"]
    except (ValueError, KeyError, TypeError, IndexError, zlib.error):
        return None
    return Push(name, str(reference)) if isinstance(name, str) and isinstance(reference, int | str) else None


def write_ack(reference: str) -> bytes:
    return orjson.dumps({"type": "push-ack", "lastRefTime": reference, "data": ""})

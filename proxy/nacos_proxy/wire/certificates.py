"""When a certificate ends. Nothing else of it is read: OpenSSL checks the rest, but does not tell this of our own."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime, timezone

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags


def valid_until(pem: bytes) -> float | None:
    """The end of the first certificate in a PEM file, in seconds since 1970; None if it cannot be read."""
    found = _CERTIFICATE.search(pem)
    if found is None:
        return None
    try:
        ((_, certificate),) = _elements(b64decode(found[1]))
        (_, to_be_signed), *_ = _elements(certificate)
        fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
        _serial, _algorithm, _issuer, validity, *_ = fields  # RFC 5280 4.1
        _, (tag, text) = _elements(validity)
        digits = text.decode("ascii")
        if tag == _UTC_TIME:  # two digits for the year (RFC 5280 4.1.2.5.1)
            digits = ("19" if digits >= "5" else "20") + digits
        return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, IndexError):
        return None


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element (X.690 8.1)."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length

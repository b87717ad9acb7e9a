"""Finds in a request head, without parsing it, the fields that clients set anew for each request.

SDKs and tracers send an id with each request, so no two of their heads are equal. Without these fields the heads are
equal again, and no response depends on them, except that it repeats the request's own id.

A field is cut out only if the parser would read it as one field: its name ends at the colon, its value has no control
character, and no folded line follows. Any other head stays as it is, and is parsed.
"""

from __future__ import annotations

import re
from typing import Any

from nacos_proxy.request_context import ID_HEADER

# Nacos's SDKs; W3C Trace Context and Baggage; Zipkin; Jaeger; Datadog; AWS; Google; Sentry; SkyWalking; New Relic.
_PER_REQUEST = (
    "requestid|request-id|x-correlation-id|x-trace-id|traceparent|tracestate|baggage|b3|x-b3-[a-z]+|uber-trace-id|"
    "x-datadog-[a-z-]+|x-amzn-trace-id|x-cloud-trace-context|sentry-trace|sw8|newrelic|elastic-apm-traceparent"
)
_VALUE = r"[\t\x20-\x7e\x80-\xff]*"
# A value is one run of characters and ends at the line: two runs of blanks beside each other would cost their square.
_FIELDS = re.compile(
    rf"\r\n(?i:{re.escape(ID_HEADER)}:({_VALUE})|(?:{_PER_REQUEST}):{_VALUE})(?=\r\n[^\t ])".encode("latin-1")
)


def without_ids(head: bytes) -> tuple[bytes, bytes]:
    """The head without the fields that are new in each request, and the last value of `ID_HEADER` (b"": none)."""
    parts: list[Any] = _FIELDS.split(head)  # what is between the fields; the values of `ID_HEADER`, None for the others
    if len(parts) == 1:
        return head, b""
    ids = [id for id in parts[1::2] if id is not None]
    return b"".join(parts[::2]), ids[-1] if ids else b""


def id_field(head: bytes) -> bytes:
    """How the only field begins that `without_ids` cuts out; b"" if there is none, several, or an `ID_HEADER`."""
    found = _FIELDS.search(head)
    if found is None or found[1] is not None or _FIELDS.search(head, found.end()) is not None:
        return b""
    name, colon, value = found[0].partition(b":")
    return name + colon + value[: len(value) - len(value.lstrip(b"\t "))]


def without_field(head: bytes, field: bytes) -> bytes:
    """As `without_ids` for the one field that `id_field` found in an earlier head, at a third of the cost.

    The head itself if it has no such field, or not just letters, digits and `-` in it.
    """
    start = head.find(field)
    end = head.find(b"\r\n", start + 2)
    if start < 0 or end < 0 or head[end + 2 : end + 3] in (b" ", b"\t"):
        return head
    if not head[start + len(field) : end].replace(b"-", b"").isalnum():
        return head
    return head[:start] + head[end:]

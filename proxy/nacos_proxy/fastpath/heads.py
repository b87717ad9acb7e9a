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
_FIELDS = re.compile(
    rf"\r\n(?i:{re.escape(ID_HEADER)}:[\t ]*({_VALUE})|(?:{_PER_REQUEST}):{_VALUE})(?=\r\n[^\t ])".encode("latin-1")
)


def without_ids(head: bytes) -> tuple[bytes, bytes]:
    """The head without the fields that are new in each request, and the last value of `ID_HEADER` (b"": none)."""
    parts: list[Any] = _FIELDS.split(head)  # what is between the fields; the values of `ID_HEADER`, None for the others
    if len(parts) == 1:
        return head, b""
    ids = [id for id in parts[1::2] if id is not None]
    return b"".join(parts[::2]), ids[-1] if ids else b""

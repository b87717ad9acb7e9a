"""Errors of our own API: RFC 9457 problem documents."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from nacos_proxy.model.errors import (
    BadCall,
    Busy,
    Denied,
    Garbled,
    NothingKnown,
    ProxyError,
    Reason,
    Refused,
    TooSlow,
    Unreachable,
    UpstreamError,
)
from nacos_proxy.wire.http import HttpReply, Pairs

PROBLEM_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:nacos-proxy:problem:"


class Kind(NamedTuple):
    """`slug` ends the URI `type`. A type always has the same `title` (RFC 9457 3.1.4)."""

    slug: str
    title: str


KINDS: dict[type[ProxyError], Kind] = {
    ProxyError: Kind("internal", "The proxy failed"),
    BadCall: Kind("bad-call", "The request cannot be carried out as it stands"),
    Denied: Kind("denied", "The request is not allowed"),
    NothingKnown: Kind("nothing-known", "Nothing is known of the service and the upstream cannot be asked"),
    UpstreamError: Kind("upstream-failed", "The upstream failed"),
    Refused: Kind("upstream-refused", "The upstream refused"),
    Unreachable: Kind("upstream-unreachable", "The upstream could not be reached"),
    TooSlow: Kind("upstream-too-slow", "The upstream did not answer in time"),
    Busy: Kind("upstream-busy", "All connections to the upstream were taken for too long"),
    Garbled: Kind("upstream-garbled", "The upstream's answer could not be understood"),
}

# Nacos's dialects give the same refusal different statuses; our API always gives this one.
_REASON_STATUS = {
    Reason.INSTANCE_NOT_FOUND: 404,
    Reason.NO_INSTANCES: 404,
    Reason.SERVICE_NOT_FOUND: 404,
    Reason.CLUSTER_NOT_FOUND: 404,
    Reason.SERVICE_EXISTS: 409,
    Reason.SERVICE_NOT_EMPTY: 409,
    Reason.WRONG_KIND: 409,
    Reason.CHECKER_AT_WORK: 409,
}


def kind_of(error: type[ProxyError]) -> Kind:
    """The kind of an error's class, or of its nearest base class."""
    return next(KINDS[base] for base in error.__mro__ if base in KINDS)


def status_of(error: ProxyError) -> int:
    """The status to answer with, always from 400 to 599, whatever status an upstream's refusal had."""
    status = _REASON_STATUS.get(error.reason, error.status) if isinstance(error, Refused) else error.status
    return status if 400 <= status <= 599 else 502


def problem(error: ProxyError, path: str) -> HttpReply:
    """The answer to any `ProxyError`. `path` is that of the request."""
    kind, status = kind_of(type(error)), status_of(error)
    document = _document(kind, status, str(error), path)
    if isinstance(error, BadCall) and error.parameter:
        document["parameter"] = error.parameter
    if isinstance(error, Refused):
        document["reason"] = error.reason.value
        document["upstreamStatus"] = error.status
    if isinstance(error, UpstreamError) and not isinstance(error, Refused):
        document["arrived"] = error.arrived
    return document_reply(document, _headers(error, status))


def _document(kind: Kind, status: int, detail: str, path: str) -> dict[str, Any]:
    type_ = TYPE_PREFIX + kind.slug
    return {"type": type_, "title": kind.title, "status": status, "detail": detail, "instance": path}


def _headers(error: ProxyError, status: int) -> Pairs:
    if isinstance(error, NothingKnown):
        return (("retry-after", "1"),)
    return (("www-authenticate", "Bearer"),) if isinstance(error, Denied) and status == 401 else ()


def nothing_to_pick(reason: str, path: str) -> HttpReply:
    """The answer if there is no instance to choose; `reason` says what is missing."""
    return document_reply(_document(Kind("nothing-to-pick", "There is no instance to choose"), 503, reason, path))


def plain_problem(status: int, detail: str, path: str, headers: Pairs = ()) -> HttpReply:
    """A problem without a type of its own (RFC 9457 4.2.1): unknown path, method not allowed, our own fault."""
    title = HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": path}
    return document_reply(document, headers)


def document_reply(document: dict[str, Any], headers: Pairs = ()) -> HttpReply:
    # The text of an upstream may contain lone surrogates, on which orjson would fail.
    safe = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in document.items()}
    body = orjson.dumps(safe)
    return HttpReply(document["status"], PROBLEM_TYPE, body, (("cache-control", "no-store"), *headers))

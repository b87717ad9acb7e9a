"""Every error has a problem document."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

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
    Violation,
)
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.rest.problem import KINDS, nothing_to_pick, plain_problem, problem

SAMPLES: list[tuple[ProxyError, int]] = [
    (ProxyError("?"), 500),
    (BadCall("port", Violation.ILLEGAL, "bad"), 400),
    (BadCall("", Violation.BODY, "large", status=413), 413),
    (Denied("no token", status=401), 401),
    (Denied("no right"), 403),
    (NothingKnown("nothing"), 503),
    (UpstreamError("?"), 502),
    (Refused(Reason.OTHER, "no", status=410), 410),
    (Refused(Reason.OTHER, "no", status=200), 502),
    (Refused(Reason.SERVICE_NOT_FOUND, "no", status=400), 404),
    (Refused(Reason.WRONG_KIND, "no", status=400), 409),
    (Unreachable("gone", arrived=True), 502),
    (TooSlow("slow"), 504),
    (Busy("no room"), 503),
    (Garbled("what?"), 502),
]


def kinds(root: type[ProxyError]) -> Iterator[type[ProxyError]]:
    yield root
    for child in (c for c in root.__subclasses__() if c.__module__ == "nacos_proxy.model.errors"):
        yield from kinds(child)


def body(reply: HttpReply) -> dict[str, object]:
    assert reply.content_type == "application/problem+json"
    document = orjson.loads(reply.body)
    assert document["status"] == reply.status
    return document


def test_kinds_has_a_row_for_every_error() -> None:
    assert set(kinds(ProxyError)) == set(KINDS)
    assert {type(error) for error, _ in SAMPLES} == set(KINDS)
    assert len({kind.slug for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(("error", "status"), SAMPLES, ids=lambda value: repr(value)[:40])
def test_problem_names_the_error_and_the_path(error: ProxyError, status: int) -> None:
    document = body(problem(error, "/api/v1/services/a"))
    assert document["status"] == status
    assert document["type"] == f"urn:nacos-proxy:problem:{KINDS[type(error)].slug}"
    assert (document["detail"], document["instance"]) == (str(error), "/api/v1/services/a")
    assert document["title"]


def test_problem_shows_the_fields_of_each_error() -> None:
    assert body(problem(SAMPLES[1][0], "/"))["parameter"] == "port"
    assert "parameter" not in body(problem(SAMPLES[2][0], "/"))
    refused = body(problem(Refused(Reason.WRONG_KIND, "no", status=400), "/"))
    assert (refused["reason"], refused["upstreamStatus"]) == ("ephemeral or persistent as a whole", 400)
    assert body(problem(Unreachable("gone", arrived=True), "/"))["arrived"] is True


def test_problem_for_a_missing_token_names_the_scheme() -> None:
    assert ("www-authenticate", "Bearer") in problem(Denied("no token", status=401), "/").headers
    assert problem(Denied("no right"), "/").headers == (("cache-control", "no-store"),)


def test_problem_accepts_text_that_is_not_unicode() -> None:
    assert body(problem(Garbled("half \ud800 a pair"), "/\udcff"))["detail"] == "half ? a pair"


def test_plain_problem_has_no_type_of_its_own() -> None:
    document = body(plain_problem(404, "nothing here", "/x"))
    assert (document["type"], document["title"]) == ("about:blank", "Not Found")
    assert body(nothing_to_pick("none is healthy", "/x"))["detail"] == "none is healthy"

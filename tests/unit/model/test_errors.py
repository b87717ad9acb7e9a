"""One tree of errors, drawn as it is; and an answer for each of them to whoever asked, in his own dialect."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model import errors as module
from nacos_proxy.model.errors import (
    BadCall,
    Busy,
    Denied,
    Garbled,
    Malformed,
    NothingKnown,
    ProxyError,
    Reason,
    Refused,
    TooSlow,
    Unreachable,
    UpstreamError,
    Violation,
    counts_for_upstream,
    is_unknown_token,
)
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from nacos_proxy.wire.rest.problem import PROBLEM_TYPE, problem

TEXT = "something <went> wrong"
SAMPLES: dict[type[ProxyError], list[ProxyError]] = {
    ProxyError: [ProxyError(TEXT)],
    BadCall: [BadCall(parameter, kind, TEXT, value="x") for kind in Violation for parameter in ("ip", "")],
    Denied: [Denied(TEXT), Denied(TEXT, status=401)],
    NothingKnown: [NothingKnown(TEXT)],
    UpstreamError: [UpstreamError(TEXT)],
    Refused: [
        Refused(reason, TEXT, status=status, dialect=dialect)
        for reason in Reason
        for status in (200, 400, 403, 404, 500)
        for dialect in ("", "v1", "v2", "v3")
    ],
    Unreachable: [Unreachable(TEXT, arrived=False), Unreachable(TEXT, arrived=True)],
    TooSlow: [TooSlow(TEXT)],
    Busy: [Busy(TEXT)],
    Garbled: [Garbled(TEXT)],
}
PATHS = {
    "v1": ["/v1/ns/instance", "/v1/ns/instance/list", "/v1/ns/instance/beat", "/v1/ns/catalog/service", "/v1/ns/none"],
    "v2": ["/v2/ns/instance", "/v2/ns/instance/list", "/v2/ns/service", "/v2/ns/none"],
    "v3": ["/v3/client/ns/instance", "/v3/client/ns/instance/list", "/v3/admin/ns/service", "/v3/none"],
}
Write = Callable[[ProxyError], HttpReply]
WRITERS: dict[str, Write] = {
    f"{dialect.name} {method} {path}": lambda error, d=dialect, m=method, p=path: d.write_error(  # type: ignore[misc]
        HttpRequest(m, p), error, 1_795_519_064_000
    )
    for dialect in (V1, V2, V3)
    for path in PATHS[dialect.name]
    for method in ("GET", "POST")
} | {"our own": lambda error: problem(error, "/api/v1/services")}


def tree(root: type[ProxyError] = ProxyError, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The errors of `errors.py`. One that a part derives for itself is answered as the one that it is made of."""
    yield root.__name__, depth
    for kind in root.__subclasses__():
        if kind.__module__ == module.__name__:
            yield from tree(kind, depth + 1)


# the tree


def test_errors_docstring_shows_the_class_tree() -> None:
    drawn = re.findall(r"^    ([ │├└─]*)(\w+)", module.__doc__ or "", re.MULTILINE)
    assert [(name, len(branch) // 3) for branch, name in drawn] == list(tree())


def test_errors_docstring_shows_the_status_of_every_error() -> None:
    drawn = dict(re.findall(r"[├└]─ (\w+) .*?(\d{3})(?:, \d{3})?$", module.__doc__ or "", re.MULTILINE))
    statuses = {name: str(SAMPLES[getattr(module, name)][0].status) for name in drawn}
    statuses["Denied"] = str(Denied(TEXT, status=401).status)
    assert drawn == statuses
    assert set(drawn) == {name for name, _ in tree()} - {"ProxyError", "UpstreamError", "Refused"}


@pytest.mark.parametrize(
    ("error", "arrived"),
    [
        (Refused(Reason.OTHER, TEXT), False),
        (Unreachable(TEXT, arrived=False), False),
        (Unreachable(TEXT, arrived=True), True),
        (TooSlow(TEXT), True),
        (Busy(TEXT), False),
        (Garbled(TEXT), True),
    ],
    ids=repr,
)
def test_every_upstream_error_has_arrived(error: ProxyError, arrived: bool) -> None:
    """What says no is taken to have arrived by nobody: else it would be sent a second time."""
    assert isinstance(error, UpstreamError)
    assert error.arrived is arrived


def test_malformed_is_not_a_proxy_error() -> None:
    """It has no status: the role that called the decoder knows whose fault it is."""
    assert not issubclass(Malformed, ProxyError)


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_str_of_an_error_is_its_message(kind: type[ProxyError]) -> None:
    assert {str(error) for error in SAMPLES[kind]} == {TEXT}


# an answer for each


def test_there_is_a_sample_of_every_error() -> None:
    assert sorted(kind.__name__ for kind in SAMPLES) == sorted(name for name, _ in tree())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_write_error_answers_every_error_with_a_failure(kind: type[ProxyError], writer: str) -> None:
    for error in SAMPLES[kind]:
        reply = WRITERS[writer](error)
        raw = isinstance(error, Refused) and error.dialect == writer[:2]
        assert 400 <= reply.status <= 599 or (raw and reply.status == error.status), error
        assert raw or reply.body, error


@pytest.mark.parametrize("dialect", ["v1", "v2", "v3"])
def test_refused_is_written_unchanged_in_its_own_dialect(dialect: str) -> None:
    body = b'{"code":1,"message":"m","data":"d"}'
    error = Refused(Reason.OTHER, "d", status=418, dialect=dialect, content_type="application/json", body=body)
    for name, write in WRITERS.items():
        reply = write(error)
        same = (reply.status, reply.content_type, reply.body) == (418, "application/json", body)
        assert same is name.startswith(dialect), name


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_problem_writes_every_error_as_a_problem_document(kind: type[ProxyError]) -> None:
    for error in SAMPLES[kind]:
        reply = problem(error, "/api/v1/services")
        assert reply.content_type == PROBLEM_TYPE
        assert TEXT.encode() in reply.body


@given(st.text(st.characters(), max_size=30), st.sampled_from(list(Violation)), st.sampled_from(list(Reason)))
def test_write_error_accepts_any_text(text: str, kind: Violation, reason: Reason) -> None:
    """Texts of callers and of upstreams get into it, lone surrogates and control characters too."""
    for error in (BadCall(text, kind, text, value=text), Refused(reason, text), Garbled(text), Denied(text)):
        for write in WRITERS.values():
            reply = write(error)
            assert "\r" not in (reply.content_type or "") and isinstance(reply.body, bytes)


def test_counts_for_upstream_ignores_an_unreadable_list_and_counts_a_missing_answer() -> None:
    assert not counts_for_upstream(Garbled(TEXT, answered=True), fetching=True)
    assert counts_for_upstream(Garbled(TEXT), fetching=True)  # no HTTP, or a page of something in between
    assert counts_for_upstream(Garbled(TEXT, answered=True), fetching=False)
    assert counts_for_upstream(None, fetching=True) and counts_for_upstream(None, fetching=False)
    for status in (500, 501):
        assert counts_for_upstream(Refused(Reason.OTHER, TEXT, status=status), fetching=True)
        assert not counts_for_upstream(Refused(Reason.OTHER, TEXT, status=status), fetching=False)


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (Refused(Reason.NO_RIGHT, "token invalid!", status=403), True),
        (Refused(Reason.NO_RIGHT, "token expired!", status=403), True),
        (Refused(Reason.NO_RIGHT, "Code: 401, Message: User not found! Please check user exist.", status=403), True),
        (Refused(Reason.NO_RIGHT, "in the words of somebody else", status=401), True),
        (Refused(Reason.NO_RIGHT, "authorization failed!", status=403), False),
        (Refused(Reason.NO_RIGHT, "Code: 403, Message: authorization failed!.", status=403), False),
        (Refused(Reason.NO_RIGHT, "resource name invalid!", status=403), False),
        (Refused(Reason.OTHER, "token invalid!", status=400), False),
        (Unreachable("token invalid!", arrived=False), False),
        (None, False),
    ],
)
def test_is_unknown_token_differs_from_a_missing_right(error: ProxyError | None, unknown: bool) -> None:
    assert is_unknown_token(error) is unknown

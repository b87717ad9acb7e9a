"""Errors over gRPC: the class, the codes and the words."""

from __future__ import annotations

import json
from typing import Any

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
    Violation,
    is_unavailable,
    is_unknown_token,
)
from nacos_proxy.wire.nacos.grpc.refusals import (
    NoHandler,
    NotReadable,
    NotRegistered,
    read_failure,
    write_failure,
)
from tests.helpers.grpc_recordings import FILES, exchanges

OWN = "InstanceResponse"
ERROR = "ErrorResponse"


@pytest.mark.parametrize(
    ("error", "kind", "result", "code"),
    [
        (NoHandler(), ERROR, 500, 302),
        (NoHandler(" invoke X from sdk is forbidden", 502), ERROR, 500, 502),
        (NotReadable(), ERROR, 500, 502),
        (NotRegistered(), ERROR, 500, 301),
        (BadCall("port", Violation.ILLEGAL, "x"), OWN, 500, 400),
        (BadCall("type", Violation.INSTANCE, "x"), ERROR, 400, 400),
        (BadCall("serviceName", Violation.MISSING, "x"), ERROR, 500, 500),
        (BadCall("ip", Violation.MISSING, "x"), OWN, 500, 400),
        (BadCall("weight", Violation.WEIGHT, "x"), OWN, 500, 400),
        (Denied("x", status=401), OWN, 500, 403),
        (Denied("x"), OWN, 500, 403),
        (Refused(Reason.NO_RIGHT, "x", status=403), OWN, 500, 403),
        (Refused(Reason.WRONG_KIND, "x"), ERROR, 400, 400),
        (Refused(Reason.OTHER, "x", status=400), OWN, 500, 400),
        (Refused(Reason.OTHER, "x", status=503), OWN, 500, 500),
        (NothingKnown("x"), OWN, 500, 500),
        (Unreachable("x", arrived=False), OWN, 500, 500),
        (TooSlow("x"), OWN, 500, 500),
        (Busy("x"), OWN, 500, 500),
        (Garbled("x"), OWN, 500, 500),
    ],
)
def test_write_failure_chooses_class_and_codes(error: ProxyError, kind: str, result: int, code: int) -> None:
    answer = write_failure(OWN, error)
    body = json.loads(answer.body)
    assert (answer.type, body["resultCode"], body["errorCode"], body["success"]) == (kind, result, code, False)
    assert body["message"]


def all_errors(root: type[ProxyError] = ProxyError) -> list[type[ProxyError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in all_errors(child))]


@pytest.mark.parametrize(
    "kind", sorted({k for k in all_errors() if k.__module__ == "nacos_proxy.model.errors"}, key=str)
)
def test_write_failure_answers_every_error(kind: type[ProxyError]) -> None:
    arguments: dict[type[ProxyError], tuple[Any, ...]] = {
        BadCall: ("port", Violation.ILLEGAL, "x"),
        Refused: (Reason.OTHER, "x"),
    }
    error = Unreachable("x", arrived=True) if kind is Unreachable else kind(*arguments.get(kind, ("x",)))
    assert json.loads(write_failure(OWN, error).body)["success"] is False


def test_write_failure_of_a_wrong_kind_has_the_words_of_nacos_once() -> None:
    text = "Current service G@@N is persistent service, can't register ephemeral instance."
    for given in (text, f"errCode: 400, errMsg: {text} "):
        message = json.loads(write_failure(OWN, Refused(Reason.WRONG_KIND, given)).body)["message"]
        assert message == f"errCode: 400, errMsg: {text} "


def test_write_failure_writes_text_that_is_no_unicode() -> None:
    assert write_failure(OWN, Denied("\ud800")).body


@pytest.mark.parametrize("file", FILES)
def test_read_failure_knows_every_recorded_success_and_error(file: str) -> None:
    for exchange in exchanges(file):
        body = exchange.answer.body
        error = read_failure(body)
        if body["resultCode"] == 0:  # r-nacos, for an empty batch; we send none
            continue
        assert (error is None) == (body["resultCode"] == 200)
        if error is not None and body["errorCode"] not in (301,):
            assert error.text


def answer(result: int, code: int | None = None, message: str | None = "m", **fields: Any) -> Refused:
    found = read_failure({"resultCode": result, "errorCode": code, "message": message, **fields})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("result", "code", "reason", "status"),
    [
        (500, 403, Reason.NO_RIGHT, 403),
        (403, 403, Reason.NO_RIGHT, 403),
        (403, 0, Reason.NO_RIGHT, 403),
        (500, 302, Reason.GONE, 501),
        (500, 300, Reason.OTHER, 503),
        (500, 400, Reason.OTHER, 400),
        (500, 500, Reason.OTHER, 500),
        (500, 99, Reason.OTHER, 500),
        (0, None, Reason.OTHER, 500),
    ],
)
def test_read_failure_gives_reason_and_status(result: int, code: int | None, reason: Reason, status: int) -> None:
    found = answer(result, code)
    assert (found.reason, found.status) == (reason, status)


def test_read_failure_of_a_success_that_is_none() -> None:
    assert answer(200, 0, success=False).text == "m"
    assert answer(500, 500, None).text == "the server answered 500"
    assert isinstance(answer(500, 301), NotRegistered)


def test_read_failure_tells_a_starting_server_from_a_refusal() -> None:
    assert is_unavailable(answer(500, 300))
    assert not is_unavailable(answer(500, 403))
    assert not is_unavailable(answer(500, 301))


def test_read_failure_tells_an_unknown_token_from_a_missing_right() -> None:
    assert is_unknown_token(answer(500, 403, "token expired!"))
    assert not is_unknown_token(answer(500, 403, "authorization failed!"))


def test_read_failure_unwraps_the_text() -> None:
    text = "Current service G@@N is persistent service, can't register ephemeral instance."
    found = answer(400, 400, f"errCode: 400, errMsg: {text} ")
    assert (found.text, found.reason) == (text, Reason.WRONG_KIND)

"""What a no means, and that every error of ours has an answer in every dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import Dialect
from nacos_proxy.wire.nacos.refusals import read_refusal
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers.pair import TEXT
from tests.helpers.recordings import load

DIALECTS = [V1, V2, V3]
PATHS = {
    "v1": "/v1/ns/instance",
    "v2": "/v2/ns/instance",
    "v3": "/v3/admin/ns/instance",
}
ERRORS: list[ProxyError] = [
    ProxyError("something"),
    BadCall("ip", Violation.MISSING, "Param 'ip' is required."),
    Denied("no token"),
    NothingKnown("nothing is known"),
    UpstreamError("the other side"),
    Refused(Reason.OTHER, "no"),
    Unreachable("no connection", arrived=False),
    TooSlow("no answer in time"),
    Busy("no connection became free in time"),
    Garbled("no HTTP"),
]


def kinds(root: type[ProxyError]) -> Iterator[type[ProxyError]]:
    yield root
    for kind in (k for k in root.__subclasses__() if k.__module__ == "nacos_proxy.model.errors"):
        yield from kinds(kind)


def request(dialect: Dialect, method: str = "PUT", rest: str = "") -> HttpRequest:
    return HttpRequest(method, PATHS[dialect.name] + rest)


def write(dialect: Dialect, error: ProxyError, rest: str = "") -> HttpReply:
    return dialect.write_error(request(dialect, rest=rest), error, 0)


def code(reply: HttpReply) -> Any:
    return json.loads(reply.body).get("code")


# reading


@pytest.mark.parametrize(
    ("status", "body", "reason", "text"),
    [
        (404, "no matched ip found!", Reason.INSTANCE_NOT_FOUND, None),
        (400, "instance not found", Reason.INSTANCE_NOT_FOUND, None),
        (400, "instance not exist: 10.0.0.1:80:unknown:c_1.0_true_true_c", Reason.INSTANCE_NOT_FOUND, None),
        (404, "no ips found for cluster DEFAULT in service g@@s", Reason.NO_INSTANCES, None),
        (404, "cluster zz is not found!", Reason.CLUSTER_NOT_FOUND, None),
        (404, "service g@@s is not found!", Reason.SERVICE_NOT_FOUND, None),
        (404, "no service g@@s found!", Reason.SERVICE_NOT_FOUND, None),
        (400, "service g@@s not found!", Reason.SERVICE_NOT_FOUND, None),
        (400, "specified service not exist, serviceName : g@@s", Reason.SERVICE_NOT_FOUND, None),
        (400, "specified service already exists, serviceName : g@@s", Reason.SERVICE_EXISTS, None),
        (500, "The service has instances,it can't remove!", Reason.SERVICE_NOT_EMPTY, None),
        (500, "caused: service not found: g@@s@public;", Reason.SERVICE_NOT_FOUND, "service not found: g@@s@public"),
        (400, "errCode: 400, errMsg: Odd. ", Reason.OTHER, "Odd."),
        (
            400,
            '{"code":20004,"message":"resource not found","data":null}',
            Reason.INSTANCE_NOT_FOUND,
            "resource not found",
        ),
        (400, '{"code":21011,"message":"m","data":"d"}', Reason.CHECKER_AT_WORK, "d"),
        (
            200,
            '{"code":21003,"message":"instance not found","data":null}',
            Reason.INSTANCE_NOT_FOUND,
            "instance not found",
        ),
        (200, '{"code":40001,"message":"API function disabled","data":null}', Reason.GONE, "API function disabled"),
        (404, "", Reason.GONE, "Fetch: 404 Not Found"),
        (404, "404 page not found", Reason.GONE, None),
        (405, "", Reason.GONE, "Fetch: 405 Method Not Allowed"),
        (501, "no such api", Reason.GONE, None),
        (401, "who are you", Reason.NO_RIGHT, None),
        (503, "server is DOWNnow, please try again later!", Reason.OTHER, None),
        (500, "{odd", Reason.OTHER, None),
        (500, "[1]", Reason.OTHER, None),
        (500, '{"code":"x"}', Reason.OTHER, '{"code":"x"}'),
    ],
)
def test_read_refusal_finds_the_reason_of_every_server(
    status: int, body: str, reason: Reason, text: str | None
) -> None:
    refused = read_refusal("v1", HttpReply(status, None, body.encode()), "Fetch")
    absent = status == 500 and reason is Reason.SERVICE_NOT_FOUND
    said = (reason, body if text is None else text, 404 if absent else status)
    assert (refused.reason, refused.text, refused.status) == said


@pytest.mark.parametrize("name", ["nacos-3.0.3", "v3-only"])
def test_read_refusal_of_a_disabled_api_is_gone_and_names_the_other(name: str) -> None:
    rows = [row for row in load(name) if row.status == 410]
    assert len(rows) > 5
    for row in rows:
        refused = read_refusal("v1", row.reply, "x")
        assert refused.reason is Reason.GONE
        assert refused.text.startswith("Current API will be deprecated, ")


def test_read_refusal_of_a_missing_right_has_the_message_without_its_wrapping() -> None:
    texts = {
        (row.server, read_refusal("v1", row.reply, "x").text)
        for row in load("auth")
        if row.status == 403 and "/auth/" not in row.path
    }
    assert texts == {
        ("nacos-2.5.1", "user not found!"),
        ("nacos-2.5.1", "token invalid!"),
        ("nacos-3.0.3", "User not found! Please check user exist or password is right!"),
        ("nacos-3.0.3", "token invalid!"),
    }


def test_read_refusal_cuts_a_whole_page() -> None:
    refused = read_refusal("v1", HttpReply(502, "text/html", b"<p>" * 10_000), "x")
    assert len(refused.text) == 2000 and len(refused.body) == 30_000


@given(st.integers(100, 999), st.binary(max_size=60) | TEXT.map(str.encode))
def test_read_refusal_accepts_any_reply(status: int, body: bytes) -> None:
    refused = read_refusal("v2", HttpReply(status, None, body), "x")
    assert refused.text and isinstance(refused.reason, Reason)


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (400, "receive invalid redirect request from peer 10.0.0.2", Reason.NO_PEER),
        (500, "Server failed, caused: java.net.SocketTimeoutException: Read timed out;", Reason.NO_PEER),
        (500, "caused: java.net.ConnectException: Connection refused (Connection refused);", Reason.NO_PEER),
        (500, "caused: connection refused: /10.0.0.2:8848;", Reason.NO_PEER),
        (404, "connection refused", Reason.GONE),
        (503, "upstream connect error: connection refused", Reason.OTHER),  # a gateway: of the node itself
        (400, "Param 'serviceName' is illegal", Reason.OTHER),
        (500, "caused: null;", Reason.OTHER),
    ],
)
def test_read_refusal_finds_no_peer(status: int, text: str, reason: Reason) -> None:
    page = json.dumps({"status": status, "error": "x", "message": text}).encode()
    for body in (text.encode(), page):
        assert read_refusal("v1", HttpReply(status, None, body), "x").reason is reason


# writing


def test_errors_here_are_the_whole_class_tree() -> None:
    assert {type(error) for error in ERRORS} == set(kinds(ProxyError))


@pytest.mark.parametrize("dialect", DIALECTS, ids=repr)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_write_error_answers_every_error_in_every_dialect(dialect: Dialect, error: ProxyError) -> None:
    reply = write(dialect, error)
    assert 400 <= reply.status <= 599
    assert str(error).encode() in reply.body


@pytest.mark.parametrize("dialect", DIALECTS, ids=repr)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NothingKnown("x"), 503),
        (Unreachable("x", arrived=True), 502),
        (Garbled("x"), 502),
        (TooSlow("x"), 504),
        (Denied("x"), 403),
        (Denied("x", status=401), 403),
        (BadCall("", Violation.BODY, "too long", status=413), 413),
    ],
    ids=repr,
)
def test_write_error_has_the_status_of_the_error(dialect: Dialect, error: ProxyError, status: int) -> None:
    assert write(dialect, error).status == status


@pytest.mark.parametrize("dialect", DIALECTS, ids=repr)
def test_write_error_passes_a_refusal_of_the_same_dialect_on_unchanged(dialect: Dialect) -> None:
    refused = Refused(
        Reason.OTHER, "x", status=418, dialect=dialect.name, content_type="text/odd", body=b"as it came \xff"
    )
    assert write(dialect, refused) == HttpReply(418, "text/odd", b"as it came \xff")


@pytest.mark.parametrize(
    ("reason", "v1", "v2"),
    [
        (Reason.INSTANCE_NOT_FOUND, 404, (404, 20004)),
        (Reason.NO_INSTANCES, 404, (404, 20004)),
        (Reason.SERVICE_NOT_FOUND, 400, (400, 21004)),
        (Reason.SERVICE_EXISTS, 400, (400, 21007)),
        (Reason.SERVICE_NOT_EMPTY, 400, (400, 21009)),
        (Reason.WRONG_KIND, 400, (400, 30000)),
        (Reason.CHECKER_AT_WORK, 400, (400, 30000)),
        (Reason.CLUSTER_NOT_FOUND, 404, (404, 30000)),
        (Reason.NO_RIGHT, 403, (403, None)),
        (Reason.GONE, 410, (410, None)),
        (Reason.NO_PEER, 500, (500, 30000)),
        (Reason.OTHER, 500, (500, 30000)),
    ],
)
def test_write_error_rewrites_a_refusal_of_another_dialect(reason: Reason, v1: int, v2: tuple[int, int | None]) -> None:
    refused = Refused(reason, "why", status=200, dialect="elsewhere", body=b"not this")
    assert write(V1, refused).status == v1
    for dialect in (V2, V3):
        reply = write(dialect, refused)
        assert (reply.status, code(reply)) == v2
        assert b"why" in reply.body and b"not this" not in reply.body


@pytest.mark.parametrize(
    "text", ["no matched ip found!", "no service g@@s found!", "no ips found for cluster c1 in service s"]
)
def test_read_refusal_turns_a_500_for_something_unknown_into_404(text: str) -> None:
    """1.4.8 says so, and clients then look for another server."""
    refused = read_refusal("v1", HttpReply(500, "text/plain", f"caused: {text};".encode()), "GET /x")
    assert (refused.status, refused.dialect, refused.text) == (404, "", text)
    assert write(V1, refused).status in (400, 404)


def test_the_table_of_reasons_is_complete() -> None:
    mark = next(m for m in test_write_error_rewrites_a_refusal_of_another_dialect.pytestmark)  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(Reason)


@pytest.mark.parametrize(
    ("violation", "v1", "v2"),
    [
        (Violation.MISSING, 400, (400, 10000)),
        (Violation.ILLEGAL, 400, (400, "P")),
        (Violation.NOT_A_NUMBER, 400, (500, 30000)),
        (Violation.NOT_A_BOOLEAN, 400, (500, 30000)),
        (Violation.WEIGHT, 400, (400, 21001)),
        (Violation.METADATA, 500, (500, None)),
        (Violation.INSTANCE, 400, (400, 21004)),
        (Violation.GROUPED_NAME, 400, (400, 20002)),
        (Violation.EMPTY_GROUP, 400, (400, 20002)),
        (Violation.SELECTOR, 400, (400, 21006)),
        (Violation.SWITCH, 400, (500, 30000)),
        (Violation.BODY, 500, (500, None)),
        (Violation.OTHER, 400, (400, 20002)),
    ],
)
def test_write_error_has_the_status_and_code_of_every_violation(
    violation: Violation, v1: int, v2: tuple[int, int | str | None]
) -> None:
    error = BadCall("beat", violation, "why")
    assert write(V1, error).status == v1
    for dialect in (V2, V3):
        reply = write(dialect, error)
        assert b"why" in reply.body
        assert (reply.status, "P" if reply.content_type is None else code(reply)) == v2


def test_the_table_of_violations_is_complete() -> None:
    mark = next(m for m in test_write_error_has_the_status_and_code_of_every_violation.pytestmark)  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(Violation)


def test_write_error_of_an_unknown_service_has_a_code_by_path() -> None:
    unknown = Refused(Reason.SERVICE_NOT_FOUND, "service g@@s not found!")
    assert code(V2.write_error(HttpRequest("PUT", "/v2/ns/service"), unknown, 0)) == 21008
    on_list = V3.write_error(HttpRequest("GET", "/v3/admin/ns/instance/list"), unknown, 0)
    assert (on_list.status, code(on_list)) == (404, 30000)
    assert V1.write_error(HttpRequest("GET", "/v1/ns/catalog/instances"), unknown, 0).status == 404


def test_write_error_wraps_a_wrong_kind_once() -> None:
    said = "Current service g@@s is persistent service, can't register ephemeral instance."
    for text in (said, f"errCode: 400, errMsg: {said} "):
        assert write(V1, Refused(Reason.WRONG_KIND, text)).body.decode() == f"errCode: 400, errMsg: {said} "


def test_v3_write_error_tells_an_unknown_token_from_a_missing_right() -> None:
    def message(error: ProxyError) -> str:
        return json.loads(write(V3, error).body)["message"]

    assert message(Refused(Reason.NO_RIGHT, "token invalid!")) == "Code: 401, Message: token invalid!."
    assert message(Refused(Reason.NO_RIGHT, "authorization failed!")) == "Code: 403, Message: authorization failed!."
    assert message(Denied("no {token}", status=401)) == "Code: 401, Message: no {token}."


@pytest.mark.parametrize("dialect", DIALECTS, ids=repr)
@given(st.sampled_from(Reason), TEXT, st.integers(-5, 2000), st.sampled_from(["", "/list", "/beat"]))
def test_write_error_never_fails(dialect: Dialect, reason: Reason, text: str, status: int, rest: str) -> None:
    reply = write(dialect, Refused(reason, text, status=status), rest)
    assert 400 <= reply.status <= 599

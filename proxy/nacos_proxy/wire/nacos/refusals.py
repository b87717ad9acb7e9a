"""Errors in the Nacos dialects: reads the refusals of servers, and writes our errors.

`read_refusal` finds the reason in status, code and text of any server version (nacos-http.md 1.4, 1.5, 9). A client
that speaks the dialect of the upstream's refusal gets the same status, content type and body.
"""

from __future__ import annotations

import re
from typing import Any, cast

from nacos_proxy.model.errors import (
    ABSENT,
    BadCall,
    Denied,
    Malformed,
    ProxyError,
    Reason,
    Refused,
    Violation,
    is_unknown_token,
)
from nacos_proxy.wire.http import TEXT_TYPE, HttpReply, HttpRequest
from nacos_proxy.wire.nacos.shapes import as_text, check_line, error_page, failure, phrase, read_json

_REASON_TEXTS: tuple[tuple[re.Pattern[str], Reason], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"no matched ip found|instance not (?:exist|found)", Reason.INSTANCE_NOT_FOUND),
        (r"no ips found", Reason.NO_INSTANCES),
        (r"cluster \S+ is not found", Reason.CLUSTER_NOT_FOUND),
        (r"already exists", Reason.SERVICE_EXISTS),
        (r"is not empty, can't be delete|the service has instances", Reason.SERVICE_NOT_EMPTY),
        (r"is (?:persistent|ephemeral) service, can't register", Reason.WRONG_KIND),
        (r"health check is still working", Reason.CHECKER_AT_WORK),
        (r"service not (?:found|exist)|service \S+ (?:is )?not found|no service \S+ found", Reason.SERVICE_NOT_FOUND),
    )
)
# A node of a cluster answers this if it forwards the call to a node that is down or has just started (nacos-http.md,
# fact 19).
_NO_PEER = re.compile(
    r"receive invalid redirect request from peer|connection (?:refused|reset)|connect(?:ion)? timed out|read timed out"
    r"|SocketTimeoutException|ConnectException|NoRouteToHostException",
    re.IGNORECASE,
)
_REASON_CODES = {
    10001: Reason.NO_RIGHT,
    20004: Reason.INSTANCE_NOT_FOUND,
    20404: Reason.INSTANCE_NOT_FOUND,
    21003: Reason.INSTANCE_NOT_FOUND,
    21007: Reason.SERVICE_EXISTS,
    21008: Reason.SERVICE_NOT_FOUND,
    21009: Reason.SERVICE_NOT_EMPTY,
    21011: Reason.CHECKER_AT_WORK,
}
_WRAPPED = re.compile(
    r"errCode: ?\d+, errMsg: ?(?P<error>.*?)\s*|Code: \d+, Message: (?P<code>.*)\.|caused: (?P<cause>[^;]*);", re.DOTALL
)
_MAX_TEXT = 2000  # characters of a message: some answers are whole error pages of a gateway


def read_refusal(dialect: str, reply: HttpReply, asked: str) -> Refused:
    """Reads a server's refusal. If it has no message, the text has `asked`, the name of the call.

    Two kinds of refusals are not passed on, but written anew in the client's dialect: one without a body, and the 500
    of 1.4.8 for something that does not exist, which clients would take for a failing server.
    """
    code, text = _code_and_text(reply.body)
    text = _unwrap(text) or f"{asked}: {reply.status} {phrase(reply.status)}"
    reason = _reason(reply.status, code, text)
    misleading = reply.status == 500 and reason in ABSENT
    return Refused(
        reason,
        text,
        status=404 if misleading else reply.status,
        dialect="" if misleading or not reply.body else dialect,
        content_type=reply.content_type,
        body=reply.body,
    )


def _reason(status: int, code: int, text: str) -> Reason:
    if status in (401, 403):
        return Reason.NO_RIGHT
    if status in (405, 410, 501) or code in (40000, 40001):
        return Reason.GONE
    if status in (400, 500) and _NO_PEER.search(text):
        return Reason.NO_PEER
    for pattern, reason in _REASON_TEXTS:
        if pattern.search(text):
            return reason
    return _REASON_CODES.get(code, Reason.GONE if status == 404 else Reason.OTHER)


def _code_and_text(body: bytes) -> tuple[int, str]:
    """Code (0: none) and message of an error page, a result, plain text, or JSON inside of one of these."""
    if body[:1] == b"{":
        try:
            answer: dict[str, Any] = read_json(body)
        except Malformed:
            answer = {}
        code, data, message = answer.get("code"), answer.get("data"), answer.get("message")
        text = data if isinstance(data, str) and data else message
        if isinstance(text, str) and text[:1] == "{":
            inner, text = _code_and_text(text.encode("utf-8", "replace"))
            return inner or _int(code), text
        if isinstance(text, str):
            return _int(code), text[:_MAX_TEXT]
    return 0, body[: 4 * _MAX_TEXT].decode("utf-8", "replace").strip()[:_MAX_TEXT]


def _int(code: Any) -> int:
    return code if type(code) is int else 0


def _unwrap(text: str) -> str:
    found = _WRAPPED.fullmatch(text)
    return next((cast(str, part) for part in found.groups() if part is not None), text) if found else text


_STATUS_AND_CODE = {
    Reason.INSTANCE_NOT_FOUND: (404, 20004),
    Reason.NO_INSTANCES: (404, 20004),
    Reason.CLUSTER_NOT_FOUND: (404, 30000),
    Reason.SERVICE_NOT_FOUND: (400, 21008),
    Reason.SERVICE_EXISTS: (400, 21007),
    Reason.SERVICE_NOT_EMPTY: (400, 21009),
    Reason.WRONG_KIND: (400, 30000),
    Reason.CHECKER_AT_WORK: (400, 30000),
}
_VIOLATION_CODE = {
    Violation.MISSING: 10000,
    Violation.WEIGHT: 21001,
    Violation.INSTANCE: 21004,
    Violation.SELECTOR: 21006,
}
_JAVA_CLASS = {"beat": "com.alibaba.nacos.naming.healthcheck.RsInfo", "instances": "java.util.List"}


def write_text_error(dialect: str, request: HttpRequest, error: ProxyError, now_ms: int) -> HttpReply:
    """Shape T, unless v1 has another one for the error. `dialect` is the client's."""
    if isinstance(error, BadCall):
        return _bad_call_as_text(request, error, now_ms)
    if isinstance(error, Denied):
        return error_page(request, 403, error.text, now_ms)
    if not isinstance(error, Refused):
        return as_text(str(error), error.status)
    if error.dialect == dialect:
        # r-nacos sends no content type at all, Nacos only for shape P
        kind = error.content_type or (None if error.body.endswith(b"\r\n") else TEXT_TYPE)
        return HttpReply(error.status, kind, error.body)
    if error.reason in (Reason.NO_RIGHT, Reason.GONE):
        return error_page(request, 403 if error.reason is Reason.NO_RIGHT else 410, error.text, now_ms)
    status = _status_and_code(error)[0]
    if error.reason is Reason.SERVICE_NOT_FOUND and "/catalog/" in request.path:
        status = 404
    return as_text(message_of(error), status)


def _bad_call_as_text(request: HttpRequest, error: BadCall, now_ms: int) -> HttpReply:
    text = error.text
    match error.violation:
        case Violation.ILLEGAL:
            return check_line(text)
        case Violation.EMPTY_GROUP:
            return error_page(request, 400, f"Service name filter error,caused: {text};", now_ms)
        case Violation.METADATA:
            message = f"Server failed, caused: ErrCode:400, ErrMsg:{text};caused: {text};"
            return error_page(request, 500, message, now_ms)
        case Violation.BODY if error.parameter:
            return error_page(request, 500, f"Server failed, caused: {_unreadable(error)};caused: {text};", now_ms)
        case _:
            return as_text(text, error.status)


def write_result_error(
    dialect: str, request: HttpRequest, error: ProxyError, now_ms: int, forbidden: str = "{text}"
) -> HttpReply:
    """Shape V, unless v2 and v3 have another one for the error. `forbidden` is the dialect's message of a 403."""
    if isinstance(error, BadCall):
        return _bad_call_as_result(request, error, now_ms)
    if isinstance(error, Denied):
        return error_page(request, 403, forbidden.format(code=error.status, text=error.text), now_ms)
    if not isinstance(error, Refused):
        return failure(error.status, 30000, str(error))
    if error.dialect == dialect:
        return HttpReply(error.status, error.content_type, error.body)
    if error.reason is Reason.NO_RIGHT:  # the message of 3.x has 401 for an unknown token, 403 otherwise (auth.jsonl)
        code = 401 if is_unknown_token(error) else 403
        return error_page(request, 403, forbidden.format(code=code, text=error.text), now_ms)
    if error.reason is Reason.GONE:
        return error_page(request, 410, error.text, now_ms)
    status, code = _status_and_code(error)
    if error.reason is Reason.SERVICE_NOT_FOUND:
        status, code = _unknown_service(request)
    return failure(status, code, message_of(error))


def _unknown_service(request: HttpRequest) -> tuple[int, int]:
    """Instance calls and lists have their own codes for an unknown service (nacos-http.md 3, 4.2)."""
    if request.path.endswith("/instance/list"):
        return 404, 30000
    return (400, 21004) if "/ns/instance" in request.path else (400, 21008)


def _bad_call_as_result(request: HttpRequest, error: BadCall, now_ms: int) -> HttpReply:
    match error.violation:
        case Violation.ILLEGAL:
            return check_line(error.text)
        case Violation.METADATA:
            return error_page(request, 500, f"ErrCode:400, ErrMsg:{error.text}", now_ms)
        case Violation.BODY if error.parameter:
            return error_page(request, 500, _unreadable(error), now_ms)
        case Violation.NOT_A_NUMBER | Violation.NOT_A_BOOLEAN:
            return failure(500, 30000, None, message=f"Failed to convert value of '{error.parameter}'; {error.text}")
        case Violation.SWITCH:
            return failure(500, 30000, error.text)
        case _:
            return failure(error.status, _VIOLATION_CODE.get(error.violation, 20002), error.text)


def _unreadable(error: BadCall) -> str:
    message = f"Nacos deserialize for class [{_JAVA_CLASS.get(error.parameter, 'java.lang.Object')}] failed"
    return f"errCode: 101, errMsg: {message}, cause error[{error.text}].  "


def message_of(error: Refused) -> str:
    """The text; WRONG_KIND gets the prefix of Nacos's exception (recording "v1 register ephemeral …")."""
    wrap = error.reason is Reason.WRONG_KIND and not error.text.startswith("errCode:")
    return f"errCode: 400, errMsg: {error.text.strip()} " if wrap else error.text


def _status_and_code(error: Refused) -> tuple[int, int]:
    """The status, and the code of a result. Some refusals come with a 200 (nacos-http.md 4.1, 7.3)."""
    return _STATUS_AND_CODE.get(error.reason, (error.status if 400 <= error.status <= 599 else 500, 30000))

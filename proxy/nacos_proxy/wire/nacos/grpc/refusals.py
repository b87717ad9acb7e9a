"""Errors over gRPC (nacos-grpc.md 5): writes ours as a response, and reads a server's.

The class of the response matters. If it is the request's own, an SDK raises the error at once. On an `ErrorResponse`
the Java SDK sends the call four times and then takes the connection for broken, and the Go SDK three times. So an
error is written in the request's own class wherever Nacos does not do otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nacos_proxy.model.errors import BadCall, Denied, ProxyError, Reason, Refused, Violation, is_denied
from nacos_proxy.model.services import EMPTY
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.refusals import message_of, read_refusal
from nacos_proxy.wire.nacos.shapes import dumps

ERROR_RESPONSE = "ErrorResponse"
SUCCESS = 200
UNREGISTERED = 301


class NoHandler(BadCall):
    """No request of this type is answered here. `error_code` 502: only nodes of a cluster may send it."""

    def __init__(self, text: str = "RequestHandler Not Found", error_code: int = 302) -> None:
        super().__init__("type", Violation.OTHER, text)
        self.error_code = error_code


class NotReadable(BadCall):
    """The body is not the JSON of its type."""

    error_code = 502

    def __init__(self) -> None:
        super().__init__("", Violation.BODY, "errCode: 101, errMsg: Nacos deserialize failed.  ")


class NotRegistered(Refused):
    """The connection has no session: it sent no setup yet, or the server has ended the session."""

    error_code = UNREGISTERED

    def __init__(self) -> None:
        super().__init__(Reason.OTHER, "Connection is unregistered.")


def write_failure(own_class: str, error: ProxyError, always: Mapping[str, Any] = EMPTY) -> Payload:
    """`own_class` is the response class of the request, `ErrorResponse` if its type is unknown.

    `always` are further fields of this class.
    """
    own, result, code, message = _in_words_of_nacos(error)
    body = {"resultCode": result, "errorCode": code, "message": message, "success": False}
    return Payload(own_class, dumps({**body, **always})) if own else Payload(ERROR_RESPONSE, dumps(body))


def code_of(error: ProxyError) -> int:
    """The `errorCode` that an SDK gets."""
    return _in_words_of_nacos(error)[2]


def _in_words_of_nacos(error: ProxyError) -> tuple[bool, int, int, str]:
    """Whether the answer is in the request's own class, then `resultCode`, `errorCode` and message."""
    if isinstance(error, NoHandler | NotReadable | NotRegistered):
        return False, 500, error.error_code, error.text
    if isinstance(error, BadCall):
        match error.violation:
            case Violation.ILLEGAL:
                return True, 500, 400, f"Param check invalid:{error.text}"
            case Violation.INSTANCE:
                return False, 400, 400, error.text
            case Violation.MISSING if error.parameter == "serviceName":
                return False, 500, 500, error.text
            case _:
                return True, 500, 400, error.text
    if isinstance(error, Denied) or is_denied(error):
        return True, 500, 403, str(error)
    if isinstance(error, Refused):
        if error.reason is Reason.WRONG_KIND:
            return False, 400, 400, message_of(error)
        return True, 500, 400 if error.status < 500 else 500, error.text
    return True, 500, 500, str(error)


def read_failure(answer: Mapping[str, Any]) -> Refused | None:
    """A server's error, or None if the answer is a success.

    300 means that the server is starting; 302 that it does not know the type. Servers other than Nacos leave out
    `success`, and r-nacos answers some errors with `resultCode` 403.
    """
    result, code = answer.get("resultCode"), answer.get("errorCode")
    if result == SUCCESS and answer.get("success") is not False:
        return None
    if code == UNREGISTERED:
        return NotRegistered()
    code = code if type(code) is int and code else result if type(result) is int else 500
    message = answer.get("message")
    text = message if isinstance(message, str) and message else f"the server answered {code}"
    if code == 302:
        return Refused(Reason.GONE, text, status=501)
    status = {300: 503}.get(code, code if 400 <= code <= 599 else 500)
    return read_refusal("", HttpReply(status, None, text.encode()), "")

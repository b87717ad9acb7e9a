"""The login of Nacos, client role. v1 and v3 differ only in the path (nacos-http.md 7.3, auth.jsonl)."""

from __future__ import annotations

from typing import NamedTuple

from nacos_proxy.model.errors import Malformed, Reason, Refused
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.refusals import read_refusal
from nacos_proxy.wire.nacos.shapes import as_object, read_json

_PATHS = {"v1": "/v1/auth/login", "v3": "/v3/auth/user/login"}
_DEFAULT_TTL = 18_000.0


class Login(NamedTuple):
    """A token and its lifetime in seconds."""

    token: str
    ttl: float


def write_login(dialect: str, username: str, password: str) -> HttpRequest:
    return HttpRequest("POST", _PATHS[dialect], form=(("username", username), ("password", password)))


def read_login(dialect: str, reply: HttpReply) -> Login:
    """Raises `Malformed`, or `Refused`: with `GONE` if the server has no login at that path, else with `NO_RIGHT`.

    The status alone does not tell these apart: 2.5.1 answers 500 for an unknown user, 3.0.3 also for a wrong password,
    and other login types answer 200 with a code. A refusal with 502 or above is raised unchanged.
    """
    if reply.status == 200:
        answer = as_object(read_json(reply.body), "login")
        token, ttl = answer.get("accessToken"), answer.get("tokenTtl", _DEFAULT_TTL)
        if isinstance(token, str) and token:
            return Login(token, float(ttl) if type(ttl) in (int, float) and ttl > 0 else _DEFAULT_TTL)
        if "code" not in answer:
            raise Malformed("the answer to the login has no accessToken")
    refused = read_refusal(dialect, reply, "login")
    if refused.reason is Reason.GONE or refused.status >= 502:
        raise refused
    raise Refused(
        Reason.NO_RIGHT,
        refused.text,
        status=refused.status,
        dialect=refused.dialect,
        content_type=refused.content_type,
        body=refused.body,
    )

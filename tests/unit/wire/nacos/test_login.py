"""Logins as the recordings have them; v1 and v3 differ in the path."""

from __future__ import annotations

import pytest

from nacos_proxy.model.errors import Malformed, Reason, Refused
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.nacos.login import Login, read_login, write_login
from tests.helpers.recordings import Row, load

ROWS = [row for row in load("auth") if row.path.endswith("login")]


def test_write_login_has_the_password_in_the_body() -> None:
    request = write_login("v1", "nacos", "a&b")
    assert (request.method, request.target, request.body) == (
        "POST",
        "/v1/auth/login",
        b"username=nacos&password=a%26b",
    )


def test_write_login_has_a_path_for_each_dialect() -> None:
    assert write_login("v1", "a", "b").path == "/v1/auth/login"
    assert write_login("v3", "a", "b").path == "/v3/auth/user/login"


@pytest.mark.parametrize("row", [row for row in ROWS if row.status == 200], ids=str)
def test_read_login_reads_token_and_ttl(row: Row) -> None:
    assert read_login("v1", row.reply) == read_login("v3", row.reply) == Login("TOKEN", 18000.0)


@pytest.mark.parametrize("row", [row for row in ROWS if row.status != 200], ids=str)
def test_read_login_raises_refused_with_the_reason(row: Row) -> None:
    with pytest.raises(Refused) as caught:
        read_login("v1", row.reply)
    assert caught.value.reason is (Reason.GONE if row.status == 404 else Reason.NO_RIGHT)
    assert caught.value.status == row.status and caught.value.text


def test_read_login_reads_r_nacos_without_a_content_type() -> None:
    row = next(row for row in load("r-nacos-0.8.8") if row.path.endswith("/v1/auth/login"))
    assert row.type is None and read_login("v1", row.reply) == Login("AUTH_DISABLED", 3600.0)


@pytest.mark.parametrize(
    ("body", "ttl"),
    [
        (b'{"accessToken":"t"}', 18000.0),
        (b'{"accessToken":"t","tokenTtl":"x"}', 18000.0),
        (b'{"accessToken":"t","tokenTtl":-1}', 18000.0),
        (b'{"accessToken":"t","tokenTtl":5}', 5.0),
    ],
)
def test_read_login_uses_the_default_for_a_ttl_that_is_not_a_number(body: bytes, ttl: float) -> None:
    assert read_login("v1", HttpReply(200, None, body)).ttl == ttl


def test_read_login_raises_refused_for_a_200_with_a_code() -> None:
    with pytest.raises(Refused, match="Login failed") as caught:
        read_login("v1", HttpReply(200, None, b'{"code":401,"message":"Login failed","data":null}'))
    assert caught.value.reason is Reason.NO_RIGHT


def test_read_login_raises_502_and_above_unchanged() -> None:
    with pytest.raises(Refused) as caught:
        read_login("v1", HttpReply(503, None, b"server is DOWNnow"))
    assert caught.value.reason is Reason.OTHER


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b"{}", b'{"accessToken":5}'])
def test_read_login_raises_malformed_without_a_token(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_login("v1", HttpReply(200, None, body))

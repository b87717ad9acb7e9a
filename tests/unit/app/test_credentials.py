"""Where the credentials of a request are found."""

from __future__ import annotations

import pytest
from starlette.types import Scope

from nacos_proxy.app.credentials import ClientCredentials, find_credentials
from tests.helpers.asgi import scope as http_scope

ACCOUNT = "username=app&password=hunter2-secret"
OWN = "own-api-token"


def scope(query: str = "", **headers: str) -> Scope:
    return http_scope("GET", f"/?{query}", headers)


@pytest.mark.parametrize(
    ("request_", "shown"),
    [
        (scope("accessToken=t1&serviceName=a"), ClientCredentials("t1")),
        (scope("access%54oken=t1&namespaceId=dev"), ClientCredentials("t1", namespace="dev")),
        (scope("accessToken=t1&namespaceId=a/../b"), ClientCredentials("t1")),
        (scope(accessToken="t2"), ClientCredentials("t2")),
        (scope(Authorization="Bearer t3"), ClientCredentials("t3")),
        (scope(Authorization="bearer  t3 "), ClientCredentials("t3")),
        (scope(Authorization=f"Bearer {OWN}"), None),
        (scope(f"accessToken={OWN}"), None),
        (scope("accessToken=t4", Authorization=f"Bearer {OWN}"), ClientCredentials("t4")),
        (scope("accessToken=t4", Authorization="Bearer t3"), ClientCredentials("t3")),
        (scope(f"accessToken={OWN}&{ACCOUNT}"), ClientCredentials("", "app", "hunter2-secret")),
        (scope(f"accessToken=t1&{ACCOUNT}"), ClientCredentials("t1")),
        (scope(Authorization="Basic dTpw"), None),
        (scope("accessToken="), None),
        (scope("username=app"), None),
        (scope(), None),
    ],
)
def test_find_credentials_looks_where_nacos_clients_put_them(request_: Scope, shown: ClientCredentials | None) -> None:
    assert find_credentials(request_, b"", lambda text: text == OWN) == shown


def test_find_credentials_reads_the_form_after_the_query() -> None:
    form = b"serviceName=DEFAULT_GROUP@@s&beat={}&accessToken=t5"
    assert find_credentials(scope(), form, lambda text: False) == ClientCredentials("t5")
    assert find_credentials(scope("accessToken=t6"), form, lambda text: False) == ClientCredentials("t6")


@pytest.mark.parametrize(
    ("shown", "endless"),
    [
        (ClientCredentials("x" * 4096), False),
        (ClientCredentials("x" * 4097), True),
        (ClientCredentials("", "用户", "pass word"), False),
        (ClientCredentials("", "app", "x" * 4096), True),
    ],
)
def test_client_credentials_above_4096_characters_are_too_long(shown: ClientCredentials, endless: bool) -> None:
    assert shown.too_long is endless


def test_client_credentials_repr_hides_token_and_password() -> None:
    assert "secret" not in repr(ClientCredentials("a-secret", "app", "my-secret"))

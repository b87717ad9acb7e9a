"""The entries of the setting `webhooks`, and the signature of a delivery."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from nacos_proxy.wire.webhooks import WebhookTarget, headers, parse_webhooks, signature
from tests.helpers.build import key


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("", []),
        (" , ", []),
        ("orders https://a/hook", [WebhookTarget("https://a/hook", frozenset({key()}))]),
        ("a/b http://a", [WebhookTarget("http://a", frozenset({key("a/b")}))]),
        (
            "orders shop@@stock prod/shop@@stock http://127.0.0.1:8080/a?token=b",
            [
                WebhookTarget(
                    "http://127.0.0.1:8080/a?token=b",
                    frozenset({key(), key("stock", "shop"), key("stock", "shop", "prod")}),
                )
            ],
        ),
        (
            "* http://a,shop@@* http://b",
            [
                WebhookTarget("http://a", everything=("public", "DEFAULT_GROUP")),
                WebhookTarget("http://b", everything=("public", "shop")),
            ],
        ),
    ],
)
def test_parse_webhooks_reads_services_and_url(text: str, targets: list[WebhookTarget]) -> None:
    assert list(parse_webhooks(text)) == targets


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://a/s3cret", "write a webhook as its services and its URL"),
        ("orders ftp://a/s3cret", "write a webhook as its services and its URL"),
        ("orders https:///s3cret", "write a webhook as its services and its URL"),
        ("orders http://[s3cret/", "write a webhook as its services and its URL"),
        ("orders http://a:99999/s3cret", "write a webhook as its services and its URL"),
        ("orders https://a/x,s3cret", "write %2C for a comma"),
        ("* orders http://a/s3cret", "stands alone"),
        ("@@ http://a/s3cret", "'@@' of a webhook is no service"),
        ("a\x01b http://a/s3cret", "of a webhook is no service"),
    ],
)
def test_parse_webhooks_refuses_without_quoting_the_url(text: str, why: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_webhooks(text)
    assert why in str(raised.value) and "s3cret" not in str(raised.value)


def test_webhook_target_shows_only_its_host() -> None:
    hosts = ("https://app:hush@a/x?y", "http://a:80", "http://[::1]:8080/")
    assert [WebhookTarget(url).host for url in hosts] == ["a", "a:80", "::1:8080"]


def test_signature_is_an_hmac_of_time_and_body() -> None:
    expected = hmac.new(b"key", b'1795519064.{"a":1}', hashlib.sha256).hexdigest()
    assert signature("key", "1795519064", b'{"a":1}') == f"sha256={expected}"
    assert signature("key", "1795519065", b'{"a":1}') != f"sha256={expected}"


def test_headers_have_a_signature_only_with_a_secret() -> None:
    plain = headers("change", "e-7", 1795519064.9, "", b"{}")
    assert plain == {
        "content-type": "application/json",
        "nacos-proxy-event": "change",
        "nacos-proxy-event-id": "e-7",
        "nacos-proxy-timestamp": "1795519064",
    }
    signed = headers("change", "e-7", 1795519064.9, "key", b"{}")
    assert signed == {**plain, "nacos-proxy-signature": signature("key", "1795519064", b"{}")}

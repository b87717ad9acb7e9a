"""Webhooks: the entries of the setting, and the headers of a delivery."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.limits import LENIENT
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.rest.query import ServiceQuery

_HINT = (
    "write a webhook as its services and its URL, such as 'orders https://deploy.example/hook'; separate webhooks with "
    "commas, and write %2C for a comma in a URL"
)


class WebhookTarget(NamedTuple):
    """A URL, and the services whose changes go there: by key, or all of a (namespace, group) (`everything`)."""

    url: str
    keys: frozenset[ServiceKey] = frozenset()
    everything: tuple[str, str] | None = None

    @property
    def host(self) -> str:
        """The part of the URL that people may see: a path or a query may be secret."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or ""


def parse_webhooks(text: str) -> tuple[WebhookTarget, ...]:
    """The entries of the setting, without empty ones. Raises `ValueError`, whose text quotes no URL."""
    return tuple(_parse(entry) for entry in text.split(",") if entry.strip())


def _parse(entry: str) -> WebhookTarget:
    *services, url = entry.split()
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not services:
        raise ValueError(_HINT)
    keys = [_key(service) for service in services]
    if "*" not in (key.name for key in keys):
        return WebhookTarget(url, frozenset(keys))
    if len(keys) > 1:
        raise ValueError("in a webhook, * (all services of a group) stands alone")
    return WebhookTarget(url, everything=keys[0][:2])


def _key(text: str) -> ServiceKey:
    """`orders`, `group@@orders` or `namespace/group@@orders`, as logs show a service."""
    before, separator, name = text.partition("@@")
    namespace, _, group = before.rpartition("/") if separator else ("", "", "")
    try:
        return ServiceQuery(namespace=namespace).service_key(f"{group}@@{name}" if separator else text, LENIENT)
    except BadCall as error:
        raise ValueError(f"{text[:100]!r} of a webhook is no service: {error.text}") from None


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What the receiver compares: it hashes the time, too, so that an old delivery cannot be sent again later."""
    return "sha256=" + hmac.digest(secret.encode(), f"{timestamp}.".encode() + body, "sha256").hex()


def headers(event: str, number: str, wall: float, secret: str, body: bytes) -> Mapping[str, str]:
    """`number`: the id of the event. `wall`: the time in seconds since 1970. No secret: no signature."""
    timestamp = str(int(wall))
    signed = {"nacos-proxy-signature": signature(secret, timestamp, body)} if secret else {}
    return {
        "content-type": "application/json",
        "nacos-proxy-event": event,
        "nacos-proxy-event-id": number,
        "nacos-proxy-timestamp": timestamp,
        **signed,
    }

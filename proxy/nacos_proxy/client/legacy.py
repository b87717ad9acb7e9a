"""What the legacy SDK's names mean: its exceptions, what it takes for metadata, which parameters are bad.

Not for: requests (`client`), event streams (`subscription`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from nacos_proxy.model.services import address_of

Metadata: TypeAlias = Mapping[str, str] | str | None


class NacosException(Exception):
    """A bad parameter, or a use that makes no sense."""


class NacosRequestException(NacosException):
    """A request failed: the proxy could not be reached, or said no. `status` is its HTTP status, 0 for no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


def check(service_name: str, ip: str = "-", port: int | str = 0) -> None:
    """Raises `NacosException` for what is missing or no port."""
    if not service_name:
        raise NacosException("service_name is required")
    if not ip:
        raise NacosException("ip is required")
    try:
        number = int(port)
    except (TypeError, ValueError) as error:
        raise NacosException(f"port is a number from 0 to 65535, not {port!r}") from error
    if not 0 <= number <= 65535:
        raise NacosException(f"port is a number from 0 to 65535, not {port!r}")


def metadata_of(metadata: Metadata) -> dict[str, str]:
    """From a mapping, from JSON, or from `k=v,k=v`. Raises `NacosException` for what is none of them."""
    if not metadata:
        return {}
    if not isinstance(metadata, str):
        return {str(k): str(v) for k, v in metadata.items()}
    try:
        if metadata.lstrip().startswith("{"):
            parsed = cast(dict[str, Any], json.loads(metadata))
            return {str(k): str(v) for k, v in parsed.items()}
        return dict(part.split("=", 1) for part in metadata.split(","))
    except ValueError as error:
        raise NacosException(f"metadata is a mapping, JSON, or k=v,k=v, not {metadata!r}") from error


def text_of(value: bool) -> str:
    """A switch as Nacos reads it."""
    return "true" if value else "false"


def place_of(ip: str, port: int | str) -> str:
    """An instance's place in a path of the proxy's own API."""
    return quote(address_of(ip, port), safe="[]:.")

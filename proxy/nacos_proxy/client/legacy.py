"""Parts of the client that work as in the legacy SDK: exceptions, forms of metadata, checks of parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from nacos_proxy.model.addresses import address_of

Metadata: TypeAlias = Mapping[str, str] | str | None


class NacosException(Exception):
    """An invalid parameter. Base class of all errors of the client."""


class NacosRequestException(NacosException):
    """The proxy gave no answer, or an error. `status` is the HTTP status, 0 if there was no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


def check(service_name: str, ip: str = "-", port: int | str = 0) -> None:
    """Raises `NacosException` if a parameter is missing or the port is invalid."""
    if not service_name:
        raise NacosException("service_name is required")
    if not ip:
        raise NacosException("ip is required")
    try:
        is_port = 0 <= int(port) <= 65535
    except (TypeError, ValueError):
        is_port = False
    if not is_port:
        raise NacosException(f"port must be a number from 0 to 65535, not {port!r}")


def metadata_of(metadata: Metadata) -> dict[str, str]:
    """Metadata from a mapping, a JSON object, or text `k=v,k=v`. Raises `NacosException` for anything else."""
    if not metadata:
        return {}
    if not isinstance(metadata, str):
        return {str(k): str(v) for k, v in metadata.items()}
    try:
        if metadata.lstrip().startswith("{"):
            return {str(k): str(v) for k, v in cast(dict[str, Any], json.loads(metadata)).items()}
        return dict(part.split("=", 1) for part in metadata.split(","))
    except ValueError as error:
        raise NacosException(f"metadata must be a mapping, JSON, or k=v,k=v, not {metadata!r}") from error


def address_segment(ip: str, port: int | str) -> str:
    """The address of an instance as a path segment of the REST API."""
    return quote(address_of(ip, port), safe="[]:.")

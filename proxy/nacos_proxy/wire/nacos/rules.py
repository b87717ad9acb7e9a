"""The checks for a caller's values: Nacos's parameter check (`NACOS`), or the minimum without it (`LENIENT`).

Servers from 2.3 on have the check (nacos-http.md 1.6). Older ones and r-nacos accept metadata of any length, Chinese
names and namespaces with dots, and refuse themselves what they do not accept. `LENIENT` still refuses three things:
control characters, which break lines in logs and in other programs' files; names too long to store for any caller; and
a service whose `group@@name` would be read back as another service.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import check_cluster, check_instance, check_ip, check_metadata, check_port, check_service
from nacos_proxy.model.services import Instance, Metadata, ServiceKey, without_nulls

MAX_LENGTH = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_INT = range(-(2**31), 2**31)  # Java's int


class Rules(NamedTuple):
    """Each check raises `BadCall`. `instance` has the additional checks of a registration.

    `nulls`: nulls in metadata are kept. r-nacos would lose the whole metadata.
    """

    service: Callable[[ServiceKey], None]
    cluster: Callable[[str], None]
    ip: Callable[[str], None]
    port: Callable[[str | int], object]
    metadata: Callable[[Metadata], None]
    instance: Callable[[Instance], None]
    nulls: bool = False

    def kept(self, metadata: Metadata) -> Metadata:
        """The metadata without what the server cannot store."""
        return metadata if self.nulls else without_nulls(metadata)


def _plain(parameter: str, value: str) -> None:
    if len(value) > MAX_LENGTH:
        raise _illegal(parameter, f"the param length should not exceed {MAX_LENGTH}.")
    if not value.isprintable() and _CONTROL.search(value):
        raise _illegal(parameter, "illegal characters should not appear in the param.")


def _illegal(parameter: str, why: str) -> BadCall:
    return BadCall(parameter, Violation.ILLEGAL, f"Param '{parameter}' is illegal, {why}")


def plain_service(key: ServiceKey) -> None:
    _plain("namespaceId/tenant", key.namespace)
    _plain("serviceName", key.name)
    _plain("group", key.group)
    if "@@" in key.name or ServiceKey.of(key.grouped, None, key.namespace) != key:
        raise _illegal("serviceName", "illegal characters should not appear in the param.")


def _plain_cluster(cluster: str) -> None:
    _plain("cluster", cluster)


def _plain_ip(ip: str) -> None:
    _plain("ip", ip)


def _any_int(port: str | int) -> None:
    """Checks only numbers from JSON, which may have any length. The controllers parse text."""
    if isinstance(port, int) and port not in _INT:
        raise BadCall("port", Violation.NOT_A_NUMBER, f'For input string: "{str(port)[:20]}"')


def _anything(_value: object) -> None:
    """Accepts everything."""


NACOS = Rules(check_service, check_cluster, check_ip, check_port, check_metadata, check_instance, nulls=True)
LENIENT = Rules(plain_service, _plain_cluster, _plain_ip, _any_int, _anything, _anything)

RULES = "nacos_proxy.rules"  # key in the ASGI scope: the `Rules` of a request

"""What a caller's values must be before they become a call: Nacos's parameter check, or what holds without it.

Servers from 2.3 on have that check (nacos-http.md 1.6). Older ones and r-nacos take metadata of any length, Chinese names
and namespaces with dots, and refuse themselves what they do not take. Some values are refused all the same: a control
character, which would break lines of logs and of other programs' files; a name too long to be remembered for strangers;
a service whose `group@@name` reads back as another one. Not for: what is missing, or no number (the dialects).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import (
    check_cluster,
    check_instance,
    check_ip,
    check_metadata,
    check_port,
    check_service,
)
from nacos_proxy.model.services import (
    Instance,
    Metadata,
    ServiceKey,
    texts,
)

LONGEST = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_INT = range(-(2**31), 2**31)  # Java's


class Rules(NamedTuple):
    """Each raises `BadCall`. `instance` is what a registration is held to beyond the other rules.

    `nulls`: a null among the values of metadata is kept; r-nacos would lose all of the metadata over it.
    """

    service: Callable[[ServiceKey], None]
    cluster: Callable[[str], None]
    ip: Callable[[str], None]
    port: Callable[[str | int], object]
    metadata: Callable[[Metadata], None]
    instance: Callable[[Instance], None]
    nulls: bool = False

    def kept(self, metadata: Metadata) -> Metadata:
        """Metadata as the server can have it."""
        return metadata if self.nulls else texts(metadata)


def _plain(parameter: str, value: str) -> None:
    if len(value) > LONGEST:
        raise _illegal(parameter, f"the param length should not exceed {LONGEST}.")
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
    """The controllers read what is text; of JSON a number may have any length."""
    if isinstance(port, int) and port not in _INT:
        raise BadCall("port", Violation.NOT_A_NUMBER, f'For input string: "{str(port)[:20]}"')


def _anything(_value: object) -> None:
    """No rule."""


NACOS = Rules(check_service, check_cluster, check_ip, check_port, check_metadata, check_instance, nulls=True)
LENIENT = Rules(plain_service, _plain_cluster, _plain_ip, _any_int, _anything, _anything)

RULES = "nacos_proxy.rules"  # in the ASGI scope of a request: the ones it is held to

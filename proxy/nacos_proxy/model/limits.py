"""The checks for a caller's values: Nacos's parameter check (`NACOS`), or the minimum without it (`LENIENT`).

Servers from 2.3 on have the check (nacos-http.md 1.6, 1.7). Older ones and r-nacos accept metadata of any length,
Chinese names and namespaces with dots, and themselves refuse the values that they do not accept. `LENIENT` refuses only
control characters, which break lines in logs and in other programs' files; names that are too long to store; and a
service whose `group@@name` would be read back as another service.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.heartbeats import beat_interval, beat_timeout, delete_timeout
from nacos_proxy.model.services import Instance, Metadata, ServiceKey, without_nulls

MAX_WEIGHT = 10_000.0
MAX_METADATA = 1024  # characters, keys and values together

# Java's Character.isWhitespace, which excludes the no-break spaces and U+0085.
_SPACES = "".join(map(chr, {*range(0x2000, 0x200B)} - {0x2007}))
BLANK = f"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \u1680\u2028\u2029\u205f\u3000{_SPACES}"

# As Java reads these patterns: `.` matches no line terminator, and `\s` only ASCII.
_SERVICE = re.compile(r"(?!@)[^\n\r\u0085\u2028\u2029]((?!@@)[^\u4E00-\u9FA5\s])*", re.ASCII)
_NAMESPACE = re.compile(r"[\w-]+", re.ASCII)
_GROUP = re.compile(r"[a-zA-Z0-9\-_:.]*")
_CLUSTER = re.compile(r"[0-9a-zA-Z\-_]+")
_REGISTRABLE_CLUSTER = re.compile(r"[0-9a-zA-Z-]+")
_IP = re.compile(r"[^\u4E00-\u9FA5\s]*", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]+")


class Rules(NamedTuple):
    """Each check raises `BadCall`. `instance` makes the additional checks of a registration.

    `nulls`: keep nulls in metadata. r-nacos would lose the whole metadata because of one.
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


def _illegal(parameter: str, why: str) -> BadCall:
    return BadCall(parameter, Violation.ILLEGAL, f"Param '{parameter}' is illegal, {why}")


def _length(text: str) -> int:
    """The length in UTF-16 units, as Java counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _check_text(parameter: str, value: str, limit: int, pattern: re.Pattern[str]) -> None:
    if len(value) <= limit and value.isascii() and pattern.fullmatch(value) is not None:
        return
    if not value.strip(BLANK):  # other checks refuse a missing value
        return
    if _length(value) > limit:
        raise _illegal(parameter, f"the param length should not exceed {limit}.")
    if pattern.fullmatch(value) is None:
        raise _illegal(parameter, "illegal characters should not appear in the param.")


def check_service(key: ServiceKey) -> None:
    """Checks namespace, service name and group, in Nacos's order. Raises `BadCall` with Nacos's message."""
    _check_text("namespaceId/tenant", key.namespace, 64, _NAMESPACE)
    _check_text("serviceName", key.name, 512, _SERVICE)
    _check_text("group", key.group, 128, _GROUP)


def check_cluster(cluster: str) -> None:
    _check_text("cluster", cluster, 64, _CLUSTER)


def check_ip(ip: str) -> None:
    _check_text("ip", ip, 128, _IP)


def check_port(port: str | int) -> int:
    """The port as a number. 0 is legal (recording "port 0"). Raises `BadCall` for what Java's parser rejects."""
    try:
        number = int(port) if isinstance(port, int) or _NUMBER.fullmatch(port) else -1
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise _illegal("port", "the value should be between 0 and 65535.")
    return number


def check_metadata(metadata: Metadata) -> None:
    if sum(_length(k) + _length(v or "") for k, v in metadata.items()) > MAX_METADATA:
        raise _illegal("Metadata", f"the param length should not exceed {MAX_METADATA}.")


def check_weight(weight: float) -> float:
    if math.isnan(weight) or not 0.0 <= weight <= MAX_WEIGHT:
        text = "instance format invalid: The weights range from 0.0 to 10000.0"
        raise BadCall("weight", Violation.WEIGHT, text, value=str(weight))
    return weight


def check_instance(instance: Instance) -> None:
    """What Nacos requires of a registration beyond its parameter check (`checkInstanceIsLegal`)."""
    if _REGISTRABLE_CLUSTER.fullmatch(instance.cluster) is None:
        only = "Instance 'clusterName' should be characters with only 0-9a-zA-Z-."
        raise BadCall("clusterName", Violation.INSTANCE, f"{only} (current: {instance.cluster})")
    if min(beat_timeout(instance.metadata), delete_timeout(instance.metadata)) < beat_interval(instance.metadata):
        text = "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'."
        raise BadCall("metadata", Violation.INSTANCE, text)


# --- LENIENT ----------------------------------------------------------------------------------------------------------

MAX_LENGTH = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_INT = range(-(2**31), 2**31)  # Java's int


def _check_plain(parameter: str, value: str) -> None:
    if len(value) > MAX_LENGTH:
        raise _illegal(parameter, f"the param length should not exceed {MAX_LENGTH}.")
    if not value.isprintable() and _CONTROL.search(value):
        raise _illegal(parameter, "illegal characters should not appear in the param.")


def check_plain_service(key: ServiceKey) -> None:
    _check_plain("namespaceId/tenant", key.namespace)
    _check_plain("serviceName", key.name)
    _check_plain("group", key.group)
    if "@@" in key.name or ServiceKey.of(key.grouped, None, key.namespace) != key:
        raise _illegal("serviceName", "illegal characters should not appear in the param.")


def _check_int(port: str | int) -> None:
    """Checks only numbers from JSON, which may have any length. The controllers parse text."""
    if isinstance(port, int) and port not in _INT:
        raise BadCall("port", Violation.NOT_A_NUMBER, f'For input string: "{str(port)[:20]}"')


def _accept(_value: object) -> None:
    pass


NACOS = Rules(check_service, check_cluster, check_ip, check_port, check_metadata, check_instance, nulls=True)
LENIENT = Rules(
    check_plain_service, partial(_check_plain, "cluster"), partial(_check_plain, "ip"), _check_int, _accept, _accept
)

"""Addresses and weights as the configuration of other programs accepts them.

Anybody can register any address, and other programs refuse a whole file because of one line that they cannot read. So
lines hold only IP addresses and host names with a port from 1 to 65535, each only once in whichever spelling. Instances
of weight 0 are left out.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from nacos_proxy.model.services import Instance, plain_ip

# RFC 1123 2.1, plus the underscore of container names. The last label must not be a number, because resolvers would
# read the name as an address. nginx would read `unix:80` as the path of a socket.
_LABEL = "(?!-)[0-9a-z_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?!unix$)(?=.{{1,253}}$)(?:{_LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$){_LABEL}")


@lru_cache(maxsize=16_384)
def host_of(ip: str) -> str:
    """A registered address as other programs accept it, IPv6 in brackets; '' if it is neither an IP nor a host name."""
    ip = plain_ip(ip)
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        name = ip.lower()
        return name if ip.isascii() and _NAME.fullmatch(name) else ""
    # An IPv6 scope can be any text, and means something only on the instance's own host.
    return ip if address.version == 4 else f"[{ip}]" if address.scope_id is None else ""


def servers(hosts: Iterable[Instance]) -> dict[str, float]:
    """Weights by address, without instances that other programs refuse. Of two at one address the greater counts."""
    found: dict[str, float] = {}
    for instance in hosts:
        if not (0 < instance.weight < math.inf and 0 < instance.port <= 65535):
            continue
        if host := host_of(instance.ip):
            address = f"{host}:{instance.port}"
            found[address] = max(instance.weight, found.get(address, 0.0))
    return found


def weighted_servers(hosts: Iterable[Instance], max_weight: int) -> Iterable[tuple[str, int]]:
    """Addresses with whole weights from 1 to `max_weight`."""
    found = servers(hosts)
    return zip(found, whole_weights(list(found.values()), max_weight), strict=True)


def whole_weights(weights: Sequence[float], max_weight: int) -> list[int]:
    """Whole numbers from 1 to `max_weight` in the same proportion; unchanged if they are such numbers already."""
    if all(weight == int(weight) and weight <= max_weight for weight in weights):
        return [int(weight) for weight in weights]
    top = max(weights)
    return [max(1, round(weight / top * max_weight)) for weight in weights]


def lines(rows: Iterable[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()

"""Addresses and weights as the configuration of other programs accepts them.

Anybody can register any address, and other programs refuse a whole file because of one line that they cannot read. So
lines hold only IP addresses and host names with a port from 1 to 65535, each only once in whichever spelling. Instances
of weight 0 are left out.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain

from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.services import Instance, Metadata
from nacos_proxy.wire.discovery.base import Shown

OMITTED = (
    "The list omits instances with weight 0, and addresses that are not an IP address or host name with a port from 1 "
    "to 65535. Different spellings of an address make one line."
)
"""For the descriptions of formats that carry what is `usable`."""

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


def usable(host: Instance) -> bool:
    """Whether other programs can use this instance and do not read its address as another."""
    return 0 < host.weight < math.inf and 0 < host.port <= 65535 and host_of(host.ip) != ""


def place(host: Instance) -> str:
    """`host:port` of a usable instance."""
    return f"{host_of(host.ip)}:{host.port}"


def scheme(metadata: Metadata) -> str:
    """The protocol that an instance's metadata names, in lower case; '' if none. Spring Cloud sets `secure`."""
    if (metadata.get("secure") or "").lower() == "true":
        return "https"
    return (metadata.get("protocol") or "").lower()


Spelling = Callable[[Instance], str]


def servers(shown: Iterable[Shown], spelled: Spelling = place) -> dict[str, float]:
    """Weights by address, of instances that are `usable`. Of two at one address the greater counts."""
    found: dict[str, float] = {}
    for host in chain.from_iterable(hosts for _, hosts in shown):
        address = spelled(host)
        found[address] = max(host.weight, found.get(address, 0.0))
    return found


def weighted_servers(shown: Iterable[Shown], max_weight: int, spelled: Spelling = place) -> Iterable[tuple[str, int]]:
    """Addresses with whole weights from 1 to `max_weight`."""
    found = servers(shown, spelled)
    return zip(found, whole_weights(list(found.values()), max_weight), strict=True)


def whole_weights(weights: Sequence[float], max_weight: int) -> list[int]:
    """Whole numbers from 1 to `max_weight` in the same proportion; unchanged if they are such numbers already."""
    if all(weight == int(weight) and weight <= max_weight for weight in weights):
        return [int(weight) for weight in weights]
    top = max(weights)
    return [max(1, round(weight / top * max_weight)) for weight in weights]


def lines(rows: Iterable[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()

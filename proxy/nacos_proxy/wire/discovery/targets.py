"""A service's instances in the formats of scrapers and load balancers. Not for: choosing among them (`catalog.pick`).

Anybody can register an address, and another program refuses its whole file for one line that it cannot read. So in
lines for a configuration stand only addresses that are IP addresses or host names, with a port from 1 to 65535, each
once however it is spelt. Weight 0 is left out where the format knows weights.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from nacos_proxy.model.services import Instance, ServiceKey, plain_ip

# RFC 1123 2.1, and the underscore that names of containers have. A name that ends in a number is none: resolvers would
# read an address of another kind out of it. nginx reads `unix:80` as the path of a socket.
_LABEL = "(?!-)[0-9a-z_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?!unix$)(?=.{{1,253}}$)(?:{_LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$){_LABEL}")
_NO_LABEL = re.compile(r"[^0-9A-Za-z_]")
_NO_NAME = re.compile(r"[^0-9A-Za-z_.:-]")


def prometheus(hosts: Sequence[Instance], key: ServiceKey) -> list[dict[str, Any]]:
    """Target groups for `http_sd`, one per instance as their labels differ."""
    return [{"targets": [host.address], "labels": _labels(host, key)} for host in hosts]


def _labels(host: Instance, key: ServiceKey) -> dict[str, str]:
    given = ((name, text) for name, text in sorted(host.metadata.items()) if text is not None)
    own = {f"__meta_nacos_metadata_{_NO_LABEL.sub('_', name)}": text for name, text in given}
    return {
        **own,
        "__meta_nacos_namespace": key.namespace,
        "__meta_nacos_group": key.group,
        "__meta_nacos_service": key.name,
        "__meta_nacos_cluster": host.cluster,
        "__meta_nacos_weight": f"{host.weight:g}",
        "__meta_nacos_healthy": "true" if host.healthy else "false",
        "__meta_nacos_ephemeral": "true" if host.ephemeral else "false",
    }


@lru_cache(maxsize=16_384)
def host_of(ip: str) -> str:
    """A registered address as other programs take it, one of IPv6 in brackets; '' for what is none."""
    ip = plain_ip(ip)
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        name = ip.lower()
        return name if ip.isascii() and _NAME.fullmatch(name) else ""
    # a scope, which could be any text, means something on the instance's own host only
    return ip if address.version == 4 else f"[{ip}]" if address.scope_id is None else ""


def servers(hosts: Iterable[Instance]) -> dict[str, float]:
    """Weights by address, of the instances that another program's configuration can take; of two the greater."""
    found: dict[str, float] = {}
    for instance in hosts:
        if not (0 < instance.weight < math.inf and 0 < instance.port <= 65535):
            continue
        if host := host_of(instance.ip):
            address = f"{host}:{instance.port}"
            found[address] = max(instance.weight, found.get(address, 0.0))
    return found


def text(hosts: Sequence[Instance], key: ServiceKey) -> bytes:
    """`ip:port` on each line."""
    return _lines(servers(hosts))


def nginx(hosts: Sequence[Instance], key: ServiceKey) -> bytes:
    """`server` lines to include in an `upstream` block; weights are whole numbers from 1 to 100."""
    return _lines(f"server {address} weight={weight};" for address, weight in _weighted(hosts, 100))


def haproxy(hosts: Sequence[Instance], key: ServiceKey) -> bytes:
    """`server` lines of a backend; weights are whole numbers from 1 to 256 (its own limit).

    A name that cannot be resolved is a server that is down; without `init-addr` HAProxy would not start.
    """
    return _lines(
        f"server {_NO_NAME.sub('_', address)} {address} weight {weight} check{_resolved(address)}"
        for address, weight in _weighted(hosts, 256)
    )


def _resolved(address: str) -> str:
    ip = address.startswith("[") or address.rpartition(":")[0].rpartition(".")[2].isdecimal()
    return "" if ip else " init-addr last,libc,none"


def _weighted(hosts: Iterable[Instance], most: int) -> Iterable[tuple[str, int]]:
    found = servers(hosts)
    return zip(found, whole_weights(list(found.values()), most), strict=True)


def whole_weights(weights: Sequence[float], most: int) -> list[int]:
    """Weights in the same proportion as whole numbers from 1 to `most`; left alone where they are that already."""
    if all(weight == int(weight) and weight <= most for weight in weights):
        return [int(weight) for weight in weights]
    top = max(weights)
    return [max(1, round(weight / top * most)) for weight in weights]


def _lines(rows: Any) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


FORMATS = {"text": text, "nginx": nginx, "haproxy": haproxy}

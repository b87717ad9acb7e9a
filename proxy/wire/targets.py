"""A service's instances in the formats of scrapers and load balancers. Not for: choosing among them (`catalog.pick`).

An address goes into another program's configuration, and anybody can register one: what is no plain host name or IP
address and a port is left out of those formats, as is weight 0 where the format knows weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from proxy.model import Instance, ServiceKey

_PLAIN = re.compile(r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+")
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


def usable(hosts: Sequence[Instance]) -> list[Instance]:
    """Those that another program's configuration can take."""
    return [host for host in hosts if host.weight > 0 and _PLAIN.fullmatch(host.ip) and 0 < host.port <= 65535]


def text(hosts: Sequence[Instance], key: ServiceKey) -> bytes:
    """`ip:port` on each line."""
    return _lines(host.address for host in usable(hosts))


def nginx(hosts: Sequence[Instance], key: ServiceKey) -> bytes:
    """`server` lines to include in an `upstream` block; weights are whole numbers from 1 to 100."""
    weighted = zip(usable(hosts), whole_weights([h.weight for h in usable(hosts)], 100), strict=True)
    return _lines(f"server {host.address} weight={weight};" for host, weight in weighted)


def haproxy(hosts: Sequence[Instance], key: ServiceKey) -> bytes:
    """`server` lines of a backend; weights are whole numbers from 1 to 256 (its own limit)."""
    chosen = usable(hosts)
    weighted = zip(chosen, whole_weights([h.weight for h in chosen], 256), strict=True)
    return _lines(f"server {_NO_NAME.sub('_', h.address)} {h.address} weight {weight} check" for h, weight in weighted)


def whole_weights(weights: Sequence[float], most: int) -> list[int]:
    """Weights in the same proportion as whole numbers from 1 to `most`; left alone where they are that already."""
    if all(weight == int(weight) and weight <= most for weight in weights):
        return [int(weight) for weight in weights]
    top = max(weights)
    return [max(1, round(weight / top * most)) for weight in weights]


def _lines(rows: Any) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


FORMATS = {"text": text, "nginx": nginx, "haproxy": haproxy}

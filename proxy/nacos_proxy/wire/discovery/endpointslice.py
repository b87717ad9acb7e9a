"""Kubernetes: for each service a `Service` without a selector, and `EndpointSlice`s (discovery.k8s.io/v1) with its
instances, as one list for `kubectl apply -f -`.

Tried with kube-apiserver and kubectl 1.36. The server refuses loopback, link-local and multicast addresses, and
kube-proxy reads only slices of IP addresses. Fields that the server would add are written, so that `kubectl` sees no
change where there is none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, NamedTuple

from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.services import DEFAULT_GROUP, Instance, ServiceKey
from nacos_proxy.wire.discovery.addresses import scheme
from nacos_proxy.wire.discovery.base import Format, Shown

MAX_ENDPOINTS = 100  # of a slice, as Kubernetes' own controller makes them

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1035, which names of a Service follow
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_ZONES = ("topology.kubernetes.io/zone", "zone")
_APP_PROTOCOLS = {"https": "https", "h2c": "kubernetes.io/h2c", "grpc": "kubernetes.io/h2c"}
_MANAGED = {"app.kubernetes.io/managed-by": "nacos-proxy"}


class _Port(NamedTuple):
    """What all endpoints of a slice have in common."""

    address_type: str
    port: int
    app_protocol: str


def object_name(key: ServiceKey) -> str:
    """`orders`, or for another group, or a name that Kubernetes refuses, a readable part with a digest."""
    if key.group == DEFAULT_GROUP and _NAME.fullmatch(key.name):
        return key.name
    readable = _NOT_IN_NAMES.sub("-", key.name.lower()).strip("-")[:40].strip("-")
    digest = blake2b(key.grouped.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{readable}-{digest}" if readable[:1].isalpha() else f"nacos-{readable}-{digest}".replace("--", "-")


def _carries(host: Instance) -> bool:
    try:
        ip = ipaddress.ip_address(plain_ip(host.ip))
    except ValueError:
        return False
    special = ip.is_loopback or ip.is_unspecified or ip.is_link_local or ip.is_multicast
    mapped = ip.version == 6 and (ip.ipv4_mapped is not None or ip.scope_id is not None)
    return 0 < host.port <= 65535 and not special and not mapped


def _write(shown: Sequence[Shown]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": [item for one in shown for item in _objects(one)]}


def _objects(shown: Shown) -> list[dict[str, Any]]:
    name, hosts = object_name(shown.key), sorted(shown.hosts, key=_port_of)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, shown.key, _MANAGED),
        "spec": {"clusterIP": "None"},
    }
    return [service, *(it for port, same in groupby(hosts, _port_of) for it in _slices(name, shown.key, port, [*same]))]


def _slices(name: str, key: ServiceKey, port: _Port, hosts: Sequence[Instance]) -> list[dict[str, Any]]:
    endpoints = _endpoints(hosts)
    labels = {
        **_MANAGED,
        "endpointslice.kubernetes.io/managed-by": "nacos-proxy",
        "kubernetes.io/service-name": name,
    }
    protocol = {"appProtocol": port.app_protocol} if port.app_protocol else {}
    parts = (name, port.address_type.lower(), str(port.port), port.app_protocol.rpartition("/")[2])
    base = "-".join(part for part in parts if part)
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": _metadata(f"{base}-{first // MAX_ENDPOINTS}", key, labels),
            "addressType": port.address_type,
            "ports": [{"name": "", "port": port.port, "protocol": "TCP", **protocol}],
            "endpoints": endpoints[first : first + MAX_ENDPOINTS],
        }
        for first in range(0, len(endpoints), MAX_ENDPOINTS)
    ]


def _metadata(name: str, key: ServiceKey, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "labels": labels, "annotations": {"nacos-proxy/service": str(key)}}


def _port_of(host: Instance) -> _Port:
    address_type = "IPv6" if ":" in host.ip else "IPv4"
    return _Port(address_type, host.port, _APP_PROTOCOLS.get(scheme(host.metadata), ""))


def _endpoints(hosts: Sequence[Instance]) -> list[dict[str, Any]]:
    """One for each address; of several the best counts."""
    found: dict[str, Instance] = {}
    for host in sorted(hosts, key=lambda host: (host.healthy, host.weight > 0)):
        found[plain_ip(host.ip)] = host
    return [_endpoint(ip, found[ip]) for ip in dict.fromkeys(plain_ip(host.ip) for host in hosts)]


def _endpoint(ip: str, host: Instance) -> dict[str, Any]:
    """An instance of weight 0 is about to go: kube-proxy uses it only if no other is ready."""
    drained = host.weight <= 0
    conditions = {"ready": host.healthy and not drained, "serving": host.healthy, "terminating": drained}
    zone = next((zone for name in _ZONES if _LABEL_VALUE.fullmatch(zone := host.metadata.get(name) or "")), None)
    return {"addresses": [ip], "conditions": conditions, **({} if zone is None else {"zone": zone})}


FORMAT = Format(
    name="endpointslice",
    summary="Kubernetes EndpointSlices",
    description="A list of a headless `Service` without a selector and its `EndpointSlice`s, for `kubectl apply -f -`. "
    "A slice has the instances of one port, of IPv4 or IPv6, at most 100. Unhealthy instances are not `ready`, those "
    "of weight 0 are `terminating`. Host names are left out. With `format=yaml` or `Accept: application/yaml` the "
    "answer has that type; it is JSON, which is YAML.",
    example={"apiVersion": "v1", "kind": "List", "items": []},
    write=_write,
    carries=_carries,
    several=True,
    healthy_only=False,
    yaml=True,
)

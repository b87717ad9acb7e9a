"""Envoy's discovery over REST (xDS v3): requests, assignments (EDS), clusters (CDS).

Not here: gRPC (ADS), listeners and routes. Sources: envoy:api/envoy/service/discovery/v3/discovery.proto,
config/endpoint/v3/endpoint_components.proto, config/cluster/v3/cluster.proto; tried with Envoy 1.40.

Envoy refuses a whole assignment because of one endpoint, so there are only IP addresses with a port from 1 to 65535,
each once, priorities without a gap, and weights whose sum fits in 32 bits.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import orjson

from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.services import Instance

ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS_PATH = "/v3/discovery:endpoints"
CLUSTERS_PATH = "/v3/discovery:clusters"
PATHS = frozenset({ENDPOINTS_PATH, CLUSTERS_PATH})
EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms"
"""The header in which Envoy sends the `request_timeout` of its configuration."""

METADATA = "nacos_proxy"
"""The field of `node.metadata` that is for us."""

REFRESH_DELAY = "0.2s"  # how long the clusters of CDS wait after an answer; the next request waits for a change
REQUEST_TIMEOUT = "30s"

_MAX_WEIGHT_SUM = 2**32 - 1
_WEIGHT_UNIT = 100  # so that Nacos's weight of 0.5 is still a whole number
_MAX_TEMPLATE = 4_096  # bytes
_LOCALITY = ("region", "zone", "sub_zone")


class DiscoveryRequest(NamedTuple):
    """`names` are the resources asked for, `version` that of the answer which the client has, '' if it has none.

    `options` is the object in `node.metadata` that is for us.
    """

    names: tuple[str, ...]
    version: str
    options: Mapping[str, Any]


def read_request(body: bytes) -> DiscoveryRequest:
    """Reads what we need of a `DiscoveryRequest`. Field names may be in snake_case or camelCase. Raises `BadCall`.

    Most of the 77 KB that Envoy sends is a list of its extensions, which nothing here looks at.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadCall("", Violation.BODY, f"The body is not JSON: {error}") from None
    request = _object(given, "")
    names = _either(request, "resource_names", "resourceNames", [])
    version = _either(request, "version_info", "versionInfo", "")
    if not _is_list_of_texts(names) or not isinstance(version, str):
        text = "'resource_names' must be a list of texts, 'version_info' a text."
        raise BadCall("resource_names", Violation.BODY, text)
    metadata = _object(_object(request.get("node"), "node").get("metadata"), "node.metadata")
    return DiscoveryRequest(
        tuple(dict.fromkeys(names)), version, _object(metadata.get(METADATA), f"node.metadata.{METADATA}")
    )


def _object(value: object, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        what = f"'{name}'" if name else "The body"
        raise BadCall(name, Violation.BODY, f"{what} must be a JSON object.")
    return cast("Mapping[str, Any]", value)


def _either(request: Mapping[str, Any], snake: str, camel: str, default: Any) -> Any:
    found = request.get(snake, request.get(camel))
    return default if found is None else found


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[object]", value))


def read_options(options: Mapping[str, Any]) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The services that a client wants as clusters (`*` if it names none), and the fields that each cluster gets.

    Raises `BadCall`.
    """
    where = f"node.metadata.{METADATA}"
    for name in options:
        if name not in ("services", "cluster"):
            raise BadCall(where, Violation.BODY, f"'{where}' may have 'services' and 'cluster', not '{name[:100]}'.")
    services = options.get("services", ["*"])
    if not _is_list_of_texts(services):
        raise BadCall(where, Violation.BODY, f"'{where}.services' must be a list of texts.")
    template = _object(options.get("cluster"), f"{where}.cluster")
    if not _is_small(template):
        text = (
            f"'{where}.cluster' must have at most {_MAX_TEMPLATE} bytes and no deep nesting: each cluster repeats it."
        )
        raise BadCall(where, Violation.BODY, text)
    for name in ("@type", "name", "type", "eds_cluster_config", "edsClusterConfig"):
        if name in template:
            raise BadCall(where, Violation.BODY, f"'{where}.cluster' cannot set '{name}'.")
    return tuple(dict.fromkeys(services)), template


def _is_small(template: Mapping[str, Any]) -> bool:
    try:
        return len(orjson.dumps(template)) <= _MAX_TEMPLATE
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        return False


def assignment(name: str, tiers: Sequence[Iterable[Instance]]) -> dict[str, Any]:
    """A `ClusterLoadAssignment`: the priority of each instance is the number of its tier, its locality is what its
    metadata has as `region`, `zone` and `sub_zone`.

    Instances without weight, and addresses that are no IP address, are left out. `envoy.lb` gets the metadata, for
    subsets (`lb_subset_config`), and the cluster as `nacos_cluster`.
    """
    levels = _usable(tiers)
    unit = _weight_unit(host.weight for level in levels for _, host in level)
    localities = [
        _locality(where, priority, hosts, unit)
        for priority, level in enumerate(levels)
        for where, hosts in _by_locality(level).items()
    ]
    return {"@type": ASSIGNMENT, "cluster_name": name, "endpoints": localities}


def _usable(tiers: Sequence[Iterable[Instance]]) -> list[list[tuple[str, Instance]]]:
    """Tiers with at least one endpoint, as pairs of IP address and instance. The first at an address counts."""
    seen: set[tuple[str, int]] = set()
    levels: list[list[tuple[str, Instance]]] = []
    for tier in tiers:
        level: list[tuple[str, Instance]] = []
        for host in tier:
            ip = _ip_of(host.ip)
            if ip and 0 < host.port <= 65535 and 0 < host.weight < math.inf and (ip, host.port) not in seen:
                seen.add((ip, host.port))
                level.append((ip, host))
        if level:
            levels.append(level)
    return levels


@lru_cache(maxsize=16_384)
def _ip_of(ip: str) -> str:
    """The canonical IP address without brackets; '' for anything else, also for an IPv6 address with a scope."""
    try:
        address = ipaddress.ip_address(plain_ip(ip))
    except ValueError:
        return ""
    return "" if address.version == 6 and address.scope_id is not None else str(address)


def _by_locality(level: Iterable[tuple[str, Instance]]) -> dict[tuple[str, ...], list[tuple[str, Instance]]]:
    found: dict[tuple[str, ...], list[tuple[str, Instance]]] = {}
    for ip, host in level:
        where = tuple(host.metadata.get(part) or "" for part in _LOCALITY)
        found.setdefault(where, []).append((ip, host))
    return found


def _weight_unit(weights: Iterable[float]) -> float:
    total = sum(weights)
    return min(_WEIGHT_UNIT, _MAX_WEIGHT_SUM / 2 / total) if total else _WEIGHT_UNIT  # half: rounding up to 1 adds some


def _locality(
    where: tuple[str, ...], priority: int, hosts: Iterable[tuple[str, Instance]], unit: float
) -> dict[str, Any]:
    endpoints = [_endpoint(ip, host, max(1, round(host.weight * unit))) for ip, host in hosts]
    return {
        "locality": {part: text for part, text in zip(_LOCALITY, where, strict=True) if text},
        "priority": priority,
        "load_balancing_weight": sum(endpoint["load_balancing_weight"] for endpoint in endpoints),
        "lb_endpoints": endpoints,
    }


def _endpoint(ip: str, host: Instance, weight: int) -> dict[str, Any]:
    given = {name: text for name, text in host.metadata.items() if text is not None}
    return {
        "endpoint": {"address": {"socket_address": {"address": ip, "port_value": host.port}}, "hostname": ip},
        "health_status": "HEALTHY" if host.healthy else "UNHEALTHY",
        "load_balancing_weight": weight,
        "metadata": {"filter_metadata": {"envoy.lb": {**given, "nacos_cluster": host.cluster}}},
    }


def cluster(name: str, resource: str, source: str, template: Mapping[str, Any]) -> dict[str, Any]:
    """A `Cluster` whose endpoints are the EDS resource `resource`, read from the cluster `source`, which is us."""
    rest = {
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": [source],
        "refresh_delay": REFRESH_DELAY,
        "request_timeout": REQUEST_TIMEOUT,
    }
    return {
        "@type": CLUSTER,
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        **template,
        "eds_cluster_config": {
            "service_name": resource,
            "eds_config": {"resource_api_version": "V3", "api_config_source": rest},
        },
    }


class DiscoveryResponse(NamedTuple):
    """`version` is a digest of the resources, so that it survives a restart."""

    version: str
    body: bytes


def response(kind: str, resources: Iterable[Mapping[str, Any]]) -> DiscoveryResponse:
    """A `DiscoveryResponse` with the resources of one type."""
    return joined(kind, [encoded(resource) for resource in resources])


def encoded(resource: Mapping[str, Any]) -> bytes:
    return orjson.dumps(resource)


def joined(kind: str, resources: Sequence[bytes]) -> DiscoveryResponse:
    """As `response`, from encoded resources."""
    digest = blake2b(digest_size=8)
    for resource in resources:
        digest.update(resource)
    version = digest.hexdigest()
    head = b'{"version_info":"%s","type_url":"%s","resources":[' % (version.encode(), kind.encode())
    return DiscoveryResponse(version, head + b",".join(resources) + b"]}")

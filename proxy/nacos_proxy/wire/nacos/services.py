"""The JSON of services, subscribers and namespaces that several dialects share, read and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nacos_proxy.model.calls import ServiceDetail, ServiceInfo, Subscriber
from nacos_proxy.model.errors import Malformed, Misplaced, Reason, Refused
from nacos_proxy.model.services import EMPTY, GROUP_SEPARATOR, Checking, Instance, ServiceKey, Snapshot
from nacos_proxy.wire.nacos.base import ReadPage, ReadService, ServiceView
from nacos_proxy.wire.nacos.hosts import check_named, host_json, read_each, read_metadata
from nacos_proxy.wire.nacos.shapes import as_int, as_list, as_object

NO_SELECTOR: Mapping[str, Any] = {"type": "none", "contextType": "NONE"}


def read_service(key: ServiceKey, value: Any) -> ServiceInfo:
    """Reads a service of any dialect: v1 has the list `clusters`, v2 and v3 have the object `clusterMap`."""
    answer = as_object(value, "service")
    check_named(key, answer.get("name"), answer.get("serviceName"))
    if (group := answer.get("groupName") or key.group) != key.group:
        raise Misplaced(f"asked for a service of the group {key.group!r}, but the answer is about the group {group!r}")
    threshold = answer.get("protectThreshold")
    selector = answer.get("selector")
    clusters = answer.get("clusters")
    if clusters is None:
        shown = _clusters(answer)
    else:
        rows = [as_object(item, "cluster") for item in as_list(clusters, "clusters")]
        shown = {str(row.get("name")): row for row in rows}
    return ServiceInfo(
        key,
        float(threshold) if isinstance(threshold, int | float) else 0.0,
        read_metadata(answer.get("metadata") or {}),
        as_object(selector, "selector") if selector else EMPTY,
        tuple(shown),
        answer.get("ephemeral") is not False,
        {name: checking for name, row in shown.items() if (checking := _read_checking(row)) != Checking()},
    )


def _read_checking(value: Any) -> Checking:
    """Reads how a cluster is checked. v1 and v2 do not show the ports."""
    row = as_object(value, "cluster")
    checker, port = row.get("healthChecker"), row.get("healthyCheckPort")
    return Checking(
        as_object(checker, "healthChecker") if checker else Checking().checker,
        port if type(port) is int else 80,
        row.get("useInstancePortForCheck") is not False,
        read_metadata(row.get("metadata") or {}),
    )


def shown_checker(checking: Checking) -> dict[str, Any]:
    """The checker as v1 shows it, without its nulls."""
    return {name: value for name, value in checking.checker.items() if value is not None}


def _clusters(answer: Mapping[str, Any]) -> dict[str, Any]:
    shown = answer.get("clusterMap")
    return {} if shown is None else as_object(shown, "clusterMap")


def cluster_map(info: ServiceInfo, *, ports: bool) -> dict[str, Any]:
    """`clusterMap` of a service. `ports` adds the two port fields that v3 has and v2 lacks."""
    shown: dict[str, Any] = {}
    for name in info.clusters:
        checking = info.checks.get(name, Checking())
        port = {"healthyCheckPort": checking.port, "useInstancePortForCheck": checking.by_instance_port}
        shown[name] = {
            "clusterName": name,
            "healthChecker": dict(checking.checker),
            **(port if ports else {}),
            "metadata": dict(checking.metadata),
            "hosts": None,
        }
    return shown


def by_cluster(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    found: dict[str, list[Instance]] = {}
    for instance in instances:
        found.setdefault(instance.cluster, []).append(instance)
    return found


def view_json(detail: ServiceDetail) -> dict[str, Any]:
    """The counts of a service. `triggerFlag` is text: "true" if the healthy share is at or below the threshold."""
    instances = detail.snapshot.instances
    healthy = sum(1 for instance in instances if instance.healthy)
    protected = bool(instances) and healthy <= detail.info.threshold * len(instances)
    return {
        "name": detail.info.key.name,
        "groupName": detail.info.key.group,
        "clusterCount": len({instance.cluster for instance in instances} | set(detail.info.clusters)),
        "ipCount": len(instances),
        "healthyInstanceCount": healthy,
        "triggerFlag": "true" if protected else "false",
    }


def detail_json(detail: ServiceDetail) -> dict[str, Any]:
    """A row of v3's list with instances. The threshold is always 0.0, as in 3.0.3 (v3-only.jsonl)."""
    key = detail.info.key
    clusters = {
        name: {
            "clusterName": None,
            "healthChecker": None,
            "healthyCheckPort": 80,
            "useInstancePortForCheck": True,
            "metadata": None,
            "hosts": [host_json(host, key) for host in hosts],
        }
        for name, hosts in by_cluster(detail.snapshot.instances).items()
    }
    return {
        "namespaceId": None,
        "serviceName": key.name,
        "groupName": key.group,
        "clusterMap": clusters,
        "metadata": dict(detail.info.metadata),
        "protectThreshold": 0.0,
        "selector": None,
        "ephemeral": None,
    }


def read_detail(namespace: str, value: Any) -> ServiceDetail:
    row = as_object(value, "row")
    name, group = row.get("serviceName"), row.get("groupName")
    if not isinstance(name, str) or not isinstance(group, str):
        raise Malformed("a service without name or group")
    key = ServiceKey(namespace, group, name)
    info = read_service(key, row)
    clusters = _clusters(row).values()
    hosts = [
        host for cluster in clusters for host in as_list(as_object(cluster, "cluster").get("hosts") or [], "hosts")
    ]
    instances, unreadable = read_each(hosts, key)
    ephemeral = all(instance.ephemeral for instance in instances)
    info = ServiceInfo(key, info.threshold, info.metadata, info.selector, info.clusters, ephemeral)
    masking = bool(info.metadata) or info.threshold > 0
    shown = Snapshot.of(key, instances, threshold=info.threshold, masking=masking, unreadable=unreadable)
    return ServiceDetail(info, shown)


def in_cluster(call: ReadService, view: ServiceView) -> list[Instance]:
    """All instances of one cluster, disabled ones included. Raises `Refused` if the service or cluster is empty."""
    if not view.snapshot.instances:
        raise Refused(Reason.SERVICE_NOT_FOUND, f"service {call.service.grouped} is not found!", status=404)
    found = [instance for instance in view.snapshot.instances if instance.cluster == call.clusters]
    if not found:
        raise Refused(Reason.CLUSTER_NOT_FOUND, f"cluster {call.clusters} is not found!", status=404)
    return found


def page_of(call: ReadPage, instances: Sequence[Instance]) -> tuple[Instance, ...]:
    start = max(0, (call.page - 1) * call.size)
    return tuple(instances[start : start + max(0, call.size)])


def subscriber_json(subscriber: Subscriber, service: ServiceKey) -> dict[str, Any]:
    """A subscriber as v1 shows it."""
    name = subscriber.service
    return {
        "addrStr": subscriber.address,
        "agent": subscriber.agent,
        "app": subscriber.app,
        "ip": subscriber.ip,
        "port": subscriber.port,
        "namespaceId": subscriber.namespace,
        "serviceName": name if GROUP_SEPARATOR in name else f"{service.group}{GROUP_SEPARATOR}{name}",
        "cluster": subscriber.cluster,
    }


def read_subscriber(value: Any, service: ServiceKey) -> Subscriber:
    """Reads a subscriber of v1 (1.4.6 has neither port nor cluster) or v3 (which has neither address nor cluster)."""
    row = as_object(value, "subscriber")
    ip, port = str(row.get("ip") or ""), as_int(row.get("port") or 0, "port")
    name = str(row.get("serviceName") or service.name)
    return Subscriber(
        str(row.get("addrStr") or f"{ip}:{port}"),
        str(row.get("agent") or ""),
        str(row.get("app") or row.get("appName") or ""),
        ip,
        port,
        str(row.get("namespaceId") or service.namespace),
        name if GROUP_SEPARATOR in name else f"{row.get('groupName') or service.group}{GROUP_SEPARATOR}{name}",
        str(row.get("cluster") or ""),
    )


def read_namespaces(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Reads the namespaces. Up to 2.5, this list has '' for the default one, `public` elsewhere (nacos-http.md 1.7)."""
    rows = [as_object(row, "namespace") for row in as_list(value, "namespaces")]
    return tuple({**row, "namespace": row.get("namespace") or "public"} for row in rows)

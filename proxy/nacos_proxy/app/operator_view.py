"""Collects the values of `/status` and `/metrics` from the components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from pydantic.alias_generators import to_camel

from nacos_proxy import __version__
from nacos_proxy.app.components import Components
from nacos_proxy.fastpath.table import ResponseTable
from nacos_proxy.frontends.grpc.server import GrpcServer
from nacos_proxy.frontends.operations.endpoints import OperatorView
from nacos_proxy.frontends.operations.metrics import PREFIX, Metrics, Repeated, Sources
from nacos_proxy.model.services import address_of
from nacos_proxy.upstream.grpc.push import GrpcPush
from nacos_proxy.upstream.nacos.registry import NacosRegistry

MAX_FAILING = 100  # published instances whose beats fail, in `/status`
EMBEDDED = "embedded registry, for development: no Nacos is behind it"


def operator_view(components: Components) -> OperatorView:
    sources = Sources(
        components.agent,
        __version__,
        push_up=lambda: {"ok": True, "lost": False}.get(push_status(components)["state"]),
        subscribers=lambda: components.events.readers,
        refused=lambda: components.events.quota.refused,
        repeated=lambda: _repeated(components.response_table),
        more=lambda: _more_metrics(components),
    )
    return OperatorView(
        components.agent,
        components.events,
        Metrics(sources),
        __version__,
        components.started,
        upstream=lambda: upstream_status(components),
        push=lambda: push_status(components),
        polling=lambda: polling_status(components),
        disk=lambda: disk_status(components),
        failing=lambda: components.agent.supervisor.failing,
        more=lambda: more_status(components),
    )


def upstream_status(components: Components) -> Mapping[str, Any]:
    if isinstance(components.registry, NacosRegistry):
        return {"kind": "nacos", **components.registry.status()}
    return {"kind": "embedded", "note": EMBEDDED}


def push_status(components: Components) -> Mapping[str, Any]:
    push = components.push
    if isinstance(push, GrpcPush) and push.alive:
        return {"state": "ok", **push.status()}
    if components.poller.push_alive:
        return {"state": "ok"}
    if components.receiver is not None and isinstance(components.registry, NacosRegistry):
        if components.receiver.covers(components.registry.servers.up):
            return {"state": "ok", "kind": "udp", **components.receiver.tallies()}
    if push is None:
        return {"state": "off"}
    if not components.agent.catalog.cache.watched_keys():
        return {"state": "idle", "reason": "no service is watched"}
    why = ""
    if isinstance(push, GrpcPush) and not push.was_alive:
        if not (why := push.unavailable):
            return {"state": "connecting"}
        if components.settings.push != "on":
            return {"state": "unavailable", "reason": f"{why}; changes are found by polling"}
    interval = components.settings.poll_interval_read
    return {"state": "lost", "reason": f"unavailable; polling every {interval:g} s{f' ({why})' if why else ''}"}


def polling_status(components: Components) -> Mapping[str, Any]:
    """Whether `poll_budget` and the upstream's speed suffice for the watched services."""
    if not components.poller.late:
        return {"state": "ok"}
    waits = f"services wait {components.poller.behind:.0f} s for their poll"
    return {"state": "late", "reason": f"{waits}: too many are watched for poll_budget or for the upstream's speed"}


def disk_status(components: Components) -> Mapping[str, Any]:
    if components.persistence is None:
        return {"state": "off"}
    reason = components.persistence.failing
    return {"state": "failing", "reason": reason} if reason else {"state": "ok"}


def more_status(components: Components) -> Mapping[str, Any]:
    managed = [
        {"service": str(m.service), "address": m.instance.address, "passing": m.passing, "error": m.last_error}
        for m in components.health_checker
    ]
    udp, publications, grpc = components.udp, components.publications, components.grpc
    failing = [
        {"service": str(service), "address": address_of(ip, port), "error": error}
        for (service, ip, port), error in islice(publications.failing.items(), MAX_FAILING)
    ]
    return {
        "managed": managed,
        "published": {"instances": len(publications), "orphaned": publications.orphans, "failing": failing},
        "udpPush": {} if udp is None else {to_camel(name): number for name, number in udp.tallies().items()},
        **({} if grpc is None else {"grpc": {**grpc.status(), "tunnels": grpc.tunnels.status()}}),
        "fastPath": {"answers": len(components.response_table), "bytes": components.response_table.bytes},
    }


def _repeated(table: ResponseTable) -> Iterable[Repeated]:
    for (kind, status), hits in table.hit_counts.items():
        yield Repeated(kind, status, "head", hits.head)
        yield Repeated(kind, status, "target", hits.target)


def _more_metrics(components: Components) -> Iterable[Metric]:
    persistence, registry, tenants = components.persistence, components.registry, components.tenant_counts
    receiver, table, checker = components.receiver, components.response_table, components.health_checker
    publications = components.publications
    unreadable = registry.unreadable if isinstance(registry, NacosRegistry) else 0
    failing, unwritable = (bool(persistence.failing), persistence.unwritable) if persistence else (False, 0)
    for name, text, value in (
        ("tenants", "Tenants that are open, with auth = client", tenants.open),
        ("upstream_embedded", "1 on the embedded registry, with no Nacos behind", components.settings.embedded),
        ("disk_failing", "1 while the state cannot be written", failing),
        ("managed_instances", "Instances that this proxy sends heartbeats for", len(checker)),
        ("published_instances", "Instances of gRPC connections", len(publications)),
        ("published_orphaned", "Published instances whose clients are not back yet", publications.orphans),
        ("published_failing", "Published instances whose beats the upstream refuses", len(publications.failing)),
        ("poll_late_seconds", "How long the most overdue poll has waited", round(components.poller.behind, 3)),
        ("prepared_answers", "Answers that the fast path holds", len(table)),
    ):
        yield GaugeMetricFamily(PREFIX + name, text, value=value)
    received = receiver.received if receiver else 0
    for name, text, value in (
        ("unwritable_rows", "Rows left out of the state file", unwritable),
        ("tenants_refused", "Requests whose token or password was refused, with auth = client", tenants.refused),
        ("unreadable_hosts", "Hosts in the upstream's lists that could not be read", unreadable),
        ("udp_pushes_received", "Datagrams from the upstream that announced changes", received),
    ):
        yield CounterMetricFamily(PREFIX + name, text, value=value)
    if components.grpc is not None:
        yield from _grpc_metrics(components.grpc)
    failures = components.agent.supervisor.failures
    yield _labelled("background_failures", "Failures of background work, which goes on", "part", failures)
    if components.udp is not None:
        yield _labelled("udp_pushes", "Datagrams to legacy clients", "what", components.udp.tallies())


def _grpc_metrics(grpc: GrpcServer) -> Iterable[Metric]:
    up = GaugeMetricFamily(PREFIX + "grpc_up", "1 while Nacos over gRPC is served to SDKs", value=not grpc.off)
    sessions = GaugeMetricFamily(PREFIX + "grpc_sessions", "gRPC connections of SDKs", value=len(grpc.sessions))
    requests = CounterMetricFamily(PREFIX + "grpc_requests", "Requests by gRPC", labels=["type", "outcome"])
    for labels, number in grpc.requests.items():
        requests.add_metric(labels, number)
    refused = CounterMetricFamily(
        PREFIX + "grpc_refused", "gRPC connections refused because the client had too many", value=grpc.budget.refused
    )
    text = "gRPC connections to the upstream for clients: configuration, fuzzy watches"
    tunnels = GaugeMetricFamily(PREFIX + "grpc_tunnels", text, value=grpc.tunnels.status()["open"])
    yield from (up, sessions, requests, refused, tunnels)
    yield _labelled("grpc_pushes", "Pushes by gRPC: sent, and acknowledged late", "what", grpc.pushes.counts)
    yield _labelled("grpc_closed", "gRPC connections that ended, by reason", "reason", grpc.closed)


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    counter = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for label_value, number in values.items():
        counter.add_metric([label_value], number)
    return counter

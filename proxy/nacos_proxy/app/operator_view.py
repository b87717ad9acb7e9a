"""What operators see of the parts: the rows of `/status` and `/metrics` that no part shows by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from nacos_proxy import __version__
from nacos_proxy.app.components import Components
from nacos_proxy.fastpath.table import ResponseTable
from nacos_proxy.frontends.operations.endpoints import OperatorView
from nacos_proxy.frontends.operations.metrics import Metrics, Repeated, Sources
from nacos_proxy.upstream.grpc.push import GrpcPush
from nacos_proxy.upstream.nacos.registry import NacosRegistry

EMBEDDED = "embedded registry, for development: no Nacos is behind it"


def operator_view(parts: Components) -> OperatorView:
    """All that the operations endpoints show."""
    sources = Sources(
        parts.agent,
        __version__,
        push_up=lambda: _push_up(parts),
        subscribers=lambda: parts.events.readers,
        refused=lambda: parts.events.quota.refused,
        repeated=lambda: _repeated(parts.response_table),
        more=lambda: _more_metrics(parts),
    )
    return OperatorView(
        parts.agent,
        parts.events,
        Metrics(sources),
        __version__,
        parts.started,
        upstream=lambda: upstream_status(parts),
        push=lambda: push_status(parts),
        polling=lambda: polling_status(parts),
        disk=lambda: disk_status(parts),
        failing=lambda: parts.agent.supervisor.failing,
        more=lambda: more_status(parts),
    )


def upstream_status(parts: Components) -> Mapping[str, Any]:
    if isinstance(parts.registry, NacosRegistry):
        return {"kind": "nacos", **parts.registry.status()}
    return {"kind": "embedded", "note": EMBEDDED}


def push_status(parts: Components) -> Mapping[str, Any]:
    if parts.poller.push_alive:
        return {"state": "ok"}
    if parts.receiver is not None and isinstance(parts.registry, NacosRegistry):
        if parts.receiver.covers(parts.registry.servers.up):
            return {"state": "ok", "kind": "udp", **parts.receiver.tallies()}
    if parts.push is None:
        return {"state": "off"}
    if not parts.agent.catalog.cache.watched_keys():
        return {"state": "idle", "reason": "no service is followed"}
    if isinstance(parts.push, GrpcPush) and (why := parts.push.unavailable) and parts.settings.push != "on":
        return {"state": "unavailable", "reason": f"{why}; changes are found by polling"}
    return {"state": "lost", "reason": "polling keeps time"}


def _push_up(parts: Components) -> bool | None:
    return {"ok": True, "lost": False}.get(push_status(parts)["state"])


def polling_status(parts: Components) -> Mapping[str, Any]:
    """Whether `poll_budget` and the upstream's pace suffice for what is watched."""
    if not parts.poller.late:
        return {"state": "ok"}
    waits = f"services wait {parts.poller.behind:.0f} s for their turn"
    reason = f"{waits}: more is watched than poll_budget or the pace of the upstream allows"
    return {"state": "late", "reason": reason}


def disk_status(parts: Components) -> Mapping[str, Any]:
    if parts.persistence is None:
        return {"state": "off"}
    return {"state": "failing", "reason": parts.persistence.failing} if parts.persistence.failing else {"state": "ok"}


def more_status(parts: Components) -> Mapping[str, Any]:
    managed = [
        {"service": str(m.service), "address": m.instance.address, "passing": m.passing, "error": m.last_error}
        for m in parts.health_checker
    ]
    udp = parts.udp
    return {
        "managed": managed,
        "udpPush": {} if udp is None else {_camel(name): number for name, number in udp.tallies().items()},
        "fastPath": {"answers": len(parts.response_table), "bytes": parts.response_table.bytes},
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _repeated(answers: ResponseTable) -> Iterable[Repeated]:
    for (kind, status), tally in answers.hit_counts.items():
        yield Repeated(kind, status, "head", tally.head)
        yield Repeated(kind, status, "target", tally.target)


def _more_metrics(parts: Components) -> Iterable[Metric]:
    gauges = {
        "tenants": ("Tenants that are open, with auth = client", parts.tenants.open),
        "upstream_embedded": ("1 on the embedded registry, with no Nacos behind", int(parts.settings.embedded)),
        "disk_failing": (
            "1 while the state cannot be written",
            int(bool(parts.persistence and parts.persistence.failing)),
        ),
        "managed_instances": ("Instances that this proxy beats for", len(parts.health_checker)),
        "poll_late_seconds": ("How long the service waits whose poll is longest due", round(parts.poller.behind, 3)),
        "prepared_answers": ("Answers that the fast path holds", len(parts.response_table)),
    }
    counters = {
        "unwritable_rows": (
            "Rows that are left out of the state file",
            parts.persistence.unwritable if parts.persistence else 0,
        ),
        "tenants_refused": ("Requests whose token or password was refused, with auth = client", parts.tenants.refused),
        "unreadable_hosts": (
            "Hosts that the upstream lists and nobody can read",
            parts.registry.unreadable if isinstance(parts.registry, NacosRegistry) else 0,
        ),
        "udp_pushes_received": (
            "Datagrams by which the upstream told of changes",
            parts.receiver.received if parts.receiver else 0,
        ),
    }
    for kind, families in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, (text, value) in families.items():
            family = kind(f"nacos_proxy_{name}", text)
            family.add_metric([], value)
            yield family
    failures = CounterMetricFamily(
        "nacos_proxy_background_failures", "Failures of work that goes on all the same", labels=["part"]
    )
    for name, number in parts.agent.supervisor.failures.items():
        failures.add_metric([name], number)
    yield failures
    if parts.udp is not None:
        counter = CounterMetricFamily("nacos_proxy_udp_pushes", "Datagrams to legacy clients", labels=["what"])
        for name, number in parts.udp.tallies().items():
            counter.add_metric([name], number)
        yield counter

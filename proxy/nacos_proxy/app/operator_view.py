"""What operators see: the values of `/status` and `/metrics` that come from several components."""

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


def operator_view(components: Components) -> OperatorView:
    """Everything that the operations endpoints show."""
    sources = Sources(
        components.agent,
        __version__,
        push_up=lambda: _push_up(components),
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
    if components.poller.push_alive:
        return {"state": "ok"}
    if components.receiver is not None and isinstance(components.registry, NacosRegistry):
        if components.receiver.covers(components.registry.servers.up):
            return {"state": "ok", "kind": "udp", **components.receiver.tallies()}
    if components.push is None:
        return {"state": "off"}
    if not components.agent.catalog.cache.watched_keys():
        return {"state": "idle", "reason": "no service is watched"}
    if (
        isinstance(components.push, GrpcPush)
        and (why := components.push.unavailable)
        and components.settings.push != "on"
    ):
        return {"state": "unavailable", "reason": f"{why}; changes are found by polling"}
    interval = components.settings.poll_interval_read
    return {"state": "lost", "reason": f"unavailable; polling every {interval:g} s"}


def _push_up(components: Components) -> bool | None:
    return {"ok": True, "lost": False}.get(push_status(components)["state"])


def polling_status(components: Components) -> Mapping[str, Any]:
    """Whether `poll_budget` and the upstream's pace suffice for the watched services."""
    if not components.poller.late:
        return {"state": "ok"}
    waits = f"services wait {components.poller.behind:.0f} s for their poll"
    reason = f"{waits}: more services are watched than poll_budget or the upstream's pace allows"
    return {"state": "late", "reason": reason}


def disk_status(components: Components) -> Mapping[str, Any]:
    if components.persistence is None:
        return {"state": "off"}
    return (
        {"state": "failing", "reason": components.persistence.failing}
        if components.persistence.failing
        else {"state": "ok"}
    )


def more_status(components: Components) -> Mapping[str, Any]:
    managed = [
        {"service": str(m.service), "address": m.instance.address, "passing": m.passing, "error": m.last_error}
        for m in components.health_checker
    ]
    udp = components.udp
    return {
        "managed": managed,
        "udpPush": {} if udp is None else {_camel(name): number for name, number in udp.tallies().items()},
        "fastPath": {"answers": len(components.response_table), "bytes": components.response_table.bytes},
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _repeated(answers: ResponseTable) -> Iterable[Repeated]:
    for (kind, status), tally in answers.hit_counts.items():
        yield Repeated(kind, status, "head", tally.head)
        yield Repeated(kind, status, "target", tally.target)


def _more_metrics(components: Components) -> Iterable[Metric]:
    gauges = {
        "tenants": ("Tenants that are open, with auth = client", components.tenants.open),
        "upstream_embedded": ("1 on the embedded registry, with no Nacos behind", int(components.settings.embedded)),
        "disk_failing": (
            "1 while the state cannot be written",
            int(bool(components.persistence and components.persistence.failing)),
        ),
        "managed_instances": ("Instances that this proxy sends heartbeats for", len(components.health_checker)),
        "poll_late_seconds": ("How long the most overdue poll has waited", round(components.poller.behind, 3)),
        "prepared_answers": ("Answers that the fast path holds", len(components.response_table)),
    }
    counters = {
        "unwritable_rows": (
            "Rows left out of the state file",
            components.persistence.unwritable if components.persistence else 0,
        ),
        "tenants_refused": (
            "Requests whose token or password was refused, with auth = client",
            components.tenants.refused,
        ),
        "unreadable_hosts": (
            "Hosts in the upstream's lists that could not be read",
            components.registry.unreadable if isinstance(components.registry, NacosRegistry) else 0,
        ),
        "udp_pushes_received": (
            "Datagrams from the upstream that announced changes",
            components.receiver.received if components.receiver else 0,
        ),
    }
    for kind, families in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, (text, value) in families.items():
            family = kind(f"nacos_proxy_{name}", text)
            family.add_metric([], value)
            yield family
    failures = CounterMetricFamily(
        "nacos_proxy_background_failures", "Failures of background work, which goes on", labels=["part"]
    )
    for name, number in components.agent.supervisor.failures.items():
        failures.add_metric([name], number)
    yield failures
    if components.udp is not None:
        counter = CounterMetricFamily("nacos_proxy_udp_pushes", "Datagrams to legacy clients", labels=["what"])
        for name, number in components.udp.tallies().items():
            counter.add_metric([name], number)
        yield counter

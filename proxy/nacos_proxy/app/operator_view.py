"""Collects the values of `/status` and `/metrics` from the components."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from pydantic.alias_generators import to_camel

from nacos_proxy import __version__
from nacos_proxy.app.components import Components
from nacos_proxy.app.logs import LINES
from nacos_proxy.background.webhooks import Webhooks
from nacos_proxy.frontends.dns.responder import Counts
from nacos_proxy.frontends.dns.server import DnsServer
from nacos_proxy.frontends.grpc.server import GrpcServer
from nacos_proxy.frontends.operations.metrics import PREFIX, Answered, Metrics, Sources
from nacos_proxy.frontends.operations.status import OperatorView
from nacos_proxy.model.addresses import address_of
from nacos_proxy.model.histogram import Histogram
from nacos_proxy.upstream.grpc.push import GrpcPush
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.proxy.events import ProxyEvents
from nacos_proxy.wire.http import RouteName

MAX_OUT = 100  # instances out of traffic, in `/status`
MAX_FAILING = 100  # published instances whose beats fail, in `/status`
EMBEDDED = "embedded registry, for development: no Nacos is behind it"


def operator_view(components: Components) -> OperatorView:
    sources = Sources(
        components.agent,
        __version__,
        push_up=lambda: {"ok": True, "lost": False}.get(push_status(components)["state"]),
        subscribers=lambda: components.events.readers,
        refused=lambda: components.events.quota.refused,
        answered=lambda: _answered(components),
        repeated=lambda: _repeated(components),
        reads=lambda: _reads(components),
        lines=lambda: LINES.lines,
        certificate_ends=components.certificate_ends,
        more=lambda: _more_metrics(components),
    )
    return OperatorView(
        components.agent,
        components.events,
        Metrics(sources),
        __version__,
        components.started,
        socket.gethostname(),
        None if components.settings.auth == "client" else "admin",
        upstream=lambda: upstream_status(components),
        push=lambda: push_status(components),
        polling=lambda: polling_status(components),
        disk=lambda: disk_status(components),
        service_files=lambda: service_files_status(components),
        failing=lambda: components.agent.supervisor.failing,
        more=lambda: more_status(components),
    )


def upstream_status(components: Components) -> Mapping[str, Any]:
    if isinstance(components.registry, NacosRegistry):
        kind = "proxy" if components.registry.of_proxy else "nacos"
        return {"kind": kind, **components.registry.status()}
    return {"kind": "embedded", "note": EMBEDDED}


def push_status(components: Components) -> Mapping[str, Any]:
    push = components.push
    if isinstance(push, GrpcPush | ProxyEvents) and push.alive:
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
    if isinstance(push, GrpcPush | ProxyEvents) and not push.was_alive:
        if not (why := push.unavailable):
            return {"state": "connecting"}
        if components.settings.push != "on" and not components.settings.of_proxy:
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


def service_files_status(components: Components) -> Mapping[str, Any]:
    files = components.service_files
    if files.directory is None:
        return {}
    shown = {"directory": str(files.directory), "files": files.files, "errors": files.errors}
    if not files.errors:
        return {"state": "ok", **shown}
    return {
        "state": "failing",
        "reason": "; ".join(f"{name}: {error}" for name, error in files.errors.items()),
        **shown,
    }


def more_status(components: Components) -> Mapping[str, Any]:
    managed = [
        {
            "service": str(m.service),
            "address": m.instance.address,
            "passing": m.passing,
            "error": m.last_error or m.refused,
            **({"file": m.file, "phase": m.phase} if m.file else {}),
        }
        for m in components.health_checker
    ]
    out = list(_out_of_traffic(components))
    udp, publications, grpc, dns = components.udp, components.publications, components.grpc, components.dns
    failing = [
        {"service": str(service), "address": address_of(ip, port), "error": error}
        for (service, ip, port), error in islice(publications.failing.items(), MAX_FAILING)
    ]
    return {
        "managed": managed,
        "webhooks": [hook.status() for hook in components.webhooks],
        "outOfTraffic": {"instances": len(out), "shown": out[:MAX_OUT]},
        "published": {"instances": len(publications), "orphaned": publications.orphans, "failing": failing},
        "udpPush": {} if udp is None else {to_camel(name): number for name, number in udp.tallies().items()},
        **({} if grpc is None else {"grpc": {**grpc.status(), "tunnels": grpc.tunnels.status()}}),
        **({} if components.agent_check is None else {"agentCheck": components.agent_check.status()}),
        **({} if dns is None else {"dns": {**dns.status(), "zones": list(components.settings.dns_zone)}}),
        "fastPath": {"answers": len(components.response_table), "bytes": components.response_table.bytes},
    }


def _out_of_traffic(components: Components) -> Iterator[Mapping[str, Any]]:
    now, wall = components.clock.now(), components.clock.wall()
    for drain in components.agent.catalog.drains:
        if drain.ended_at is None:
            row = {"service": str(drain.service), "address": drain.instance.address, "state": drain.state(now)}
            yield {**row, "reason": drain.error, "secondsLeft": round(max(0.0, drain.until - now), 3)}
    for checked in components.health_checker:
        if (maintenance := checked.maintenance) is not None:
            row = {"service": str(checked.service), "address": checked.instance.address, "state": "maintenance"}
            yield {**row, "reason": maintenance.reason, "forSeconds": round(max(0.0, wall - maintenance.since), 3)}


def _answered(components: Components) -> Iterator[Answered]:
    """Requests by HTTP, gRPC and DNS. A tenant sees none: they are those of all."""
    if components.of_tenant:
        return
    times, none, repeats = components.request_times, Histogram(), Counter[tuple[RouteName, int | str]]()
    for (route, status), hits in components.response_table.hit_counts.items():
        repeats[route, status] = hits.head + hits.target
    for route, status in dict.fromkeys((*times, *repeats)):
        yield Answered(route, str(status), times.get((route, status), none), repeats[route, status])
    if components.grpc is not None:
        for (route, outcome), durations in components.grpc.request_times.items():
            yield Answered(route, str(outcome), durations)
    if components.dns is not None:
        counts = components.dns.responder.counts
        for code, number in counts.answers.items():
            waited = counts.waited.get(code, none)
            yield Answered(RouteName("dns", "query"), code, waited, number - waited.count)


def _repeated(components: Components) -> Mapping[str, int]:
    """Those of all tenants, hence for none of them."""
    hits = components.response_table.hit_counts.values()
    return {} if components.of_tenant else {"head": sum(h.head for h in hits), "target": sum(h.target for h in hits)}


def _reads(components: Components) -> Mapping[str, int]:
    """Those that were answered from prepared answers, or for DNS from the cache without the agent."""
    reads = Counter(hit=sum(_repeated(components).values()))
    if components.dns is not None:
        reads += components.dns.responder.counts.reads
    del reads[""]
    return reads


def _more_metrics(components: Components) -> Iterable[Metric]:
    persistence, registry, tenants = components.persistence, components.registry, components.tenant_counts
    receiver, table, checker = components.receiver, components.response_table, components.health_checker
    publications, files, supervisor = components.publications, components.service_files, components.agent.supervisor
    stream = components.push if isinstance(components.push, ProxyEvents) else None
    unreadable = registry.unreadable if isinstance(registry, NacosRegistry) else 0
    failing, unwritable = (bool(persistence.failing), persistence.unwritable) if persistence else (False, 0)
    for name, text, value in (
        ("tenants", "Tenants that are open, with auth = client", tenants.open),
        ("upstream_proxy", "1 if the upstream is another proxy", components.settings.of_proxy),
        ("upper_stream_open", "1 while the event stream of the upper proxy is open", bool(stream and stream.open)),
        ("upstream_embedded", "1 on the embedded registry, with no Nacos behind", components.settings.embedded),
        ("disk_failing", "1 while the state cannot be written", failing),
        ("managed_instances", "Instances that this proxy sends heartbeats for", len(checker)),
        ("service_files_broken", "Service files that are not used because of an error", len(files.errors)),
        ("draining_instances", "Instances that are out of traffic and not deregistered yet", components.drainer.active),
        ("maintained_instances", "Managed instances in maintenance", sum(m.maintenance is not None for m in checker)),
        ("published_instances", "Instances of gRPC connections", len(publications)),
        ("published_orphaned", "Published instances whose clients are not back yet", publications.orphans),
        ("published_failing", "Published instances whose beats the upstream refuses", len(publications.failing)),
        ("poll_late_seconds", "How long the most overdue poll has waited", round(components.poller.behind, 3)),
        ("prepared_answers", "Answers that the fast path holds", len(table)),
        ("background_failing", "Parts whose background work failed within the last minute", len(supervisor.failing)),
    ):
        yield GaugeMetricFamily(PREFIX + name, text, value=value)
    received = receiver.received if receiver else 0
    push = components.push
    reconnects = push.reconnects if isinstance(push, GrpcPush | ProxyEvents) else 0
    for name, text, value in (
        ("unwritable_rows", "Rows left out of the state file", unwritable),
        ("tenants_refused", "Requests whose token or password was refused, with auth = client", tenants.refused),
        ("unreadable_hosts", "Hosts in the upstream's lists that could not be read", unreadable),
        ("push_reconnects", "Connections for push by gRPC or from an upper proxy that followed a lost one", reconnects),
        ("udp_pushes_received", "Datagrams from the upstream that announced changes", received),
    ):
        yield CounterMetricFamily(PREFIX + name, text, value=value)
    text = "Event streams of the upper proxy that followed another one: resumed, or reset by another run of it"
    again = {} if stream is None else {"resumed": stream.resumed, "reset": stream.resets}
    yield _labelled("upper_streams", text, "how", again)
    text = "1 while this server of the upstream answers; its URL is the label"
    nodes = GaugeMetricFamily(PREFIX + "upstream_node_up", text, labels=["node"])
    for server in registry.servers.all if isinstance(registry, NacosRegistry) else ():
        nodes.add_metric([server.url], server.up)
    yield nodes
    yield from _webhook_metrics(components.webhooks)
    if components.grpc is not None:
        yield from _grpc_metrics(components.grpc)
    answers = Counter[str]() if components.agent_check is None else components.agent_check.answers
    yield _labelled("agent_checks", "Agent checks of HAProxy; silent: HAProxy keeps the state", "answer", answers)
    yield from _dns_metrics(components.dns)
    yield _labelled("background_failures", "Failures of background work, which goes on", "part", supervisor.failures)
    if components.udp is not None:
        yield _labelled("udp_pushes", "Datagrams to legacy clients", "what", components.udp.tallies())


def _webhook_metrics(webhooks: Webhooks) -> Iterable[Metric]:
    """They name a webhook by its number and host: the rest of its URL may be secret."""
    text = "Requests to webhooks, by outcome"
    requests = CounterMetricFamily(PREFIX + "webhook_requests", text, labels=["webhook", "host", "outcome"])
    text = "Services whose newest state waits for a webhook"
    pending = GaugeMetricFamily(PREFIX + "webhook_pending", text, labels=["webhook", "host"])
    for hook in webhooks:
        pending.add_metric([str(hook.number), hook.host], hook.pending)
        for outcome, number in hook.outcomes.items():
            requests.add_metric([str(hook.number), hook.host, outcome], number)
    yield from (requests, pending)


def _grpc_metrics(grpc: GrpcServer) -> Iterable[Metric]:
    up = GaugeMetricFamily(PREFIX + "grpc_up", "1 while Nacos over gRPC is served to SDKs", value=not grpc.off)
    sessions = GaugeMetricFamily(PREFIX + "grpc_sessions", "gRPC connections of SDKs", value=len(grpc.sessions))
    refused = CounterMetricFamily(
        PREFIX + "grpc_refused", "gRPC connections refused because the client had too many", value=grpc.budget.refused
    )
    text = "gRPC connections to the upstream for clients: configuration, fuzzy watches"
    tunnels = GaugeMetricFamily(PREFIX + "grpc_tunnels", text, value=grpc.tunnels.status()["open"])
    yield from (up, sessions, refused, tunnels)
    yield _labelled("grpc_pushes", "Pushes by gRPC: sent, and acknowledged late", "what", grpc.pushes.counts)
    yield _labelled("grpc_closed", "gRPC connections that ended, by reason", "reason", grpc.closed)


def _dns_metrics(dns: DnsServer | None) -> Iterable[Metric]:
    counts = Counts() if dns is None else dns.responder.counts
    for name, text, value in (
        ("dns_up", "1 while DNS is served", dns is not None and not dns.off),
        ("dns_waiting", "Queries by DNS that wait for a read", 0 if dns is None else dns.responder.waiting.total),
        ("dns_prepared", "Answers by DNS that are held to be repeated", 0 if dns is None else dns.prepared),
    ):
        yield GaugeMetricFamily(PREFIX + name, text, value=value)
    yield _labelled("dns_answers", "Answers by DNS, by code", "code", counts.answers)
    yield _labelled(
        "dns_dropped", "Queries by DNS that were dropped or answered without a read", "reason", counts.dropped
    )
    for name, text, value in (
        ("dns_repeated", "Answers by DNS from prepared bytes", counts.repeated),
        ("dns_truncated", "Answers by DNS that did not fit", counts.truncated),
    ):
        yield CounterMetricFamily(PREFIX + name, text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    counter = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for label_value, number in values.items():
        counter.add_metric([label_value], number)
    return counter

"""The state of the proxy for operators: readiness with advice, a summary, the services, and one of them as a whole.

Never here: HTTP, HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.entries import Entry
from nacos_proxy.catalog.freshness import Freshness
from nacos_proxy.catalog.registrations import Registration
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.open_streams import Right
from nacos_proxy.frontends.operations.census import Census
from nacos_proxy.frontends.operations.metrics import Metrics
from nacos_proxy.frontends.rest.states import states_json
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import in_turns
from nacos_proxy.wire.nacos.hosts import host_json

# States of push, polling and disk with which the proxy is not degraded.
_HEALTHY = ("off", "ok", "idle", "connecting", "unavailable")
NOTHING_CACHED = "cache: nothing is known yet"
# What an operator does about a reason of `readiness`, by its first word.
_ADVICE = {
    "upstream": "Reads are answered from memory meanwhile. Check that Nacos runs and that this host reaches it: "
    "`nacos-proxy doctor` names the cause.",
    "cache": "Nothing was read before the upstream was lost, so reads fail until it answers.",
    "push": "Changes are found by polling meanwhile, some seconds later. Check that this host reaches the gRPC port "
    "of Nacos (HTTP port + 1000), or the upper proxy if the upstream is one.",
    "polling": "Raise poll_budget, or find out why Nacos answers slowly.",
    "disk": "Make space in state_dir, or correct its owner. A restart during an outage would lose the last known "
    "state.",
    "services_dir": "Correct the service file, then send SIGHUP to the proxy: `systemctl reload nacos-proxy`.",
    "failing": "The task starts again by itself. The log has its traceback; please report it.",
    "login": "Correct username and password_file, then restart the proxy.",
    "registrations": "Spread the services over more hosts. The newest instances are registered, but are not "
    "registered again if Nacos loses them.",
    "stopping": "The proxy ends. Send clients to another one.",
    "node": "The other nodes of the cluster answer. Repair this one, or remove it from upstream.",
}
_NO_ADVICE = "docs/operations.md explains it."
Condition = Literal["fresh", "stale", "expired", "missing", "unhealthy", "empty", "failing"]
Sort = Literal[
    "name",
    "namespace",
    "state",
    "age",
    "instances",
    "healthy",
    "subscribers",
    "-name",
    "-namespace",
    "-state",
    "-age",
    "-instances",
    "-healthy",
    "-subscribers",
]


@dataclass(frozen=True, slots=True)
class OperatorView:
    """The sources of the status. Each function returns current values for JSON, without secrets.

    `upstream`: kind, servers, login, maybe `note`. `push`, `polling`, `disk`, `service_files`:
    `state` (one of `_HEALTHY`, or the problem), maybe `reason`. `failing`: the reason for each background task that
    failed lately. `started` is in seconds of the agent's clock. `host`: the name of this host. `right`: what a request
    may do if the proxy has no API tokens; None: only the upstream knows.
    """

    agent: Agent
    events: EventsApi
    metrics: Metrics
    version: str
    started: float
    host: str = ""
    right: Right | None = "admin"
    upstream: Callable[[], Mapping[str, Any]] = dict
    push: Callable[[], Mapping[str, Any]] = dict
    polling: Callable[[], Mapping[str, Any]] = dict
    disk: Callable[[], Mapping[str, Any]] = dict
    service_files: Callable[[], Mapping[str, Any]] = dict
    failing: Callable[[], Mapping[str, str]] = dict
    more: Callable[[], Mapping[str, Any]] = dict


def readiness(view: OperatorView) -> tuple[str, list[str]]:
    """`ready`, `degraded` or `unready`, and the reasons. A proxy that cannot answer any read is unready.

    The reasons name upstream servers that are down; the proxy is only degraded if more than half of them are.
    """
    catalog = view.agent.catalog
    reasons: list[str] = []
    if not catalog.breaker.up:
        reasons.append(f"upstream: {catalog.breaker.reason or 'no answer'}")
        if not _knows_any(catalog.cache):
            return "unready", [*reasons, NOTHING_CACHED]
    elif catalog.breaker.doubt:
        reasons.append(f"upstream: the upper proxy has lost its upstream: {catalog.breaker.doubt}")
    parts = {"push": view.push, "polling": view.polling, "disk": view.disk, "services_dir": view.service_files}
    for name, shown in ((name, part()) for name, part in parts.items()):
        state = shown.get("state", "off")
        if state not in _HEALTHY:
            reasons.append(f"{name}: {shown.get('reason') or state}")
    reasons += [f"failing: {name}: {why}" for name, why in view.failing().items()]
    upstream = view.upstream()
    if refused := upstream.get("login", {}).get("error"):
        reasons.append(f"login: {refused}")
        if not _knows_any(catalog.cache):
            return "unready", [*reasons, NOTHING_CACHED]
    if catalog.registrations.full:
        reasons.append("registrations: more than can be remembered; the newest are not registered again after a loss")
    if view.events.closed:
        reasons.append("stopping")
    servers: list[Mapping[str, Any]] = upstream.get("servers", [])
    down = [s for s in servers if s["state"] == "down"] if len(servers) > 1 and catalog.breaker.up else []
    notes = [f"upstream: {upstream['note']}"] if "note" in upstream else []
    notes += [f"node {s['url']}: down: {s['error']}" for s in down]
    return ("degraded" if reasons or 2 * len(down) > len(servers) else "ready"), [*reasons, *notes]


def _knows_any(cache: Cache) -> bool:
    """Whether a read could be answered. It restores what is still on disk, so ask only while the upstream is away."""
    return any(entry.visible is not None for entry in cache.entries())


def advice_on(reason: str) -> str:
    """What to do about a reason of `readiness`. Empty if there is nothing to do."""
    word = reason.partition(":")[0].partition(" ")[0]
    return "" if reason.startswith("upstream: embedded") else _ADVICE.get(word, _NO_ADVICE)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which services are shown; an empty field filters nothing. `condition`: a `Condition`."""

    search: str = ""
    namespace: str = ""
    group: str = ""
    condition: str = ""

    def shows(self, entry: Entry, state: Freshness) -> bool:
        key = entry.key
        if (self.namespace and key.namespace != self.namespace) or (self.group and key.group != self.group):
            return False
        if self.search and self.search.casefold() not in key.grouped.casefold():
            return False
        if not self.condition or state.value == self.condition:
            return True
        instances = entry.visible.instances if entry.visible is not None else ()
        if self.condition == "unhealthy":
            return any(not one.healthy for one in instances)
        return not instances if self.condition == "empty" else self.condition == "failing" and entry.error is not None


@dataclass(frozen=True, slots=True)
class Page:
    """`limit` services from `offset` on, of those that the filter shows. `sort`: a `Sort`."""

    limit: int
    offset: int = 0
    filter: Filter = field(default_factory=Filter)
    sort: str = "name"


async def status_json(view: OperatorView, page: Page) -> dict[str, Any]:
    """The state as JSON.

    Other tasks run between the services, so it may mix values from before and after a change.
    """
    agent, catalog = view.agent, view.agent.catalog
    cache, now, breaker = catalog.cache, agent.clock.now(), catalog.breaker
    summary, found = Census(), list[tuple[Any, Entry]]()
    key, descending = _sort_key(page.sort.removeprefix("-")), page.sort.startswith("-")
    async for entry in in_turns(list(cache.entries()), 500):
        result = cache.result_of(entry, now)
        summary.add(entry, result, cache.is_watched(entry, now))
        if page.filter.shows(entry, result.freshness):
            found.append((key(entry, result.freshness, result.age), entry))
    found.sort(key=lambda pair: pair[1].key)
    found.sort(key=lambda pair: pair[0], reverse=descending)
    chosen = [entry for _, entry in found[page.offset : page.offset + page.limit]]
    services = [_row_json(view, entry, now) async for entry in in_turns(chosen, 100)]
    status, reasons = readiness(view)
    return {
        "version": view.version,
        "host": view.host,
        "status": status,
        "warnings": [{"reason": reason, "advice": advice_on(reason)} for reason in reasons],
        "summary": _summary_json(view, summary),
        "uptimeSeconds": round(now - view.started, 3),
        "upstream": {
            "state": "up" if breaker.up else "down",
            "forSeconds": round(now - max(breaker.since, view.started), 3),
            "reason": breaker.reason,
            **view.upstream(),
        },
        "push": {"state": "off", **view.push()},
        "disk": {"state": "off", **view.disk()},
        **({"serviceFiles": files} if (files := view.service_files()) else {}),
        "failing": view.failing(),
        "subscribers": {"streams": view.events.readers, "byClient": view.events.quota.clients},
        "registrations": len(catalog.registrations),
        "lastEventId": catalog.hub.last_id,
        "counts": asdict(agent.counts),
        **view.more(),
        "servicesTotal": summary.states.total(),
        "servicesFound": len(found),
        "offset": page.offset,
        "limit": page.limit,
        "truncated": len(services) < len(found),
        "services": services,
    }


def service_json(view: OperatorView, key: ServiceKey) -> dict[str, Any]:
    """One service with all its instances that this host knows, also those that lists omit. It asks no one.

    Each instance has `listed` (whether the upstream's list has it), `origin` and, if any, `drain` and `maintenance`.
    """
    agent, catalog = view.agent, view.agent.catalog
    entry = catalog.cache.get(key) or Entry(key)
    listed = entry.visible or Snapshot(key)
    hosts: list[dict[str, Any]] = []
    for one in listed.instances:
        registration = catalog.registrations.find(key, one.ip, one.port)
        shown = {"listed": True, "origin": _origin(registration), **states_json(agent, registration)}
        hosts.append(host_json(one, key) | shown)
    for registration in catalog.registrations.of_service(key):
        one = registration.instance
        if listed.find(one.ip, one.port) is None:
            shown = {"listed": False, "origin": _origin(registration), **states_json(agent, registration)}
            hosts.append(host_json(one, key) | shown)
    return {**_row_json(view, entry, agent.clock.now()), "hosts": hosts}


def _origin(registration: Registration | None) -> str:
    """Where an instance came from: `elsewhere`, or how it was registered through this proxy."""
    if registration is None:
        return "elsewhere"
    if registration.of_connection:
        return "connection"
    return "client" if registration.check is None else "file" if registration.check.get("file") else "check"


def _row_json(view: OperatorView, entry: Entry, now: float) -> dict[str, Any]:
    cache = view.agent.catalog.cache
    result, shown = cache.result_of(entry, now), entry.visible
    instances = shown.instances if shown is not None else ()
    return {
        "service": entry.key.grouped,
        "namespaceId": entry.key.namespace,
        "state": result.freshness.value,
        "ageSeconds": round(max(0.0, result.age), 3) if shown is not None else None,  # it may be younger than `now`
        "instances": len(instances),
        "healthy": sum(1 for i in instances if i.healthy),
        "watched": cache.is_watched(entry, now),
        "subscribers": entry.watcher_count,
        "registeredHere": entry.local_registrations,
        "pendingWrites": len(entry.pending),
        "fromDisk": entry.from_disk,
        "error": str(entry.error) if entry.error is not None else None,
        "revision": shown.revision if shown is not None else None,
    }


def _summary_json(view: OperatorView, summary: Census) -> dict[str, Any]:
    reads, hits = view.metrics.reads()
    return {
        "services": summary.states.total(),
        "states": {state.value: number for state, number in summary.states.items()},
        "namespaces": dict(sorted(summary.namespaces.items())),
        "groups": dict(sorted(summary.groups.items())),
        "watched": summary.watched,
        "instances": summary.instances,
        "healthy": summary.healthy,
        "oldestAgeSeconds": None if summary.oldest_age is None else round(summary.oldest_age, 3),
        "reads": reads,
        "hits": hits,
    }


def _sort_key(name: str) -> Callable[[Entry, Freshness, float], Any]:
    order = {state: number for number, state in enumerate(Freshness)}

    def healthy(entry: Entry) -> int:
        return sum(one.healthy for one in entry.visible.instances) if entry.visible is not None else 0

    keys: dict[str, Callable[[Entry, Freshness, float], Any]] = {
        "name": lambda entry, state, age: entry.key.name,
        "namespace": lambda entry, state, age: entry.key.namespace,
        "state": lambda entry, state, age: order[state],
        "age": lambda entry, state, age: age,
        "instances": lambda entry, state, age: len(entry.visible.instances) if entry.visible is not None else 0,
        "healthy": lambda entry, state, age: healthy(entry),
        "subscribers": lambda entry, state, age: entry.watcher_count,
    }
    return keys[name]

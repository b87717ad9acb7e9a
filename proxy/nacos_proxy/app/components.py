"""Everything that runs, made once from the settings, started and finished in order. No behaviour of its own.

Not for: which policy a setting becomes (`policies`), the app in front of the parts (`server`).
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson

from nacos_proxy.app.policies import (
    cache_policy,
    events_policy,
    guard_policy,
    nacos_policy,
    networks,
    overlay_policy,
)
from nacos_proxy.app.settings import BadSettings, Settings
from nacos_proxy.background.health_checker import HealthChecker, HealthCheckerPolicy
from nacos_proxy.background.persistence import Disk, DiskPolicy
from nacos_proxy.background.poller import Poller, PollPolicy
from nacos_proxy.background.state_file import StateFile
from nacos_proxy.background.udp_push import UdpPolicy, UdpPush
from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.circuit_breaker import Breaker, BreakerPolicy
from nacos_proxy.catalog.hub import Hub, HubPolicy
from nacos_proxy.catalog.registrations import Registrations, RegistrationsPolicy
from nacos_proxy.catalog.udp_subscribers import Pushes, PushesPolicy
from nacos_proxy.core.agent import (
    Agent,
    AgentPolicy,
    Catalog,
    Follower,
)
from nacos_proxy.fastpath.table import ResponseTable, ResponseTablePolicy
from nacos_proxy.frontends.auth import GuardPolicy
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.nacos.passthrough import Forwarder
from nacos_proxy.frontends.rest.reads import Reads
from nacos_proxy.model.errors import Refused
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.upstream.contract import Registry, Watchable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.grpc.push import GrpcPush, PushPolicy, available
from nacos_proxy.upstream.nacos.login import NOBODY, Credential
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.rights import Telling
from nacos_proxy.upstream.nacos.servers import Server, Servers
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.hosts import list_json

log = logging.getLogger("nacos_proxy.parts")

CONFIRM_WITHIN = 1.0  # seconds from a start: an upstream that is there says what a kill kept from the disk


@dataclass(slots=True)
class Components:
    """Everything that runs, made once. `followers` of a change are called in this order: answers, hub, disk, udp."""

    settings: Settings
    clock: Clock
    agent: Agent
    registry: Registry
    poller: Poller
    response_table: ResponseTable
    reads: Reads
    events: EventsApi
    health_checker: HealthChecker
    guard: GuardPolicy
    checks: Callable[[], bool]  # whether Nacos's parameter check applies
    push: Watchable | None = None
    persistence: Disk | None = None
    receiver: PushReceiver | None = None
    udp: UdpPush | None = None
    forwarder: Forwarder | None = None
    started: float = field(default=0.0)
    tenants: Callable[[], tuple[int, int]] = lambda: (0, 0)  # those that are open, and how often one was refused
    at_end: list[Callable[[], None]] = field(default_factory=lambda: [])


def build(s: Settings, clock: Clock) -> Components:
    """The parts, wired, nothing started. Raises `disk.StateLocked`, `ValueError` for settings that cannot be."""
    supervisor = Supervisor(clock)
    registry, push = _embedded(clock, supervisor) if s.embedded else _upstream(s, clock, supervisor)
    policy, asked = AgentPolicy(s.cold_wait, outage_writes=s.outage_writes), registry
    if s.auth == "client" and isinstance(registry, NacosRegistry):
        # Who shows no token is nobody: neither the server's identity nor what was accepted unchecked is theirs.
        policy, asked = AgentPolicy(s.cold_wait, strict=True), registry.acting_as(NOBODY)
    answers = ResponseTable(ResponseTablePolicy())
    parts = _wired(s, clock, asked, policy, guard_policy(s), answers, _checks(s, registry), supervisor, push)
    parts.registry = registry
    if isinstance(registry, Forwarder):
        parts.forwarder = registry
    if isinstance(registry, NacosRegistry):
        _follow(parts, registry.servers)
        parts.receiver = registry.receiver
        if parts.receiver is not None:
            parts.receiver.hint = parts.poller.told
    return parts


def _checks(s: Settings, registry: Registry) -> Callable[[], bool]:
    """As told, else as the servers do it. One that has not told its version yet says itself what it does not take."""
    servers = registry.servers if isinstance(registry, NacosRegistry) else None
    match s.parameter_check:
        case "auto" if servers is not None:
            return lambda: servers.checking
        case said:
            return lambda: said != "off"


def _follow(parts: Components, servers: Servers) -> None:
    """Another server may have lost its memory, too: until `finish` the parts hear of it."""

    def changed(_: Server) -> None:
        parts.agent.suspect()

    for listeners in (servers.on_down, servers.on_up):
        listeners.append(changed)
        parts.at_end.append(lambda listeners=listeners: listeners.remove(changed))


def build_tenant(
    of: Components, upstream: NacosRegistry, credential: Credential, refused: Callable[[Refused], None]
) -> Components:
    """Parts of their own for an account; of `of` they share the clock, the servers and the answers' table.

    Nothing of them is written to disk: after a start the token is not known any more. `refused` is called when the
    upstream does not know it any more.
    """
    settings = of.settings.model_copy(update={"disk": False})
    policy = AgentPolicy(settings.cold_wait, strict=True)
    supervisor = of.agent.supervisor
    asked = Telling(upstream.acting_as(credential), lambda error: supervisor.call("tenants", refused, error))
    parts = _wired(settings, of.clock, asked, policy, of.guard, of.response_table, of.checks, supervisor)
    parts.forwarder = of.forwarder
    _follow(parts, upstream.servers)
    return parts


def make_catalog(s: Settings, epoch: str, *, grace: float) -> Catalog:
    """An empty one. `epoch` tells its events from those of another run, `grace` is that of its overlay."""
    return Catalog(
        Cache(cache_policy(s), overlay_policy(s, grace), random.random),
        Hub(HubPolicy(s.events_history), epoch),
        Registrations(RegistrationsPolicy()),
        Breaker(BreakerPolicy(s.breaker_failures, max_delay=s.breaker_longest, slow=s.upstream_timeout)),
    )


def _wired(
    s: Settings,
    clock: Clock,
    registry: Registry,
    policy: AgentPolicy,
    guard: GuardPolicy,
    answers: ResponseTable,
    checks: Callable[[], bool],
    supervisor: Supervisor,
    push: Watchable | None = None,
) -> Components:
    catalog = make_catalog(
        s, secrets.token_hex(4), grace=0.0 if isinstance(registry, EmbeddedRegistry) else s.overlay_grace
    )
    followers: dict[str, Follower] = {
        "prepared answers": lambda change: answers.forget(change.key),
        "events": catalog.hub.publish,
    }
    agent = Agent(registry, catalog, clock, policy, followers, supervisor)
    agent.outage.checks = checks
    poller = Poller(agent, PollPolicy(budget=s.poll_budget, late=s.cache_ttl), push)
    poller.on_push_lost.append(answers.clear)
    events = EventsApi(agent, events_policy(s), discover=poller.discover, forget=poller.forget)
    parts = Components(
        s, clock, agent, registry, poller, answers, Reads(agent), events,
        HealthChecker(agent, HealthCheckerPolicy(networks(s.managed_allow))), guard, checks, push, started=clock.now(),
    )  # fmt: skip
    _hide_what_is_refused(agent, answers, events)
    if (disk := _disk(parts)) is not None:
        followers["disk"] = disk.mark
    if s.udp_push:
        parts.udp = UdpPush(Pushes(PushesPolicy()), _udp_list, clock, UdpPolicy(networks(s.udp_push_allow)), supervisor)
        followers["udp push"] = parts.udp.follow
        if parts.persistence is not None:
            parts.persistence.pushes = parts.udp.pushes
    return parts


def _disk(parts: Components) -> Disk | None:
    registry = parts.registry if isinstance(parts.registry, EmbeddedRegistry) else None
    if parts.settings.disk:
        parts.persistence = Disk(StateFile(parts.settings.state_dir), parts.agent, parts.clock, DiskPolicy())
        if registry is not None:
            parts.persistence.follow(registry)
    elif registry is not None:
        log.info("disk = false: persistent instances and services end with this process")
    return parts.persistence


def _hide_what_is_refused(agent: Agent, answers: ResponseTable, events: EventsApi) -> None:
    """Who may not see a service any more is told it neither from what was prepared nor by what is open."""
    agent.on_barred.append(lambda key, error: answers.forget(key))
    agent.on_barred.append(lambda key, error: events.refuse(error, key))


def _embedded(clock: Clock, supervisor: Supervisor) -> tuple[Registry, Watchable | None]:
    registry = EmbeddedRegistry(clock, supervisor=supervisor)
    return registry, registry


def _upstream(s: Settings, clock: Clock, supervisor: Supervisor) -> tuple[Registry, Watchable | None]:
    registry = NacosRegistry(nacos_policy(s), clock)
    servers = registry.servers
    if s.push == "on" and not available():
        raise BadSettings("push = on needs the extra: pip install 'nacos-proxy[push]'")
    if s.push == "off":
        return registry, None
    if s.auth == "proxy":  # the lists that ask for UDP push are this proxy's own
        receiver = registry.receiver = PushReceiver(("1.",) if available() else ("1.", "2.", "3."), s.push_udp_port)
        servers.on_list.append(lambda: supervisor.call("push", receiver.part, servers.all))
    if not available():
        return registry, None
    home = str(s.state_dir / "push")
    policy = PushPolicy(_origins(servers), s.username, s.secret(), home=home, port=s.push_port)
    push = GrpcPush(policy, clock, hint=registry.hint, supervisor=supervisor)
    servers.on_list.append(lambda: supervisor.call("push", push.follow, _origins(servers)))
    return registry, push


def _origins(servers: Servers) -> tuple[str, ...]:
    return tuple(server.origin for server in servers.all)


def _udp_list(call: ReadService, snapshot: Snapshot) -> bytes:
    view = ServiceView(snapshot, snapshot.select(call.cluster_set))
    body = list_json(view, call.clusters)
    body.pop("groupName", None)  # a pushed list has none (nacos-http.md 6)
    return orjson.dumps(body)


async def start(parts: Components, *, of_tenant: bool = False) -> None:
    """State from disk first, so that the first read has it; then what runs in the background.

    The socket of a tenant's UDP push is opened when one asks for it.
    """
    if parts.persistence is not None:
        if parts.persistence.restore():
            parts.agent.suspect()  # nobody knows what the upstream went through meanwhile
            parts.agent.confirm_until = parts.clock.now() + CONFIRM_WITHIN
        parts.persistence.start()
    parts.health_checker.restore_all()
    parts.poller.start()
    parts.health_checker.start()
    if parts.udp is not None and not of_tenant:
        await start_udp(parts)
        if parts.persistence is not None:
            parts.udp.restore(parts.persistence.subscribers())


async def start_udp(parts: Components) -> None:
    if parts.udp is not None:
        await parts.udp.start("::" if ":" in parts.settings.host else "0.0.0.0")


async def finish(parts: Components) -> None:
    """In the other order; the state is written last, when nothing changes it any more. No step robs the next one."""
    while parts.at_end:
        parts.at_end.pop()()
    supervisor = parts.agent.supervisor
    supervisor.call("stop", parts.events.close)
    if parts.receiver is not None:
        supervisor.call("stop", parts.receiver.stop)
    for step in _last_steps(parts):
        try:
            await step
        except Exception as error:
            supervisor.failed("stop", error)


def _last_steps(parts: Components) -> Iterator[Awaitable[None]]:
    if parts.udp is not None:
        yield parts.udp.stop()
    yield parts.health_checker.stop(deregister=parts.settings.managed_deregister)
    yield parts.poller.stop()
    if isinstance(parts.push, GrpcPush):
        yield parts.push.close()
    if parts.persistence is not None:
        yield parts.persistence.close()
    yield parts.agent.close()
    if parts.registry is not parts.agent.registry:
        yield parts.registry.close()

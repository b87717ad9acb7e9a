"""The composition root: makes all components from the settings, connects them, starts and stops them in order.

`policies` maps settings to the policy of each component; `server` puts the HTTP app in front of them.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson

from nacos_proxy.app.policies import (
    agent_policy,
    breaker_policy,
    cache_policy,
    events_policy,
    health_checker_policy,
    nacos_policy,
    pending_policy,
    poll_policy,
    udp_policy,
)
from nacos_proxy.app.settings import BadSettings, Settings
from nacos_proxy.app.tenants import TenantCounts
from nacos_proxy.background.health_checker import HealthChecker
from nacos_proxy.background.persistence import Persistence, PersistencePolicy
from nacos_proxy.background.poller import Poller
from nacos_proxy.background.state_file import StateFile
from nacos_proxy.background.udp_push import UdpPush
from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.circuit_breaker import Breaker
from nacos_proxy.catalog.hub import Hub, HubPolicy
from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.catalog.udp_subscribers import UdpSubscribers, UdpSubscribersPolicy
from nacos_proxy.core.agent import Agent, Catalog
from nacos_proxy.fastpath.table import ResponseTable, ResponseTablePolicy
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.nacos.passthrough import Forwarder
from nacos_proxy.frontends.rest.reads import Reads
from nacos_proxy.model.errors import Refused
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.upstream.contract import Registry, Watchable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.grpc.push import GrpcPush
from nacos_proxy.upstream.grpc.sdk import PushPolicy, available
from nacos_proxy.upstream.nacos.login import NOBODY, Credential
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.rights import RefusalReporter
from nacos_proxy.upstream.nacos.servers import Server, Servers
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.hosts import list_json

log = logging.getLogger("nacos_proxy.components")

CONFIRM_WITHIN = 1.0  # seconds after a start in which reads wait for the upstream: a kill may have lost the last writes


@dataclass(slots=True)
class Components:
    """Everything that runs for the proxy itself, or for one tenant.

    `registry` is the upstream, which tenants share; `agent.registry` acts on the account that the agent is for.
    `checks` says whether Nacos's parameter check applies now.
    """

    settings: Settings
    clock: Clock
    registry: Registry
    agent: Agent
    poller: Poller
    response_table: ResponseTable
    reads: Reads
    events: EventsApi
    health_checker: HealthChecker
    checks: Callable[[], bool]
    push: Watchable | None
    receiver: PushReceiver | None
    udp: UdpPush | None
    persistence: Persistence | None
    forwarder: Forwarder | None
    started: float
    of_tenant: bool
    unfollow_servers: Callable[[], None]
    tenants: TenantCounts = field(default_factory=TenantCounts)


def build(s: Settings, clock: Clock) -> Components:
    """The components of the proxy itself, connected, not started.

    Raises `StateLocked` if another process holds the state directory, `BadSettings` or `ValueError` for settings that
    cannot work.
    """
    supervisor, response_table = Supervisor(clock), ResponseTable(ResponseTablePolicy())
    if s.embedded:
        embedded = EmbeddedRegistry(clock, supervisor=supervisor)
        return _assemble(s, clock, supervisor, response_table, embedded, embedded, push=embedded)
    upstream = NacosRegistry(nacos_policy(s), clock)
    # With auth = client, a client without a token has no account: it gets neither the server identity of this proxy
    # nor what the upstream accepted without a check.
    account = upstream.acting_as(NOBODY) if s.auth == "client" else upstream
    push = _grpc_push(s, clock, supervisor, upstream)
    return _assemble(s, clock, supervisor, response_table, upstream, account, push=push)


def build_tenant(
    of: Components, upstream: NacosRegistry, credential: Credential, refused: Callable[[Refused], None]
) -> Components:
    """The components of one account. It shares the clock, the servers and the response table of `of`.

    Nothing of it goes to disk, because its token does not survive a restart. `refused` is called when the upstream no
    longer accepts the token.
    """
    supervisor = of.agent.supervisor
    account = RefusalReporter(upstream.acting_as(credential), lambda error: supervisor.call("tenants", refused, error))
    settings = of.settings.model_copy(update={"disk": False})
    return _assemble(settings, of.clock, supervisor, of.response_table, upstream, account, of_tenant=True)


def _assemble(
    s: Settings,
    clock: Clock,
    supervisor: Supervisor,
    response_table: ResponseTable,
    registry: EmbeddedRegistry | NacosRegistry,
    account: Registry,
    push: Watchable | None = None,
    *,
    of_tenant: bool = False,
) -> Components:
    embedded = registry if isinstance(registry, EmbeddedRegistry) else None
    upstream = registry if isinstance(registry, NacosRegistry) else None
    checks = _parameter_check(s, upstream)
    catalog = Catalog(
        Cache(cache_policy(s), pending_policy(s), random.random),
        Hub(HubPolicy(s.events_history), epoch=secrets.token_hex(4)),
        Registrations(),
        Breaker(breaker_policy(s)),
    )
    agent = Agent(account, catalog, clock, agent_policy(s, strict=account is not registry), supervisor, checks)
    poller = Poller(agent, poll_policy(s), push)
    events = EventsApi(agent, events_policy(s), discover=poller.discover, forget=poller.forget)
    udp = (
        UdpPush(UdpSubscribers(UdpSubscribersPolicy()), _udp_list, clock, udp_policy(s), supervisor)
        if s.udp_push
        else None
    )
    persistence = None
    if s.disk:
        pushes = None if udp is None else udp.pushes
        persistence = Persistence(StateFile(s.state_dir), agent, PersistencePolicy(), pushes=pushes, embedded=embedded)
    elif embedded is not None:
        log.info("disk = false: persistent instances and services are lost when this process ends")

    # The order of followers matters: nobody may read an old answer after the event.
    agent.follow("prepared answers", lambda change: response_table.forget(change.key))
    agent.follow("events", catalog.hub.publish)
    if persistence is not None:
        agent.follow("disk", persistence.mark)
    if udp is not None:
        agent.follow("udp push", udp.follow)
    # Clients that may not see a service any more must not learn about it from prepared answers or open streams.
    agent.on_barred.append(lambda key, error: response_table.forget(key))
    agent.on_barred.append(lambda key, error: events.refuse(error, key))
    poller.on_push_lost.append(response_table.clear)

    return Components(
        settings=s,
        clock=clock,
        registry=registry,
        agent=agent,
        poller=poller,
        response_table=response_table,
        reads=Reads(agent),
        events=events,
        health_checker=HealthChecker(agent, health_checker_policy(s)),
        checks=checks,
        push=push,
        receiver=None if upstream is None else _udp_receiver(s, supervisor, upstream, poller),
        udp=udp,
        persistence=persistence,
        forwarder=upstream,
        started=clock.now(),
        of_tenant=of_tenant,
        unfollow_servers=_suspect_when_servers_change(agent, upstream.servers)
        if upstream is not None
        else lambda: None,
    )


def _parameter_check(s: Settings, upstream: NacosRegistry | None) -> Callable[[], bool]:
    """As set, else as the servers do it. A server whose version is not known yet refuses by itself."""
    if s.parameter_check == "auto" and upstream is not None:
        return lambda: upstream.servers.have_parameter_check
    return lambda: s.parameter_check != "off"


def _suspect_when_servers_change(agent: Agent, servers: Servers) -> Callable[[], None]:
    """Another server may have lost its memory, too. Returns a function that ends this."""

    def changed(_: Server) -> None:
        agent.suspect()

    def unfollow() -> None:
        for listeners in (servers.on_down, servers.on_up):
            listeners.remove(changed)

    for listeners in (servers.on_down, servers.on_up):
        listeners.append(changed)
    return unfollow


def _grpc_push(s: Settings, clock: Clock, supervisor: Supervisor, upstream: NacosRegistry) -> GrpcPush | None:
    """Raises `BadSettings` if push is demanded and the extra is not installed."""
    if not available():
        if s.push == "on":
            raise BadSettings("push = on needs the extra: pip install 'nacos-proxy[push]'")
        return None
    if s.push == "off":
        return None
    servers, home = upstream.servers, str(s.state_dir / "push")
    policy = PushPolicy(_origins(servers), s.username, s.read_password(), home=home, port=s.push_port)
    push = GrpcPush(policy, clock, hint=upstream.hint, supervisor=supervisor)
    servers.on_list.append(lambda: supervisor.call("push", push.follow, _origins(servers)))
    return push


def _udp_receiver(s: Settings, supervisor: Supervisor, upstream: NacosRegistry, poller: Poller) -> PushReceiver | None:
    """Only the proxy's own lists ask for UDP push, so there is none with auth = client."""
    if s.push == "off" or s.auth == "client":
        return None
    versions = ("1.",) if available() else ("1.", "2.", "3.")
    servers = upstream.servers
    receiver = upstream.receiver = PushReceiver(versions, s.push_udp_port, poller.notified)
    servers.on_list.append(lambda: supervisor.call("push", receiver.retain, servers.all))
    return receiver


def _origins(servers: Servers) -> tuple[str, ...]:
    return tuple(server.origin for server in servers.all)


def _udp_list(call: ReadService, snapshot: Snapshot) -> bytes:
    view = ServiceView(snapshot, snapshot.select(call.cluster_set))
    body = list_json(view, call.clusters)
    body.pop("groupName", None)  # a pushed list has none (nacos-http.md 6)
    return orjson.dumps(body)


async def start(components: Components) -> None:
    """Reads the state from disk first, so that the first read finds it; then starts the background work.

    The socket for UDP push of a tenant is opened on demand, by `start_udp`.
    """
    disk, udp = components.persistence, components.udp
    if disk is not None:
        if disk.restore():
            components.agent.restored(CONFIRM_WITHIN)
        disk.start()
    components.health_checker.restore_all()
    components.poller.start()
    components.health_checker.start()
    if udp is not None and not components.of_tenant:
        await start_udp(components)
        if disk is not None:
            udp.restore(disk.subscribers())


async def start_udp(components: Components) -> None:
    if components.udp is not None:
        await components.udp.start("::" if ":" in components.settings.host else "0.0.0.0")


async def finish(components: Components) -> None:
    """Stops in the reverse order; the state is written last, when nothing changes it any more.

    A step that fails is logged and does not stop the next one.
    """
    components.unfollow_servers()
    supervisor = components.agent.supervisor
    supervisor.call("stop", components.events.close)
    if components.receiver is not None:
        supervisor.call("stop", components.receiver.stop)
    for step in _last_steps(components):
        try:
            await step
        except Exception as error:
            supervisor.failed("stop", error)


def _last_steps(components: Components) -> Iterator[Awaitable[None]]:
    if components.udp is not None:
        yield components.udp.stop()
    yield components.health_checker.stop(deregister=components.settings.managed_deregister)
    yield components.poller.stop()
    if isinstance(components.push, GrpcPush):
        yield components.push.close()
    if components.persistence is not None:
        yield components.persistence.close()
    yield components.agent.close()
    if components.registry is not components.agent.registry and not components.of_tenant:
        yield components.registry.close()

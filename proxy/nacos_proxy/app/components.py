"""The composition root: makes all components from the settings, connects them, starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson

from nacos_proxy import __version__
from nacos_proxy.app import policies
from nacos_proxy.app.settings import Settings
from nacos_proxy.background.drains import Drainer, DrainerPolicy
from nacos_proxy.background.health_checker import HealthChecker
from nacos_proxy.background.persistence import Persistence, PersistencePolicy
from nacos_proxy.background.poller import Poller
from nacos_proxy.background.publications import Publications, PublicationsPolicy
from nacos_proxy.background.service_files import ServiceFiles
from nacos_proxy.background.state_file import StateFile
from nacos_proxy.background.udp_push import UdpPush
from nacos_proxy.background.webhooks import Webhooks
from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.circuit_breaker import Breaker
from nacos_proxy.catalog.hub import Hub, HubPolicy
from nacos_proxy.catalog.registrations import Registrations
from nacos_proxy.catalog.udp_subscribers import UdpSubscribers, UdpSubscribersPolicy
from nacos_proxy.core.agent import Agent, Catalog
from nacos_proxy.fastpath.table import ResponseTable, ResponseTablePolicy
from nacos_proxy.frontends.discovery.agent_check import AgentCheck
from nacos_proxy.frontends.dns.finder import Finder
from nacos_proxy.frontends.dns.responder import Responder, ResponderPolicy
from nacos_proxy.frontends.dns.server import DnsServer
from nacos_proxy.frontends.events.streams import EventsApi
from nacos_proxy.frontends.grpc.server import GrpcServer
from nacos_proxy.frontends.nacos.passthrough import Forwarder
from nacos_proxy.frontends.requests import RequestTimes, request_times
from nacos_proxy.frontends.rest.reads import Reads
from nacos_proxy.model.errors import Refused
from nacos_proxy.model.limits import LENIENT, NACOS
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.upstream.contract import Registry, Watchable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.grpc.push import GrpcPush, PushPolicy
from nacos_proxy.upstream.grpc.session import SessionPolicy
from nacos_proxy.upstream.nacos.login import NOBODY, Credential
from nacos_proxy.upstream.nacos.registry import AuthenticatedClient, NacosRegistry
from nacos_proxy.upstream.nacos.servers import Server, Servers
from nacos_proxy.upstream.nacos.udp_receiver import PushReceiver
from nacos_proxy.upstream.proxy.events import ProxyEvents, ProxyEventsPolicy
from nacos_proxy.wire.certificates import valid_until
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.hosts import list_json

log = logging.getLogger("nacos_proxy.components")

# Seconds after a start in which reads wait for the upstream, because a kill may have lost the last writes to disk.
CONFIRM_WITHIN = 1.0


@dataclass(slots=True)
class TenantCounts:
    """The number of open tenants, and of requests refused for their credentials so far."""

    open: int = 0
    refused: int = 0


@dataclass(slots=True)
class Components:
    """Everything that runs for the proxy itself, or for one tenant.

    `registry` is the upstream, which tenants share; `agent.registry` calls it with the account of these components.
    `checks` returns whether Nacos's parameter check applies now.
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
    service_files: ServiceFiles
    webhooks: Webhooks
    publications: Publications
    drainer: Drainer
    checks: Callable[[], bool]
    push: Watchable | None
    receiver: PushReceiver | None
    udp: UdpPush | None
    persistence: Persistence | None
    forwarder: Forwarder | None
    started: float
    of_tenant: bool
    unfollow_servers: Callable[[], None]
    tenant_counts: TenantCounts = field(default_factory=TenantCounts)
    certificate_ends: float | None = None  # the one that we serve with; seconds since 1970
    request_times: RequestTimes = field(default_factory=request_times)  # by HTTP; not those of the fast path
    grpc: GrpcServer | None = None  # it serves tenants, too
    agent_check: AgentCheck | None = None
    dns: DnsServer | None = None


def build(s: Settings, clock: Clock) -> Components:
    """Makes and connects the components of the proxy itself; `start` starts them.

    Raises `StateLocked` if another process holds the state directory, `BadSettings` or `ValueError` for invalid
    settings.
    """
    supervisor, response_table = Supervisor(clock), ResponseTable(ResponseTablePolicy())
    if s.embedded:
        embedded = EmbeddedRegistry(clock, supervisor=supervisor)
        return _assemble(s, clock, supervisor, response_table, embedded, embedded, push=embedded)
    upstream = NacosRegistry(policies.nacos_policy(s), clock)
    if s.of_proxy and s.auth == "proxy":
        events = _proxy_events(s, clock, supervisor, upstream)
        return _assemble(s, clock, supervisor, response_table, upstream, upstream, push=events)
    # With auth = client, calls for a client without a token use no account, and not the server identity of this proxy.
    if s.auth == "client":
        account = upstream.acting_as(NOBODY)
        push = _grpc_push(s, clock, supervisor, account)
        return _assemble(s, clock, supervisor, response_table, upstream, account, push=push)
    push = _grpc_push(s, clock, supervisor, upstream.own_client)
    return _assemble(s, clock, supervisor, response_table, upstream, upstream, push=push)


def build_tenant(
    of: Components, upstream: NacosRegistry, credential: Credential, refused: Callable[[Refused], None]
) -> Components:
    """Makes the components of one account, which share the clock, the servers and the response table of `of`.

    They write nothing to disk, because the account's token does not survive a restart. `refused` is called when the
    upstream no longer accepts the token.
    """
    supervisor = of.agent.supervisor
    account = upstream.acting_as(credential, lambda error: supervisor.call("tenants", refused, error))
    s = of.settings.model_copy(update={"disk": False, "dns": ()})
    push = _grpc_push(s, of.clock, supervisor, account)
    return _assemble(s, of.clock, supervisor, of.response_table, upstream, account, push=push, of_tenant=True)


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
        Cache(policies.cache_policy(s), policies.pending_policy(s), random.random),
        Hub(HubPolicy(s.events_history), epoch=secrets.token_hex(4)),
        Registrations(),
        Breaker(policies.breaker_policy(s)),
    )
    agent_policy = policies.agent_policy(s, strict=account is not registry)
    agent = Agent(account, catalog, clock, agent_policy, supervisor, checks)
    poller = Poller(agent, policies.poll_policy(s), push)
    events = EventsApi(agent, policies.events_policy(s), discover=poller.discover, forget=poller.forget)
    udp = persistence = None
    if s.udp_push:
        subscribers = UdpSubscribers(UdpSubscribersPolicy())
        udp = UdpPush(subscribers, _udp_list, clock, policies.udp_policy(s), supervisor)
    if s.disk:
        udp_subscribers = None if udp is None else udp.subscribers
        persistence = Persistence(
            StateFile(s.state_dir), agent, PersistencePolicy(), udp_subscribers=udp_subscribers, embedded=embedded
        )
    elif embedded is not None:
        log.info("disk = false: persistent instances and services are lost when this process ends")

    # Prepared answers go first, so that nobody who has got an event can read the old answer.
    agent.follow("prepared answers", lambda change: response_table.forget(change.key))
    dns = _dns(s, agent) if s.dns else None
    if dns is not None:
        agent.follow("dns", dns.responder.changed)
    agent.follow("events", catalog.hub.publish)
    if persistence is not None:
        agent.follow("disk", persistence.mark)
    if udp is not None:
        agent.follow("udp push", udp.follow)
    # Clients that may no longer see a service must not get it from prepared answers or open streams.
    agent.on_barred.append(lambda key, error: response_table.forget(key))
    if dns is not None:
        agent.on_barred.append(lambda key, error: dns.responder.forget(key))
    agent.on_barred.append(lambda key, error: events.refuse(error, key))
    poller.on_push_lost.append(response_table.clear)

    hooks = policies.webhooks_policy(s)
    webhooks = Webhooks(agent, hooks, discover=poller.discover)
    publications, drainer = Publications(agent, PublicationsPolicy()), Drainer(agent, DrainerPolicy())
    checker = HealthChecker(agent, policies.health_checker_policy(s))
    if persistence is not None:
        publications.persist_with(persistence.persist_registrations)
        checker.persist_with(persistence.persist_registrations)
        drainer.persist_with(persistence.persist_drains)

    return Components(
        settings=s,
        clock=clock,
        registry=registry,
        agent=agent,
        poller=poller,
        response_table=response_table,
        reads=Reads(agent),
        events=events,
        health_checker=checker,
        webhooks=webhooks,
        service_files=ServiceFiles(checker, supervisor, s.services_dir, lambda: NACOS if checks() else LENIENT),
        publications=publications,
        drainer=drainer,
        checks=checks,
        push=push,
        receiver=_udp_receiver(s, supervisor, upstream, poller) if upstream else None,
        udp=udp,
        persistence=persistence,
        forwarder=upstream,
        started=clock.now(),
        of_tenant=of_tenant,
        dns=dns,
        certificate_ends=valid_until(s.tls_cert.read_bytes()) if s.tls_cert is not None else None,
        unfollow_servers=_follow_servers(supervisor, agent, upstream.servers, push) if upstream else lambda: None,
    )


def _dns(s: Settings, agent: Agent) -> DnsServer:
    finder = Finder(agent, policies.finder_policy(s), random.random)
    responder = Responder(finder, ResponderPolicy(), agent.clock, agent.supervisor)
    return DnsServer(responder, policies.dns_policy(s), agent.clock, agent.supervisor)


def _parameter_check(s: Settings, upstream: NacosRegistry | None) -> Callable[[], bool]:
    """Whether to check parameters; with `auto`, if all servers do. A server of unknown version checks them itself."""
    if s.parameter_check == "auto" and upstream is not None:
        return lambda: upstream.servers.have_parameter_check
    return lambda: s.parameter_check != "off"


def _follow_servers(
    supervisor: Supervisor, agent: Agent, servers: Servers, push: Watchable | None
) -> Callable[[], None]:
    """Suspects lost registrations whenever a server goes down or comes up, or a connection of push ends: a server may
    restart faster than HTTP notices. Push follows the list of servers.

    Returns a function that ends this.
    """

    def suspect(_: Server) -> None:
        agent.suspect()

    def follow() -> None:
        if isinstance(push, GrpcPush):
            supervisor.call("push", push.follow)

    def unfollow() -> None:
        servers.on_down.remove(suspect)
        servers.on_up.remove(suspect)
        servers.on_list.remove(follow)

    servers.on_down.append(suspect)
    servers.on_up.append(suspect)
    servers.on_list.append(follow)
    if isinstance(push, GrpcPush | ProxyEvents):
        push.on_lost.append(agent.suspect)
    if isinstance(push, ProxyEvents):
        agent.on_recovery.append(push.upstream_is_back)
    return unfollow


def _grpc_push(s: Settings, clock: Clock, supervisor: Supervisor, account: AuthenticatedClient) -> GrpcPush | None:
    """Push with the account of these components. None if it is off, and below a proxy with auth = client: each account
    would need a stream of its own there.
    """
    if s.push == "off" or s.of_proxy:
        return None
    policy = PushPolicy(session=SessionPolicy(f"nacos-proxy/{__version__}"))
    return GrpcPush(account, policy, clock, random.random, supervisor)


def _proxy_events(s: Settings, clock: Clock, supervisor: Supervisor, upstream: NacosRegistry) -> ProxyEvents | None:
    """The event stream of the upper proxy. None if push is off."""
    if s.push == "off":
        return None
    policy = ProxyEventsPolicy(tuple(server.origin for server in upstream.servers.all))
    headers = upstream.own_client.grpc_headers
    return ProxyEvents(policy, upstream.http, clock, random.random, supervisor, headers)


def _udp_receiver(s: Settings, supervisor: Supervisor, upstream: NacosRegistry, poller: Poller) -> PushReceiver | None:
    """None with auth = client: only lists with the proxy's own account ask for UDP push. Upper proxies have events."""
    if s.push == "off" or s.auth == "client" or s.of_proxy:
        return None
    servers = upstream.servers
    receiver = upstream.receiver = PushReceiver(("1.",), s.push_udp_port, poller.notified)
    servers.on_list.append(lambda: supervisor.call("push", receiver.retain, servers.all))
    return receiver


def _udp_list(call: ReadService, snapshot: Snapshot) -> bytes:
    body = list_json(ServiceView(snapshot, snapshot.select(call.cluster_set)), call.clusters)
    body.pop("groupName", None)  # a pushed list has no groupName (nacos-http.md 6)
    return orjson.dumps(body)


async def start(components: Components) -> None:
    """Restores the state from disk, so that the first read finds it; then starts the background work.

    A tenant calls `start_udp` itself, when its first client asks for UDP push.
    """
    disk, udp = components.persistence, components.udp
    if disk is not None:
        if disk.restore():
            components.agent.restored(CONFIRM_WITHIN)
        if components.dns is not None:
            components.dns.responder.restored()
        disk.start()
    components.health_checker.restore_all()
    await asyncio.wait([components.service_files.reload()])
    components.publications.restore()
    components.drainer.start()
    components.poller.start()
    components.health_checker.start()
    components.webhooks.start()
    await components.publications.start()
    if udp is not None and not components.of_tenant:
        await start_udp(components)
        if disk is not None:
            udp.restore(disk.subscribers())


async def start_udp(components: Components) -> None:
    if components.udp is not None:
        await components.udp.start("::" if ":" in components.settings.host else "0.0.0.0")


async def finish(components: Components) -> None:
    """Stops in the reverse order; the state is written when nothing changes it any more. Failures are only logged."""
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
    yield components.webhooks.stop()
    if components.udp is not None:
        yield components.udp.stop()
    yield components.drainer.stop()
    yield components.publications.stop()
    yield components.health_checker.stop(deregister=components.settings.managed_deregister)
    yield components.poller.stop()
    if isinstance(components.push, GrpcPush | ProxyEvents):
        yield components.push.close()
    if components.persistence is not None:
        yield components.persistence.close()
    yield components.agent.close()
    if components.registry is not components.agent.registry and not components.of_tenant:
        yield components.registry.close()

"""Wires the parts: the only place that has heard of both settings and parts. No behaviour of its own.

Not for: rules of freshness, of a dialect, of a route; the process around the app (`serving`). `Parts` are made from the
settings and the clock, `create_app` puts the ASGI app in front of them.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvicorn
from fastapi import FastAPI
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import __version__
from proxy.agent import Agent, AgentPolicy, Catalog
from proxy.api.events import EventsApi, EventsPolicy
from proxy.api.explorer import explorer_router
from proxy.api.guard import Guard, GuardPolicy, Token
from proxy.api.lookup import LookupApi, LookupPolicy
from proxy.api.nacos import NacosApi
from proxy.api.ops import OpsApi, Sight
from proxy.api.passthrough import Forwarder, Passthrough
from proxy.api.reads import ReadPolicy, Reads
from proxy.api.rest import RestApi
from proxy.api.routes import PROBLEM_HANDLERS
from proxy.catalog.breaker import Breaker, BreakerPolicy
from proxy.catalog.cache import Cache, CachePolicy
from proxy.catalog.hub import Hub, HubPolicy
from proxy.catalog.ledger import Ledger, LedgerPolicy
from proxy.catalog.overlay import OverlayPolicy
from proxy.catalog.pushes import Pushes, PushesPolicy
from proxy.disk import Disk, DiskPolicy, StateFile, StateLocked
from proxy.errors import ProxyError
from proxy.fastpath.asgi import FastPath
from proxy.fastpath.protocol import make_protocol
from proxy.fastpath.table import Answers, AnswersPolicy
from proxy.managed import Keeper, ManagedPolicy
from proxy.metrics import Repeated, Sources, metrics_registry
from proxy.model import Change, Snapshot
from proxy.poller import Poller, PollPolicy
from proxy.registry.base import Registry, Watchable
from proxy.registry.embedded import EmbeddedRegistry
from proxy.registry.http import HttpPolicy, Timeouts, TlsPolicy
from proxy.registry.login import LoginPolicy
from proxy.registry.nacos import NacosPolicy, NacosRegistry
from proxy.registry.push import GrpcPush, PushPolicy, available
from proxy.registry.servers import ServersPolicy
from proxy.runtime import Clock, SystemClock
from proxy.serving import Address, CannotStart, Server, sockets, tls_context, url_of
from proxy.settings import BadSettings, Loaded, Settings
from proxy.udp import UdpPolicy, UdpPush
from proxy.wire.base import Dialect, HttpReply, ReadService, ServiceView
from proxy.wire.hosts import list_json
from proxy.wire.problem import problem
from proxy.wire.v1 import V1
from proxy.wire.v2 import V2
from proxy.wire.v3 import V3

log = logging.getLogger("nacos_proxy.server")

DIALECTS: tuple[Dialect, ...] = (V1, V2, V3)


@dataclass(slots=True)
class Parts:
    """Everything that runs, made once. `followers` of a change are called in this order: answers, hub, disk, udp."""

    settings: Settings
    clock: Clock
    agent: Agent
    registry: Registry
    poller: Poller
    answers: Answers
    reads: Reads
    events: EventsApi
    keeper: Keeper
    guard: GuardPolicy
    push: Watchable | None = None
    disk: Disk | None = None
    udp: UdpPush | None = None
    started: float = field(default=0.0)


def cache_policy(s: Settings) -> CachePolicy:
    return CachePolicy(
        ttl=s.cache_ttl,
        ttl_pushed=max(s.cache_ttl, 1.5 * s.poll_safety),
        ttl_unknown=s.cache_negative_ttl,
        stale_if_error=s.cache_stale_if_error,
        max_services=s.cache_max_services,
        max_unknown=s.cache_max_unknown,
        interval_subscribed=s.poll_interval_subscribed,
        interval_read=s.poll_interval_read,
        interval_pushed=s.poll_safety,
        watch_idle=s.watch_idle,
        suspicious_share=s.empty_list_share,
        confirm_after=s.empty_list_confirm,
    )


def build(s: Settings, clock: Clock) -> Parts:
    """The parts, wired, nothing started. Raises `disk.StateLocked`, `ValueError` for settings that cannot be."""
    embedded = s.upstream == ("embedded",) and not s.endpoint
    registry, push = _embedded(clock) if embedded else _upstream(s, clock)
    overlay = OverlayPolicy(grace=0.0 if embedded else s.overlay_grace)
    catalog = Catalog(
        Cache(cache_policy(s), overlay, random.random),
        Hub(HubPolicy(s.events_history), secrets.token_hex(4)),
        Ledger(LedgerPolicy()),
        Breaker(BreakerPolicy(s.breaker_failures, longest=s.breaker_longest)),
    )
    answers = Answers(AnswersPolicy())
    after: list[Any] = []

    def follow(change: Change) -> None:
        answers.forget(change.key)
        catalog.hub.publish(change)
        for follower in after:
            follower(change)

    agent = Agent(registry, catalog, clock, AgentPolicy(s.cold_wait), [follow])
    poller = Poller(agent, PollPolicy(budget=s.poll_budget), push)
    events = EventsApi(agent, events_policy(s), discover=poller.discover, forget=poller.forget)
    parts = Parts(
        s, clock, agent, registry, poller, answers, Reads(agent, ReadPolicy()), events,
        Keeper(agent, ManagedPolicy(networks(s.managed_allow))), guard_policy(s), push, started=clock.now(),
    )  # fmt: skip
    if s.disk:
        parts.disk = Disk(StateFile(s.state_dir), agent, clock, DiskPolicy())
        after.append(parts.disk.mark)
    if s.udp_push:
        parts.udp = UdpPush(Pushes(PushesPolicy()), _udp_list, clock, UdpPolicy(networks(s.udp_push_allow)))
        after.append(parts.udp.follow)
    return parts


def _embedded(clock: Clock) -> tuple[Registry, Watchable | None]:
    registry = EmbeddedRegistry(clock)
    return registry, registry


def _upstream(s: Settings, clock: Clock) -> tuple[Registry, Watchable | None]:
    registry = NacosRegistry(nacos_policy(s), clock)
    origins = tuple(server.origin for server in registry.servers.all)
    if s.push == "on" and not available():
        raise BadSettings("push = on needs the extra: pip install 'nacos-discovery-proxy[push]'")
    if s.push == "off" or not available() or not origins:
        return registry, None
    offset = s.push_port - (urlsplit(origins[0]).port or 0) if s.push_port else PushPolicy.offset
    home = str(s.state_dir / "push")
    return registry, GrpcPush(PushPolicy(origins, s.username, s.secret(), home=home, offset=offset), clock)


def nacos_policy(s: Settings) -> NacosPolicy:
    """How the upstream is reached. Raises `BadSettings` for a password file that cannot be read."""
    urls = () if s.endpoint and s.upstream == ("embedded",) else s.upstream
    identity = (s.identity_key, s.identity_value.get_secret_value()) if s.identity_key else None
    timeouts = Timeouts(s.upstream_connect_timeout, s.upstream_timeout, s.upstream_timeout)
    files = [str(path) if path else "" for path in (s.upstream_tls_ca, s.upstream_tls_cert, s.upstream_tls_key)]
    return NacosPolicy(
        ServersPolicy(urls, s.endpoint, context_path=s.upstream_context_path),
        HttpPolicy(f"nacos-proxy/{__version__}", identity, sni=s.upstream_tls_sni, timeouts=timeouts),
        TlsPolicy(*files, verify=s.upstream_tls_verify),
        login=LoginPolicy(s.username, s.secret()),
        dialect=s.upstream_dialect,
    )


def events_policy(s: Settings) -> EventsPolicy:
    return EventsPolicy(
        heartbeat=s.events_heartbeat,
        retry=int(s.events_retry * 1000),
        per_client=s.subscribers_per_client,
        most=max(s.subscribers_per_client, 20_000),
        services=s.services_per_client,
    )


def guard_policy(s: Settings) -> GuardPolicy:
    tokens = tuple(Token(token.secret, token.right) for token in s.all_tokens())
    return GuardPolicy(tokens, frozenset(s.allowed_hosts), loopback(s), s.context_path)


def loopback(s: Settings) -> bool:
    """Whether only this host can connect."""
    if s.uds is not None or s.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(s.host).is_loopback
    except ValueError:
        return False


def networks(names: Iterable[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(name, strict=False) for name in names)


def _udp_list(call: ReadService, snapshot: Snapshot) -> bytes:
    view = ServiceView(snapshot, snapshot.select(call.cluster_set))
    body = list_json(view, call.clusters)
    body.pop("groupName", None)  # a pushed list has none (NACOS.md 6)
    return orjson.dumps(body)


# the app


def create_app(settings: Settings, clock: Clock | None = None) -> ASGIApp:
    """The whole program as one ASGI app; its lifespan starts and stops the parts, which stand in `app.parts`."""
    return App(build(settings, clock or SystemClock()))


class App:
    """Sends each request to whom it belongs, behind the fast path and the guard."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.guard = Guard(self._route, parts.guard, self._refuse)
        own: ASGIApp = self.guard
        if parts.settings.cors_origins:
            origins = list(parts.settings.cors_origins)
            headers = ["ETag", "Age", "Cache-Status", "Nacos-Proxy-Answer", "Nacos-Proxy-Index"]
            own = CORSMiddleware(
                own, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=headers
            )
        self._entry: ASGIApp = FastPath(own, parts.answers, parts.clock.now) if parts.settings.fast_path else own
        self._context = parts.settings.context_path.rstrip("/")
        forwarder = parts.registry if isinstance(parts.registry, Forwarder) else None
        self._nacos = NacosApi(
            parts.agent,
            DIALECTS,
            Passthrough(forwarder, context_path=self._context),
            context_path=self._context,
            max_body=parts.settings.max_body,
            on_list=parts.udp.listed if parts.udp is not None else None,
        )
        self._rest = rest_app(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._entry(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    def reload(self, settings: Settings) -> None:
        """What can change while serving: tokens, host names, the log level. The rest is said to need a restart."""
        self.guard.policy = guard_policy(settings)
        logging.getLogger("nacos_proxy").setLevel(settings.log_level.upper())
        log.info("reloaded tokens, allowed hosts and log level; other settings need a restart")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._nacos if self._is_nacos(scope["path"]) else self._rest
        await target(scope, receive, send)

    def _is_nacos(self, path: str) -> bool:
        if self._context:
            return path.startswith(self._context + "/")
        return path.startswith(("/v1/", "/v2/", "/v3/"))

    def _refuse(self, scope: Scope, error: ProxyError) -> HttpReply:
        path: str = scope["path"]
        if self._is_nacos(path):
            return self._nacos.refuse(scope, error)
        return problem(error, path)


def rest_app(parts: Parts) -> FastAPI:
    """Our own API with its documents; the lifespan of all parts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await start(parts)
        try:
            yield
        finally:
            await finish(parts)

    app = FastAPI(
        title="nacos-proxy",
        version=__version__,
        summary="A local caching discovery proxy for Nacos",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=PROBLEM_HANDLERS,
    )
    sources = Sources(
        parts.agent,
        __version__,
        push_up=lambda: None if parts.push is None else parts.poller.push_alive,
        subscribers=lambda: parts.events.readers,
        refused=lambda: parts.events.refused,
        repeated=lambda: _repeated(parts.answers),
        more=lambda: _more_metrics(parts),
    )
    sight = Sight(
        parts.agent,
        parts.events,
        metrics_registry(sources),
        __version__,
        parts.started,
        upstream=lambda: upstream_status(parts),
        push=lambda: push_status(parts),
        disk=lambda: disk_status(parts),
        more=lambda: more_status(parts),
    )
    app.include_router(RestApi(parts.agent, parts.reads, parts.keeper, max_body=parts.settings.max_body).router())
    app.include_router(LookupApi(parts.agent, parts.reads, LookupPolicy()).router())
    app.include_router(parts.events.router())
    app.include_router(OpsApi(sight).router())
    app.include_router(explorer_router())
    return app


def uvicorn_config(app: App, s: Settings, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves the app: one worker, our protocol class where the fast path is on."""
    protocol = make_protocol(app.parts.answers, app.parts.clock.now) if s.fast_path else "httptools"
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=s.access_log,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(s.drain_timeout),
        limit_concurrency=s.max_connections or None,
        h11_max_incomplete_event_size=s.max_head,
        ws="none",
    )
    config.ssl = tls  # pyright: ignore[reportAttributeAccessIssue]
    return config


async def start(parts: Parts) -> None:
    """State from disk first, so that the first read has it; then what runs in the background."""
    if parts.disk is not None:
        parts.disk.restore()
        parts.disk.start()
    parts.keeper.restore_all()
    parts.poller.start()
    parts.keeper.start()
    if parts.udp is not None:
        await parts.udp.start("::" if ":" in parts.settings.host else "0.0.0.0")


async def finish(parts: Parts) -> None:
    """In the other order; the state is written last, when nothing changes it any more."""
    parts.events.close()
    if parts.udp is not None:
        await parts.udp.stop()
    await parts.keeper.stop(deregister=parts.settings.managed_deregister)
    await parts.poller.stop()
    if isinstance(parts.push, GrpcPush):
        await parts.push.close()
    if parts.disk is not None:
        await parts.disk.close()
    await parts.agent.close()


# the process


def run(loaded: Loaded) -> int:
    """Serve until told to stop; the exit code. Raises `CannotStart` and `BadSettings`, sentences for the operator."""
    settings = loaded.settings
    check_exposure(settings)
    address = Address(settings.host, settings.port, settings.uds)
    listeners = sockets(address)
    try:
        app = App(build(settings, SystemClock()))
    except (StateLocked, ValueError, OSError) as error:
        for listener in listeners:
            listener.close()
        raise CannotStart(str(error)) from error
    tls = own_tls(settings)

    def ready() -> None:
        for listener in listeners:
            print(f"listening on {url_of(listener, tls=tls is not None)}", flush=True)

    async def reload() -> None:
        app.reload(loaded.again().settings)

    server = Server(uvicorn_config(app, settings, tls), ready, app.parts.events.close, reload)
    server.run(sockets=listeners)
    return 0 if server.started else 1


def check_exposure(s: Settings) -> None:
    """A process that can rewrite where traffic goes is not left open to a network by mistake."""
    if not loopback(s) and not s.all_tokens() and not s.insecure:
        text = f"{s.host} can be reached from other hosts: set an API token (tokens_file), or --insecure if you must"
        raise CannotStart(text)


def own_tls(s: Settings) -> ssl.SSLContext | None:
    return None if s.tls_cert is None else tls_context(s.tls_cert, s.tls_key, s.tls_client_ca)


# what operators see of the parts


def upstream_status(parts: Parts) -> Mapping[str, Any]:
    if isinstance(parts.registry, EmbeddedRegistry):
        return {"kind": "embedded"}
    return {"kind": "nacos", **parts.registry.status()}


def push_status(parts: Parts) -> Mapping[str, Any]:
    if parts.push is None:
        return {"state": "off"}
    return {"state": "ok"} if parts.poller.push_alive else {"state": "lost", "reason": "polling keeps time"}


def disk_status(parts: Parts) -> Mapping[str, Any]:
    if parts.disk is None:
        return {"state": "off"}
    return {"state": "failing", "reason": parts.disk.failing} if parts.disk.failing else {"state": "ok"}


def more_status(parts: Parts) -> Mapping[str, Any]:
    managed = [
        {"service": str(m.service), "address": m.instance.address, "passing": m.passing, "error": m.last_error}
        for m in parts.keeper
    ]
    udp = parts.udp
    pushes = {} if udp is None else {"sent": udp.sent, "refused": udp.refused, "tooLarge": udp.too_large}
    return {
        "managed": managed,
        "udpPush": pushes,
        "fastPath": {"answers": len(parts.answers), "bytes": parts.answers.bytes},
    }


def _repeated(answers: Answers) -> Iterable[Repeated]:
    for (kind, status), tally in answers.tallies.items():
        yield Repeated(kind, status, "head", tally.head)
        yield Repeated(kind, status, "target", tally.target)


def _more_metrics(parts: Parts) -> Iterable[Metric]:
    gauges = {
        "disk_failing": ("1 while the state cannot be written", int(bool(parts.disk and parts.disk.failing))),
        "managed_instances": ("Instances that this proxy beats for", len(parts.keeper)),
        "prepared_answers": ("Answers that the fast path holds", len(parts.answers)),
    }
    for name, (text, value) in gauges.items():
        family = GaugeMetricFamily(f"nacos_proxy_{name}", text)
        family.add_metric([], value)
        yield family

"""Makes the policy of each component from the settings."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from nacos_proxy import __version__
from nacos_proxy.app.listening import loopback
from nacos_proxy.app.settings import Settings
from nacos_proxy.background.health_checker import HealthCheckerPolicy
from nacos_proxy.background.poller import PollPolicy
from nacos_proxy.background.udp_push import Network, UdpPolicy
from nacos_proxy.background.webhooks import WebhooksPolicy
from nacos_proxy.catalog.cache import CachePolicy
from nacos_proxy.catalog.circuit_breaker import BreakerPolicy
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.core.agent import AgentPolicy
from nacos_proxy.frontends.auth import AccessPolicy, Token
from nacos_proxy.frontends.dns.finder import FinderPolicy
from nacos_proxy.frontends.dns.server import DnsPolicy
from nacos_proxy.frontends.events.stream_quota import StreamQuotaPolicy
from nacos_proxy.frontends.events.streams import EventsPolicy
from nacos_proxy.frontends.grpc.server import GrpcPolicy
from nacos_proxy.model.calls import Alive, Metrics
from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import DEFAULT_NAMESPACE
from nacos_proxy.model.views import Preference
from nacos_proxy.upstream.http.exchange import HttpPolicy, Timeouts, TlsPolicy
from nacos_proxy.upstream.nacos.login import LoginPolicy
from nacos_proxy.upstream.nacos.registry import NacosPolicy
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from nacos_proxy.wire.dns.names import parse_aliases, parse_zone

MAX_TTL = 3600  # seconds; nobody wants to wait longer for a change


def agent_policy(s: Settings, *, strict: bool) -> AgentPolicy:
    """`strict` is for agents that act on a client's account: only the upstream can accept their writes."""
    outage_writes = s.outage_writes and not strict
    return AgentPolicy(s.cold_wait, strict=strict, outage_writes=outage_writes, below_proxy=s.of_proxy)


def pending_policy(s: Settings) -> PendingPolicy:
    """How long an accepted write overrides lists of the upstream; the embedded registry lists a write at once.

    The nodes of a cluster list a write at different times, after 0.6 s and after 1.7 s (nacos-http.md, fact 19). So,
    with several servers, the list after the first one that has the write may still lack it.
    """
    grace = 0.0 if s.embedded else s.overlay_grace
    several = len(s.upstream) > 1 or bool(s.endpoint)
    return PendingPolicy(confirm_after=min(2.0, grace), grace=grace) if several else PendingPolicy(grace=grace)


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


def breaker_policy(s: Settings) -> BreakerPolicy:
    return BreakerPolicy(s.breaker_failures, max_delay=s.breaker_longest, slow=s.upstream_timeout)


def nacos_policy(s: Settings) -> NacosPolicy:
    """Raises `BadSettings` if the file of the password or of the upper proxy's token cannot be read."""
    urls = () if s.endpoint and s.upstream == ("embedded",) else s.upstream_urls
    identity = (s.identity_key, s.identity_value.get_secret_value()) if s.identity_key else None
    timeouts = Timeouts(s.upstream_connect_timeout, s.upstream_timeout, s.upstream_timeout)
    files = [str(path) if path else "" for path in (s.upstream_tls_ca, s.upstream_tls_cert, s.upstream_tls_key)]
    return NacosPolicy(
        ServersPolicy(urls, s.endpoint, context_path=s.upstream_context_path, slow=s.upstream_timeout),
        HttpPolicy(
            f"nacos-proxy/{__version__}",
            identity,
            sni=s.upstream_tls_sni,
            api_token=s.read_upstream_token(),
            timeouts=timeouts,
        ),
        TlsPolicy(*files, verify=s.upstream_tls_verify),
        login=LoginPolicy(s.username, s.read_password()),
        dialect=s.upstream_dialect,
        grpc_port=s.push_port,
        of_proxy=s.of_proxy,
        uds=s.upstream_uds,
    )


def poll_policy(s: Settings) -> PollPolicy:
    """An upper proxy is probed by a call that it answers itself: there may be a thousand lower ones."""
    probe = Alive() if s.of_proxy else Metrics()
    return PollPolicy(budget=s.poll_budget, late=s.cache_ttl, probe=probe)


def health_checker_policy(s: Settings) -> HealthCheckerPolicy:
    return HealthCheckerPolicy(_networks(s.managed_allow))


def webhooks_policy(s: Settings) -> WebhooksPolicy:
    """Raises `BadSettings` if the file of the secret cannot be read."""
    return WebhooksPolicy(s.read_webhooks(), s.read_webhook_secret(), f"nacos-proxy/{__version__}")


def udp_policy(s: Settings) -> UdpPolicy:
    return UdpPolicy(_networks(s.udp_push_allow))


def events_policy(s: Settings) -> EventsPolicy:
    return EventsPolicy(
        heartbeat=s.events_heartbeat,
        retry=int(s.events_retry * 1000),
        services_per_stream=s.services_per_client,
        quota=StreamQuotaPolicy(
            max_streams=max(s.subscribers_per_client, 20_000),
            streams_per_client=s.subscribers_per_client,
            services_per_client=s.watched_per_client,
        ),
    )


def grpc_policy(s: Settings, max_files: float) -> GrpcPolicy:
    """`max_files`: how many this process may have open. Half of them stay free for HTTP, the upstream and the disk."""
    default = min(GrpcPolicy().max_connections, max_files // 2)
    return GrpcPolicy(max_connections=s.max_connections or int(default))


def guard_policy(s: Settings) -> AccessPolicy:
    """Raises `BadSettings` if the file of tokens cannot be read."""
    tokens = tuple(Token(token.secret, token.right) for token in s.read_tokens())
    hosts, origins = frozenset(s.allowed_hosts), frozenset(s.cors_origins)
    return AccessPolicy(tokens, hosts, loopback(s), s.context_path, origins, s.max_body)


def finder_policy(s: Settings) -> FinderPolicy:
    prefer = Selector.parse(s.dns_prefer)
    return FinderPolicy(
        tuple(parse_zone(zone) for zone in s.dns_zone),
        s.namespace or DEFAULT_NAMESPACE,
        aliases=parse_aliases(s.dns_aliases),
        ttl=int(min(s.dns_ttl, MAX_TTL)),
        prefer=Preference(prefer) if prefer else None,
    )


def dns_policy(s: Settings) -> DnsPolicy:
    """With `insecure` and without `dns_allow`, everybody may ask."""
    return DnsPolicy(None if s.insecure and not s.dns_allow else _networks(s.dns_allow))


def _networks(names: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(name, strict=False) for name in names)

"""Each setting reaches its policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.app.listening import loopback
from nacos_proxy.app.policies import (
    agent_policy,
    breaker_policy,
    cache_policy,
    dns_policy,
    events_policy,
    finder_policy,
    grpc_policy,
    guard_policy,
    health_checker_policy,
    nacos_policy,
    pending_policy,
    poll_policy,
    udp_policy,
    webhooks_policy,
)
from nacos_proxy.app.settings import Settings
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.model.calls import Alive, Metrics
from nacos_proxy.model.services import ServiceKey

CASES: list[tuple[str, Any, Callable[[Settings], Any], Any]] = [
    ("cache_ttl", "3s", lambda s: cache_policy(s).ttl, 3.0),
    ("cache_negative_ttl", "1s", lambda s: cache_policy(s).ttl_unknown, 1.0),
    ("cache_stale_if_error", "forever", lambda s: cache_policy(s).stale_if_error, float("inf")),
    ("cache_max_services", "7", lambda s: cache_policy(s).max_services, 7),
    ("cache_max_unknown", "6", lambda s: cache_policy(s).max_unknown, 6),
    ("poll_interval_subscribed", "2s", lambda s: cache_policy(s).interval_subscribed, 2.0),
    ("poll_interval_read", "9s", lambda s: cache_policy(s).interval_read, 9.0),
    ("poll_safety", "60s", lambda s: cache_policy(s).interval_pushed, 60.0),
    ("watch_idle", "1m", lambda s: cache_policy(s).watch_idle, 60.0),
    ("empty_list_share", "0.25", lambda s: cache_policy(s).suspicious_share, 0.25),
    ("empty_list_confirm", "2s", lambda s: cache_policy(s).confirm_after, 2.0),
    ("cold_wait", "1s", lambda s: agent_policy(s, strict=True).cold_wait, 1.0),
    ("outage_writes", "true", lambda s: agent_policy(s, strict=False).outage_writes, True),
    ("outage_writes", "true", lambda s: agent_policy(s, strict=True).outage_writes, False),
    ("upstream", "proxy+http://10.0.0.1:8840", lambda s: agent_policy(s, strict=False).below_proxy, True),
    ("breaker_failures", "4", lambda s: breaker_policy(s).failures, 4),
    ("breaker_longest", "9s", lambda s: breaker_policy(s).max_delay, 9.0),
    ("upstream_timeout", "2s", lambda s: breaker_policy(s).slow, 2.0),
    ("poll_budget", "7", lambda s: poll_policy(s).budget, 7.0),
    ("cache_ttl", "3s", lambda s: poll_policy(s).late, 3.0),
    ("overlay_grace", "2s", lambda s: pending_policy(s).grace, 0.0),
    ("upstream", "a:1", lambda s: pending_policy(s), PendingPolicy(grace=3.0)),
    ("upstream", "a:1,b:2", lambda s: pending_policy(s), PendingPolicy(confirm_after=2.0, grace=3.0)),
    ("upstream", "a:1,b:2", lambda s: nacos_policy(s).servers.urls, ("a:1", "b:2")),
    ("endpoint", "http://e/list", lambda s: nacos_policy(s).servers.urls, ()),
    ("endpoint", "http://e/list", lambda s: nacos_policy(s).servers.endpoint, "http://e/list"),
    ("upstream_context_path", "/", lambda s: nacos_policy(s).servers.context_path, ""),
    ("upstream_timeout", "2s", lambda s: nacos_policy(s).http.timeouts.reads, 2.0),
    ("upstream_connect_timeout", "300ms", lambda s: nacos_policy(s).http.timeouts.connect, 0.3),
    ("upstream_tls_sni", "nacos", lambda s: nacos_policy(s).http.sni, "nacos"),
    ("upstream_tls_verify", "false", lambda s: nacos_policy(s).tls.verify if nacos_policy(s).tls else None, False),
    ("upstream_dialect", "v3", lambda s: nacos_policy(s).dialect, "v3"),
    ("username", "app", lambda s: nacos_policy(s).login.username, "app"),
    ("identity_key", "x-id", lambda s: nacos_policy(s).http.identity, ("x-id", "")),
    ("events_heartbeat", "5s", lambda s: events_policy(s).heartbeat, 5.0),
    ("events_retry", "500ms", lambda s: events_policy(s).retry, 500),
    ("subscribers_per_client", "3", lambda s: events_policy(s).quota.streams_per_client, 3),
    ("services_per_client", "4", lambda s: events_policy(s).services_per_stream, 4),
    ("watched_per_client", "5", lambda s: events_policy(s).quota.services_per_client, 5),
    ("max_connections", "7", lambda s: grpc_policy(s, 1024).max_connections, 7),
    ("max_connections", "0", lambda s: grpc_policy(s, math.inf).max_connections, 20_000),
    ("max_connections", "0", lambda s: grpc_policy(s, 1024).max_connections, 512),
    ("webhooks", "orders http://a", lambda s: webhooks_policy(s).targets[0].url, "http://a"),
    ("allowed_hosts", "proxy.local", lambda s: guard_policy(s).hosts, frozenset({"proxy.local"})),
    ("dns_zone", "nacos,svc.local", lambda s: [str(z) for z in finder_policy(s).zones], ["nacos.", "svc.local."]),
    ("dns_aliases", "u=dev/PAY@@x", lambda s: finder_policy(s).aliases, {"u": ServiceKey("dev", "PAY", "x")}),
    ("dns_prefer", "zone=a", lambda s: str(finder_policy(s).prefer), "zone=a:0.3"),
    ("dns_prefer", "", lambda s: finder_policy(s).prefer, None),
    ("dns_ttl", "7s", lambda s: finder_policy(s).ttl, 7),
    ("dns_ttl", "forever", lambda s: finder_policy(s).ttl, 3600),
    ("namespace", "dev", lambda s: finder_policy(s).namespace, "dev"),
    ("dns_allow", "10.0.0.0/8", lambda s: [str(n) for n in dns_policy(s).allow or ()], ["10.0.0.0/8"]),
    ("insecure", "true", lambda s: dns_policy(s).allow, None),
    ("upstream", "proxy+http://a", lambda s: nacos_policy(s).servers.urls, ("http://a:8840",)),
    ("upstream", "proxy+http://a", lambda s: (nacos_policy(s).of_proxy, nacos_policy(s).uds), (True, "")),
    ("upstream", "proxy+unix:///a.sock", lambda s: nacos_policy(s).uds, "/a.sock"),
    ("upstream", "proxy+http://a", lambda s: poll_policy(s).probe, Alive()),
    ("upstream", "http://a", lambda s: poll_policy(s).probe, Metrics()),
    ("context_path", "/discovery", lambda s: guard_policy(s).context_path, "/discovery"),
]


@pytest.mark.parametrize(("name", "text", "read", "value"), CASES, ids=[case[0] for case in CASES])
def test_a_setting_reaches_its_policy(name: str, text: Any, read: Callable[[Settings], Any], value: Any) -> None:
    assert read(Settings(**{name: text})) == value


def test_cache_policy_keeps_a_pushed_service_fresh_longer_than_its_safety_poll() -> None:
    policy = cache_policy(Settings(poll_safety=30.0))
    assert policy.ttl_pushed > policy.interval_pushed


def test_nacos_policy_reads_the_password_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    policy = nacos_policy(Settings(username="app", password_file=file))
    assert policy.login.password == "s3cret"
    assert "s3cret" not in repr(policy)


def test_nacos_policy_has_the_token_of_the_upper_proxy_and_hides_it() -> None:
    policy = nacos_policy(Settings(upstream="proxy+http://a", upstream_token="12345678"))
    assert policy.http.api_token == "12345678"
    assert "12345678" not in repr(policy)


def test_webhooks_policy_reads_the_secret_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret\n")
    assert webhooks_policy(Settings(webhooks="a http://b", webhook_secret_file=file)).secret == "s3cret"
    assert webhooks_policy(Settings(webhooks="a http://b", webhook_secret="other")).secret == "other"


def test_guard_policy_has_tokens_with_rights_and_hides_them() -> None:
    policy = guard_policy(Settings(tokens="read:12345678,admin:abcdefgh"))
    assert [(token.secret, token.right) for token in policy.tokens] == [("12345678", "read"), ("abcdefgh", "admin")]
    assert "12345678" not in repr(policy)


@pytest.mark.parametrize(
    ("settings", "only_here"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "127.0.0.2"}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": "10.0.0.1"}, False),
        ({"host": "proxy.example"}, False),
        ({"host": "0.0.0.0", "uds": "/run/proxy.sock"}, True),
    ],
)
def test_loopback_is_true_for_loopback_addresses_and_unix_sockets(settings: dict[str, str], only_here: bool) -> None:
    assert loopback(Settings(**settings)) is only_here


def test_udp_and_health_checker_policy_accept_networks_with_host_bits_set() -> None:
    given = ("10.1.2.3/8", "fd00::1/8")
    for allow in (
        udp_policy(Settings(udp_push_allow=given)).allow,
        health_checker_policy(Settings(managed_allow=given)).allow,
    ):
        assert [str(network) for network in allow] == ["10.0.0.0/8", "fd00::/8"]

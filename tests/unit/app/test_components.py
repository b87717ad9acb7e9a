"""The composition root: which components the settings give, how they are connected, started and finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.app.components import Components, build, build_tenant, finish, start
from nacos_proxy.app.settings import Settings
from nacos_proxy.background.state_file import StateLocked
from nacos_proxy.catalog.hub import Filter
from nacos_proxy.fastpath.table import PreparedResponse
from nacos_proxy.frontends.nacos.passthrough import Forwarder
from nacos_proxy.model.calls import Fetch, Register
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.grpc.push import GrpcPush
from nacos_proxy.upstream.nacos.login import Credential
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.upstream.nacos.servers import parse_server
from nacos_proxy.wire.http import Cacheable
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock

UPSTREAM = "http://127.0.0.1:1"


def made(clock: FakeClock | None = None, **settings: Any) -> Components:
    given = {"disk": False, "udp_push": False, "push": "off", **settings}
    return build(Settings(**given), clock or FakeClock())


async def test_build_without_an_upstream_uses_the_embedded_registry_and_its_push() -> None:
    parts = made()
    assert isinstance(parts.registry, EmbeddedRegistry)
    assert parts.push is parts.registry
    assert parts.forwarder is None


async def test_build_with_an_upstream_uses_it_as_registry_and_forwarder() -> None:
    parts = made(upstream=UPSTREAM)
    assert isinstance(parts.registry, NacosRegistry)
    assert isinstance(parts.forwarder, Forwarder)
    assert parts.push is None
    await parts.agent.close()


@pytest.mark.parametrize(
    ("upstream", "said", "version", "checks"),
    [
        ("embedded", "auto", "", True),
        ("embedded", "off", "", False),
        (UPSTREAM, "auto", "", False),
        (UPSTREAM, "auto", "1.4.8", False),
        (UPSTREAM, "auto", "2.5.1", True),
        (UPSTREAM, "on", "1.4.8", True),
        (UPSTREAM, "off", "3.0.3", False),
    ],
)
async def test_components_checks_follows_the_setting_else_the_servers(
    upstream: str, said: str, version: str, checks: bool
) -> None:
    parts = made(upstream=upstream, parameter_check=said)
    if isinstance(parts.registry, NacosRegistry):
        parts.registry.servers.all[0].capabilities.set_version({"version": version})
    assert parts.checks() is checks
    await parts.agent.close()


async def test_build_makes_the_agent_suspicious_when_a_server_fails() -> None:
    parts = made(upstream="http://127.0.0.1:1,http://127.0.0.1:2")
    assert isinstance(parts.registry, NacosRegistry)
    assert not parts.agent.suspicious
    server = parts.registry.servers.all[0]
    parts.registry.servers.failed(server, parts.clock.now(), Unreachable("refused", arrived=False))
    assert parts.agent.suspicious
    await parts.agent.close()


async def test_build_makes_the_agent_suspicious_when_a_connection_of_push_ends() -> None:
    """A server that restarts faster than HTTP notices lists nothing in its first answers."""
    parts = made(upstream=UPSTREAM, push="on")
    assert isinstance(parts.push, GrpcPush) and not parts.agent.suspicious
    for listener in parts.push.on_lost:
        listener()
    assert parts.agent.suspicious
    await parts.agent.close()


async def test_build_tenant_follows_the_servers_until_finish() -> None:
    parts = made(upstream="http://127.0.0.1:1,http://127.0.0.1:2", auth="client")
    assert isinstance(parts.registry, NacosRegistry)
    servers = parts.registry.servers
    before = len(servers.on_down), len(servers.on_up)
    tenant = build_tenant(parts, parts.registry, Credential("a-token"), lambda error: None)
    servers.failed(servers.all[0], parts.clock.now(), Unreachable("refused", arrived=False))
    assert tenant.agent.suspicious
    await start(tenant)
    await finish(tenant)
    assert (len(servers.on_down), len(servers.on_up)) == before
    await parts.agent.close()


async def test_build_clears_the_response_table_when_push_is_lost() -> None:
    parts = made()
    mark = Cacheable(KEY, 0.0, 1e9)
    parts.response_table.offer(
        b"place", PreparedResponse(mark, 200, [(b"content-length", b"0")], b""), parts.response_table.serial
    )
    await start(parts)
    assert parts.response_table.find(b"place", parts.clock.now()) is not None
    for listener in parts.poller.on_push_lost:
        listener()
    assert parts.response_table.find(b"place", parts.clock.now()) is None
    await finish(parts)


async def test_build_with_an_address_server_uses_nacos() -> None:
    parts = made(endpoint="http://127.0.0.1:1/list")
    assert isinstance(parts.registry, NacosRegistry)
    await parts.agent.close()


async def test_start_goes_on_with_what_connections_published_before_the_stop(tmp_path: Path) -> None:
    clock = FakeClock()
    before = made(clock, disk=True, state_dir=tmp_path)
    await start(before)
    await before.publications.publish("connection", KEY, [instance()])
    await finish(before)
    await clock.advance(20.0)
    after = made(clock, disk=True, state_dir=tmp_path)
    await start(after)
    assert after.publications.orphans == 1
    shown = await after.agent.send(Fetch(KEY))
    assert [i.address for i in shown.instances] == ["10.0.0.1:80"], "the embedded registry had lost it"
    await after.publications.publish("connection, again", KEY, [instance()])
    after.publications.end("connection, again")
    await finish(after)  # waits for the deregistration
    again = made(clock, disk=True, state_dir=tmp_path)
    await start(again)
    assert len(again.publications) == 0
    await finish(again)


async def test_build_tenant_keeps_published_instances_apart_and_in_memory() -> None:
    parts = made(upstream="http://127.0.0.1:1", auth="client")
    assert isinstance(parts.registry, NacosRegistry)
    tenant = build_tenant(parts, parts.registry, Credential("a-token"), lambda error: None)
    assert tenant.publications is not parts.publications and tenant.persistence is None
    await start(tenant)
    await finish(tenant)
    await parts.agent.close()


@pytest.mark.parametrize(("port", "expected"), [(0, (1001, 1002)), (5, (5, 6))])
async def test_build_connects_grpc_push_to_the_upstream(port: int, expected: tuple[int, ...], tmp_path: Path) -> None:
    parts = made(upstream=f"{UPSTREAM},http://127.0.0.1:2", push="on", push_port=port, state_dir=tmp_path)
    assert isinstance(parts.push, GrpcPush)
    assert isinstance(parts.registry, NacosRegistry)
    assert parts.push.account is parts.registry.own_client
    assert sorted(target.port for target in parts.push.account.grpc_targets()) == list(expected)
    await parts.agent.close()


async def test_build_gives_push_the_account_of_its_components(tmp_path: Path) -> None:
    parts = made(upstream=UPSTREAM, auth="client", push="on", state_dir=tmp_path)
    assert isinstance(parts.push, GrpcPush)
    assert isinstance(parts.registry, NacosRegistry)
    assert await parts.push.account.grpc_headers() == {}
    tenant = build_tenant(parts, parts.registry, Credential("a-token"), lambda error: None)
    assert isinstance(tenant.push, GrpcPush)
    assert await tenant.push.account.grpc_headers() == {"accessToken": "a-token"}
    await start(parts)
    await finish(parts)


async def test_build_lets_grpc_push_follow_the_address_server_until_it_ends(tmp_path: Path) -> None:
    parts = made(endpoint="http://127.0.0.1:1/list", push="on", state_dir=tmp_path)
    assert isinstance(parts.registry, NacosRegistry)
    listeners = parts.registry.servers.on_list
    assert len(listeners) == 2, "UDP push, and gRPC push"
    parts.registry.servers.replace([parse_server("127.0.0.1:2")])
    await start(parts)
    await finish(parts)
    assert len(listeners) == 1


async def test_build_tenant_has_its_own_catalog_and_no_disk(tmp_path: Path) -> None:
    parts = made(upstream=UPSTREAM, auth="client", disk=True, state_dir=tmp_path)
    assert isinstance(parts.registry, NacosRegistry)
    tenant = build_tenant(parts, parts.registry, Credential("a-token"), lambda error: None)
    assert tenant.agent.catalog is not parts.agent.catalog
    assert tenant.registry is parts.registry, "its /status shows the servers that it shares"
    assert tenant.persistence is None
    assert (tenant.response_table, tenant.clock, tenant.forwarder) == (
        parts.response_table,
        parts.clock,
        parts.forwarder,
    )
    assert "a-token" not in repr(tenant.settings)
    await start(parts)
    await finish(parts)


async def test_build_refuses_a_state_directory_that_is_in_use(tmp_path: Path) -> None:
    first = made(disk=True, state_dir=tmp_path)
    with pytest.raises(StateLocked, match="in use by another nacos-proxy"):
        made(disk=True, state_dir=tmp_path)
    await start(first)
    await finish(first)


async def test_start_restores_what_finish_wrote(tmp_path: Path) -> None:
    clock = FakeClock()
    first = made(clock, disk=True, state_dir=tmp_path)
    await start(first)
    await first.agent.read(KEY)
    await first.agent.write(Register(KEY, instance(ephemeral=False)))
    await finish(first)
    second = made(clock, upstream=UPSTREAM, disk=True, state_dir=tmp_path)
    await start(second)
    look = second.agent.catalog.cache.lookup(KEY, clock.now())
    assert look.snapshot is not None and [i.ip for i in look.snapshot.instances] == ["10.0.0.1"]
    assert look.from_disk
    assert second.agent.suspicious, "the upstream may have lost its memory meanwhile"
    await finish(second)
    assert not first.agent.suspicious, "it knew nothing to be lost"


async def test_build_forgets_prepared_answers_before_the_hub_publishes() -> None:
    parts = made()
    order: list[str] = []
    forget, parts.response_table.forget = (
        parts.response_table.forget,
        lambda key: order.append("answers") or forget(key),
    )  # type: ignore[method-assign]
    await start(parts)
    await parts.agent.read(KEY)
    box = parts.agent.catalog.hub.subscribe(Filter(frozenset({KEY})), lambda: order.append("hub"))
    await parts.agent.write(Register(KEY, instance()))
    assert order[:2] == ["answers", "hub"]
    assert parts.agent.catalog.hub.unsubscribe(box)
    await finish(parts)


async def test_build_keeps_the_embedded_registry_on_disk_or_logs_that_it_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nacos_proxy.components")
    lasting = Register(KEY, instance(ephemeral=False))
    for hosts in (0, 1):
        parts = made(disk=True, state_dir=tmp_path)
        await start(parts)
        assert len((await parts.registry.send(Fetch(KEY))).instances) == hosts
        await parts.agent.write(lasting)
        await finish(parts)
    assert "are lost" not in caplog.text
    made()
    assert "disk = false: persistent instances and services are lost when this process ends" in caplog.text

"""`operator_view`: what operators see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.app.components import Components, build
from nacos_proxy.app.operator_view import operator_view
from nacos_proxy.app.settings import Settings
from nacos_proxy.frontends.operations.endpoints import readiness, status_json
from nacos_proxy.frontends.operations.status_page import page
from nacos_proxy.model.calls import Register
from nacos_proxy.upstream.grpc.push import GrpcPush, available
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock

NOTE = "upstream: embedded registry, for development: no Nacos is behind it"


def components_of(**settings: Any) -> Components:
    return build(Settings(**{"disk": False, "udp_push": False, "push": "off", **settings}), FakeClock())


async def test_operator_view_names_the_embedded_registry() -> None:
    view = operator_view(components_of())
    assert (await status_json(view, 10))["upstream"]["kind"] == "embedded"
    assert readiness(view) == ("ready", [NOTE])
    assert NOTE.removeprefix("upstream: ") in page(await status_json(view, 10), [], *readiness(view)).decode()
    families = {family.name: family for family in view.metrics.registry.collect()}
    assert [s.value for s in families["nacos_proxy_upstream_embedded"].samples] == [1]


async def test_operator_view_shows_upstream_servers_and_no_secret() -> None:
    components = components_of(upstream="http://127.0.0.1:1", username="app", password="s3cret-word")
    shown = await status_json(operator_view(components), 10)
    assert shown["upstream"]["kind"] == "nacos"
    assert "127.0.0.1:1" in str(shown["upstream"])
    assert "s3cret-word" not in str(shown)
    await components.agent.close()


async def test_operator_view_reports_lost_push_only_if_a_service_is_followed() -> None:
    components = components_of()
    components.poller.push_alive = False
    assert readiness(operator_view(components)) == ("ready", [NOTE])  # push is not missed before a service is followed
    components.agent.catalog.cache.touch(KEY, 0.0)
    assert readiness(operator_view(components)) == (
        "ready",
        [NOTE],
    )  # a service without instances is not followed either
    await components.agent.write(Register(KEY, instance()))
    assert readiness(operator_view(components)) == ("degraded", ["push: unavailable; polling every 5 s", NOTE])
    await components.agent.close()


@pytest.mark.skipif(not available(), reason="the extra 'push' is not installed")
async def test_operator_view_is_ready_while_push_is_idle(tmp_path: Path) -> None:
    components = components_of(upstream="http://127.0.0.1:1", push="on", state_dir=tmp_path)
    view = operator_view(components)
    assert ((await status_json(view, 10))["push"]["state"], readiness(view)) == ("idle", ("ready", []))
    assert not [family for family in view.metrics.registry.collect() if family.name == "nacos_proxy_push_up"]
    await components.agent.close()


@pytest.mark.skipif(not available(), reason="the extra 'push' is not installed")
@pytest.mark.parametrize(("push", "state", "ready"), [("auto", "unavailable", "ready"), ("on", "lost", "degraded")])
async def test_operator_view_is_degraded_without_a_grpc_port_only_if_push_is_on(
    push: str, state: str, ready: str, tmp_path: Path
) -> None:
    components = components_of(upstream="http://127.0.0.1:1", push=push, state_dir=tmp_path)
    components.agent.catalog.cache.watch(KEY, 0.0)
    assert isinstance(components.push, GrpcPush)
    components.push.unavailable = "no gRPC port answers"
    view = operator_view(components)
    assert ((await status_json(view, 10))["push"]["state"], readiness(view)[0]) == (state, ready)
    shown = {family.name for family in view.metrics.registry.collect() if family.samples}
    assert ("nacos_proxy_push_up" in shown) is (push == "on")
    await components.agent.close()


async def test_operator_view_shows_and_counts_failing_background_work() -> None:
    components = components_of()
    components.agent.supervisor.failed("disk", OSError("no space left"))
    view = operator_view(components)
    assert readiness(view) == ("degraded", ["failing: disk: OSError: no space left", NOTE])
    families = {family.name: family for family in view.metrics.registry.collect()}
    assert [(s.labels, s.value) for s in families["nacos_proxy_background_failures"].samples] == [({"part": "disk"}, 1)]
    await components.agent.close()


async def test_operator_view_counts_udp_pushes_by_outcome() -> None:
    components = components_of(udp_push=True)
    assert components.udp is not None
    components.udp.sent, components.udp.too_large = 5, 1
    view = operator_view(components)
    shown = {"sent": 5, "acknowledged": 0, "givenUp": 0, "refused": 0, "tooLarge": 1}
    assert (await status_json(view, 10))["udpPush"] == shown
    families = {family.name: family for family in view.metrics.registry.collect()}
    samples = families["nacos_proxy_udp_pushes"].samples
    assert {s.labels["what"]: s.value for s in samples if s.value} == {"sent": 5, "too_large": 1}


async def test_operator_view_has_no_udp_counts_without_udp_push() -> None:
    view = operator_view(components_of())
    assert (await status_json(view, 10))["udpPush"] == {}
    assert "nacos_proxy_udp_pushes" not in {family.name for family in view.metrics.registry.collect()}

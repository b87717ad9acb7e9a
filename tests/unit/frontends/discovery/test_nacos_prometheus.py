"""Nacos's own paths for Prometheus. The context path is taken off before, in `app.router`."""

from __future__ import annotations

import pytest

from nacos_proxy.frontends.discovery.nacos_prometheus import owns
from nacos_proxy.model.errors import Unreachable
from tests.helpers.build import instance, key, snapshot
from tests.unit.frontends.conftest import World

SERVICES = [key("orders"), key("orders", "g2"), key("stock"), key("orders", namespace="dev")]


async def targets(world: World, path: str) -> list[str]:
    answer = await world.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return [target for group in answer.json() for target in group["targets"]]


async def test_nacos_prometheus_lists_everything_a_namespace_or_a_service_in_any_group(world: World) -> None:
    hosts = (instance(f"10.0.0.{n}", 80) for n in range(1, 5))
    world.shelf.services = {k: snapshot(host, service=k) for k, host in zip(SERVICES, hosts, strict=True)}
    for path, last in (
        ("/prometheus", "4132"),
        ("/prometheus/namespaceId/public", "132"),
        ("/prometheus/namespaceId/dev", "4"),
        ("/prometheus/namespaceId/none", ""),
        ("/prometheus/namespaceId/public/service/orders", "12"),
        ("/prometheus/namespaceId/public/service/g2@@orders", ""),
    ):
        assert await targets(world, path) == [f"10.0.0.{n}:80" for n in last], path
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert len(await targets(world, "/prometheus")) == 4


async def test_nacos_prometheus_answers_an_empty_list_and_fails_if_nothing_is_known(world: World) -> None:
    empty = await world.ask("GET", "/prometheus")
    assert (empty.status, empty.body) == (200, b"[]")
    again = await world.ask("GET", "/prometheus", headers={"if-none-match": empty.headers["etag"]})
    assert again.status == 304
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert (await world.ask("GET", "/prometheus")).status == 503


async def test_nacos_prometheus_refuses_a_namespace_that_cannot_be(world: World) -> None:
    answer = await world.ask("GET", "/prometheus/namespaceId/a%20b")
    assert (answer.status, answer.json()["parameter"]) == (400, "namespace")


@pytest.mark.parametrize(
    ("path", "owned"), [("/prometheus", True), ("/prometheus/x", True), ("/prometheuses", False), ("/v1/ns", False)]
)
def test_owns_only_its_own_paths(path: str, owned: bool) -> None:
    assert owns(path) is owned

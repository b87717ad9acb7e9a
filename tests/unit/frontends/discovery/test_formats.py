"""Lists for load balancers and scrapers: one route for each format."""

from __future__ import annotations

import pytest

from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.wire.discovery.prometheus import TargetGroup
from nacos_proxy.wire.http import CACHEABLE
from tests.helpers.build import KEY, instance, key, snapshot
from tests.unit.frontends.conftest import World

A, B = instance("10.0.0.1", 80), instance("10.0.0.2", 80, weight=3.0, cluster="c2")


async def test_prometheus_gets_all_targets_of_the_services_named(world: World) -> None:
    world.shelf.services = {
        KEY: snapshot(A),
        key("stock"): snapshot(instance("::1", healthy=False), service=key("stock")),
    }
    answer = await world.ask("GET", "/api/v1/sd/prometheus?service=orders&service=stock")
    for group in answer.json():
        TargetGroup.model_validate(group)
    assert [group["targets"] for group in answer.json()] == [["10.0.0.1:80"], ["[::1]:80"]]
    assert answer.headers["content-type"] == "application/json"
    assert CACHEABLE not in answer.scope
    one = await world.ask("GET", "/api/v1/sd/prometheus?service=orders")
    assert one.scope[CACHEABLE].invalidation_key == KEY


async def test_formats_show_selected_or_preferred_instances_only(world: World) -> None:
    hosts = [instance(f"10.0.0.{n}", 80, metadata={"zone": zone}) for n, zone in enumerate("abb", 1)]
    world.shelf.services[KEY] = snapshot(*hosts)
    for query, shown in (("selector=zone=b", [b"10.0.0.2:80", b"10.0.0.3:80"]), ("prefer=zone=a", [b"10.0.0.1:80"])):
        assert (await world.ask("GET", f"/api/v1/sd/text?service=orders&{query}")).body.split() == shown
        groups = (await world.ask("GET", f"/api/v1/sd/prometheus?service=orders&{query}")).json()
        assert [group["targets"] for group in groups] == [[address.decode()] for address in shown]


async def test_prometheus_can_ask_for_a_whole_group(world: World) -> None:
    names = [key("a", "g"), key("b", "g"), key("c")]
    world.shelf.services = {k: snapshot(A, service=k) for k in names}
    answer = await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=g")
    assert [group["labels"]["__meta_nacos_service"] for group in answer.json()] == ["a", "b"]
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    known = await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=g")
    assert len(known.json()) == 2
    assert (await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=none")).status == 503


async def test_formats_can_ask_for_all_groups_of_a_namespace(world: World) -> None:
    names = [key("b", "g"), key("a"), key("c", "g", "dev")]
    world.shelf.services = {k: snapshot(A, service=k) for k in names}
    target = "/api/v1/sd/prometheus?service=*&group=*"

    async def found(more: str = "") -> list[str]:
        answer = await world.ask("GET", target + more)
        return [group["labels"]["__meta_nacos_service"] for group in answer.json()]

    assert await found() == ["a", "b"]
    assert await found("&namespace=dev") == ["c"]
    assert await found("&namespace=none") == []
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert await found() == ["a", "b"]
    assert (await world.ask("GET", f"{target}&namespace=none")).status == 503
    assert (await world.ask("GET", "/api/v1/sd/prometheus?service=a&group=*")).json()["parameter"] == "group"


async def test_formats_say_if_the_upstream_cannot_list_all_groups(world: World) -> None:
    """r-nacos cannot. Half a list would drop the targets of the other groups."""
    world.shelf.services[KEY] = snapshot(A)
    await world.ask("GET", "/api/v1/sd/text?service=orders")
    world.registry.script = lambda call: Refused(Reason.GONE, "no dialect has it", status=501)
    answer = await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=*")
    assert (answer.status, "name one group" in answer.json()["detail"]) == (501, True)
    world.registry.script = lambda call: Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    for target in ("service=*&group=*", "service=*"):
        assert (await world.ask("GET", f"/api/v1/sd/prometheus?{target}")).status == 403


async def test_formats_write_long_answers_in_a_thread(world: World) -> None:
    hosts = [instance(f"10.0.{n // 250}.{n % 250}", 80) for n in range(1001)]
    world.shelf.services = {KEY: snapshot(*hosts), key("stock"): snapshot(A, service=key("stock"))}
    assert len((await world.ask("GET", "/api/v1/sd/prometheus?service=orders&service=stock")).json()) == 1002


@pytest.mark.parametrize(
    ("query", "accept", "media"),
    [
        ("", "", "application/json"),
        ("", "*/*", "application/json"),
        ("&format=yaml", "", "application/yaml"),
        ("", "application/yaml", "application/yaml"),
        ("", "application/yaml, application/json", "application/json"),
        ("&format=json", "application/yaml", "application/json"),
    ],
)
async def test_endpointslice_may_be_asked_for_as_yaml(world: World, query: str, accept: str, media: str) -> None:
    world.shelf.services[KEY] = snapshot(A)
    target = f"/api/v1/sd/endpointslice?service=orders{query}"
    answer = await world.ask("GET", target, headers={"accept": accept})
    assert (answer.headers["content-type"], answer.json()["kind"]) == (media, "List")


async def test_prometheus_fails_if_one_service_is_unknown(world: World) -> None:
    """Prometheus keeps its last list on an error; half a list would drop the other half's targets."""
    world.shelf.services[KEY] = snapshot(A)
    await world.ask("GET", "/api/v1/services/orders")
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert (await world.ask("GET", "/api/v1/sd/prometheus?service=orders&service=stock")).status == 503


async def test_traefik_keeps_the_key_of_a_service_without_servers(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B, instance("10.0.0.9", healthy=False))
    answer = await world.ask("GET", "/api/v1/sd/traefik?service=orders&service=stock")
    services = answer.json()["http"]["services"]
    assert [len(services[name]["loadBalancer"]["servers"]) for name in ("orders", "stock")] == [2, 0]
    assert (await world.ask("GET", "/api/v1/sd/traefik?service=*&group=none")).body == b"{}"


async def test_lines_have_the_format_of_each_load_balancer(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B, instance("10.0.0.9", healthy=False))
    for name, line in (
        ("text", b"10.0.0.2:80\n"),
        ("nginx", b"server 10.0.0.2:80 weight=3;\n"),
        ("haproxy", b"server 10.0.0.2:80 10.0.0.2:80 weight 3 check\n"),
    ):
        answer = await world.ask("GET", f"/api/v1/sd/{name}?service=orders&clusters=c2,c9")
        assert (answer.status, answer.body) == (200, line)
        tag = {"if-none-match": answer.headers["etag"]}
        assert (await world.ask("GET", f"/api/v1/sd/{name}?service=orders&clusters=c2,c9", headers=tag)).status == 304


async def test_lines_without_a_server_are_an_error_for_nginx_and_haproxy(world: World) -> None:
    for name, status in (("text", 200), ("nginx", 503), ("haproxy", 503)):
        assert (await world.ask("GET", f"/api/v1/sd/{name}?service=orders")).status == status


@pytest.mark.parametrize("target", ["prometheus", "text", "prometheus?service=*&service=a", "text?service=a&service=b"])
async def test_lists_require_the_parameter_service(world: World, target: str) -> None:
    answer = await world.ask("GET", f"/api/v1/sd/{target}")
    assert (answer.status, answer.json()["parameter"]) == (400, "service")


class TestBounds:
    @pytest.fixture
    def max_services(self) -> int:
        return 2

    async def test_services_refuses_more_than_max_services(self, world: World) -> None:
        many = await world.ask("GET", "/api/v1/sd/prometheus?service=a&service=b&service=c")
        assert (many.status, many.json()["parameter"]) == (400, "service")
        world.shelf.services = {k: snapshot(A, service=k) for k in (key("a"), key("b"), key("c"))}
        group = await world.ask("GET", "/api/v1/sd/prometheus?service=*")
        assert (group.status, "more than 2" in group.json()["detail"]) == (400, True)

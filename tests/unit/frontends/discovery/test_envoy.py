"""Envoy's discovery over REST: answers, long polls, and what must not make Envoy drop what it has."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from nacos_proxy.frontends.discovery.envoy import MIN_BODY, wait_of
from nacos_proxy.frontends.events.stream_quota import StreamQuotaPolicy
from nacos_proxy.frontends.events.streams import EventsPolicy
from nacos_proxy.frontends.open_streams import OPEN_STREAMS, Admission, OpenStreams
from nacos_proxy.frontends.rest.models import DiscoveryResponse
from nacos_proxy.model.calls import Fetch, ListServices, ServicePage
from nacos_proxy.model.errors import Denied, Reason, Refused, Unreachable
from tests.helpers.asgi import Exchange, scope, start
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import settle
from tests.unit.frontends.conftest import World, register

ENDPOINTS, CLUSTERS = "/v3/discovery:endpoints", "/v3/discovery:clusters"
HELD = {"x-envoy-expected-rq-timeout-ms": "30000"}
AWAY = Unreachable("refused", arrived=False)


async def begin(world: World, path: str, headers: dict[str, str] | None = None, **fields: Any) -> Exchange:
    body = orjson.dumps(fields)
    return await start(world.app, scope("POST", path, {"host": "nacos_proxy", **(headers or {})}), body)


async def eds(world: World, *names: str, version: str = "", headers: dict[str, str] | None = None) -> Exchange:
    """A request for endpoints, answered unless it is held."""
    return await begin(world, ENDPOINTS, headers, resource_names=names, version_info=version)


async def cds(world: World, version: str = "", headers: dict[str, str] | None = None, **options: Any) -> Exchange:
    return await begin(
        world, CLUSTERS, headers, version_info=version, node={"metadata": {"nacos_proxy": options} if options else {}}
    )


def ips(answer: Exchange) -> dict[str, list[list[str]]]:
    """The addresses in each assignment, by priority."""
    DiscoveryResponse.model_validate(answer.json())
    found: dict[str, list[list[str]]] = {}
    for resource in answer.json()["resources"]:
        levels = found.setdefault(resource["cluster_name"], [])
        for locality in resource["endpoints"]:
            levels += [[]] * (locality["priority"] + 1 - len(levels))
            addresses = [e["endpoint"]["address"]["socket_address"]["address"] for e in locality["lb_endpoints"]]
            levels[locality["priority"]] = levels[locality["priority"]] + addresses
    return found


def resources(answer: Exchange) -> dict[str, str]:
    """The EDS resource of each cluster."""
    return {it["name"]: it["eds_cluster_config"]["service_name"] for it in answer.json()["resources"]}


async def test_endpoints_answers_each_name_and_an_unknown_service_without_endpoints(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1"), instance("10.0.0.2", weight=0.0))
    other = key(group="G", namespace="dev")
    world.shelf.services[other] = snapshot(instance("10.0.0.3"), service=other)
    answer = await eds(world, "orders", "dev/G/orders", "dev/G@@orders", "nothing")
    assert answer.status == 200
    three = [["10.0.0.3"]]
    assert ips(answer) == {"orders": [["10.0.0.1"]], "dev/G/orders": three, "dev/G@@orders": three, "nothing": []}


async def test_endpoints_read_the_options_of_a_name(world: World) -> None:
    world.shelf.services[KEY] = snapshot(
        instance("10.0.0.1", metadata={"zone": "a"}),
        instance("10.0.0.2", metadata={"zone": "b"}),
        instance("10.0.0.3", metadata={"zone": "a"}, healthy=False),
        instance("10.0.0.4", metadata={"zone": "b"}, healthy=False),
        instance("10.0.0.5", metadata={"zone": "b"}, cluster="c2"),
    )
    expected = {
        "orders?selector=zone=a": [["10.0.0.1"]],
        "orders?clusters=c2,c3": [["10.0.0.5"]],
        "orders?prefer=zone=a": [["10.0.0.1"], ["10.0.0.2", "10.0.0.5"]],
        "orders?prefer=zone=a&prefer_min=0.9": [["10.0.0.1", "10.0.0.2", "10.0.0.5"]],
        "orders?prefer=zone=a&unhealthy=mark": [["10.0.0.1", "10.0.0.3"], ["10.0.0.2", "10.0.0.5", "10.0.0.4"]],
        "orders?selector=zone%3Da&unhealthy=mark": [["10.0.0.1", "10.0.0.3"]],
    }
    assert ips(await eds(world, *expected)) == expected


async def test_endpoints_refuse_a_wrong_name_and_say_why(world: World) -> None:
    answer = await eds(world, "orders?selctor=zone=a")
    assert (answer.status, answer.json()["parameter"]) == (400, "resource_names")
    assert "did you mean 'selector'" in answer.json()["detail"]


async def test_endpoints_need_names_and_json(world: World) -> None:
    assert (await eds(world)).status == 400
    assert (await eds(world, *(f"s{n}" for n in range(21)))).status == 400
    assert (await world.ask("POST", ENDPOINTS, body=b"x")).status == 400
    assert (await world.ask("GET", ENDPOINTS)).status == 405


async def test_endpoints_take_a_body_of_256_kib_whatever_max_body_is(world: World) -> None:
    world.app.state.max_body = 1_000
    node = {"extensions": ["x" * 1000] * 250}
    assert (await begin(world, ENDPOINTS, node=node, resource_names=["orders"])).status == 200
    assert (await world.ask("POST", ENDPOINTS, body=b" " * (MIN_BODY + 1))).status == 413


async def test_endpoints_answer_304_at_once_to_a_client_that_does_not_wait(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance())
    version = (await eds(world, "orders")).json()["version_info"]
    for headers in ({}, {"x-envoy-expected-rq-timeout-ms": "200"}, {"x-envoy-expected-rq-timeout-ms": "soon"}):
        answer = await eds(world, "orders", version=version, headers=headers)
        assert (answer.complete, answer.status, answer.body) == (True, 304, b"")


async def test_endpoints_hold_a_request_until_its_assignment_changes(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", metadata={"zone": "a"}))
    name = "orders?selector=zone=a"
    version = (await eds(world, name)).json()["version_info"]
    poll = await eds(world, name, version=version, headers=HELD)
    await register(world, "10.0.0.2", metadata={"zone": "b"})
    assert not poll.complete
    await register(world, "10.0.0.3", metadata={"zone": "a"})
    await poll.ended()
    assert poll.status == 200 and ips(poll) == {name: [["10.0.0.1", "10.0.0.3"]]}
    assert world.events.quota.clients == {} and world.agent.catalog.hub.readers == 0


async def test_endpoints_answer_304_before_the_time_of_envoy_is_up(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance())
    version = (await eds(world, "orders")).json()["version_info"]
    poll = await eds(world, "orders", version=version, headers=HELD)
    await world.clock.advance(26.9)
    assert not poll.complete
    await world.clock.advance(0.2)
    await poll.ended()
    assert (poll.status, poll.body) == (304, b"")


@pytest.mark.parametrize(("ms", "seconds"), [("1000", 0.75), ("30000", 27.0), ("99999999", 300.0), ("0", 0.0)])
def test_wait_of_ends_before_envoy_gives_up(ms: str, seconds: float) -> None:
    assert wait_of(scope("POST", ENDPOINTS, {"x-envoy-expected-rq-timeout-ms": ms})) == seconds


async def test_endpoints_without_knowledge_are_an_error_so_that_envoy_keeps_what_it_has(world: World) -> None:
    world.registry.script = lambda call: AWAY
    assert (await eds(world, "orders", version="7", headers=HELD)).status == 503


async def test_endpoints_leave_out_what_cannot_be_known_beside_what_is(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1"))
    await eds(world, "orders")
    world.registry.script = lambda call: AWAY
    assert ips(await eds(world, "orders", "stock")) == {"orders": [["10.0.0.1"]]}


async def test_endpoints_of_an_outage_are_those_from_before_in_the_same_version(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1"))
    version = (await eds(world, "orders")).json()["version_info"]
    world.registry.script = lambda call: AWAY
    await world.clock.advance(60)
    assert (await eds(world, "orders", version=version)).status == 304
    assert ips(await eds(world, "orders")) == {"orders": [["10.0.0.1"]]}


async def test_endpoints_end_when_the_client_leaves_the_proxy_stops_or_access_is_lost(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance())
    version = (await eds(world, "orders")).json()["version_info"]
    polls = [await eds(world, "orders", version=version, headers=HELD) for _ in range(3)]
    await polls[0].leave()
    assert len(world.events.polls) == 2
    world.events.refuse(Refused(Reason.NO_RIGHT, "authorization failed!", status=403), KEY)
    await polls[1].ended()
    assert polls[1].status == 403
    poll = await eds(world, "orders", version=version, headers=HELD)
    world.events.close()
    await poll.ended()
    assert (poll.status, len(world.events.polls)) == (304, 0)
    assert (await eds(world, "orders", version=version, headers=HELD)).complete


async def test_endpoints_and_clusters_end_when_their_token_is_revoked(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance())
    denied: list[Denied] = []
    streams = OpenStreams(lambda _: denied[0] if denied else None)
    versions = [(await eds(world, "orders")).json()["version_info"], (await cds(world)).json()["version_info"]]
    polls = []
    for path, version in zip((ENDPOINTS, CLUSTERS), versions, strict=True):
        request = scope("POST", path, HELD, **{OPEN_STREAMS: (streams, Admission("t", "read"))})
        body = orjson.dumps({"resource_names": ["orders"], "version_info": version})
        polls.append(await start(world.app, request, body))
    assert not any(poll.complete for poll in polls)
    denied.append(Denied("revoked", status=401))
    streams.end_revoked()
    for poll in polls:
        await poll.ended()
        assert poll.status == 401


class TestQuota:
    @pytest.fixture
    def events_policy(self) -> EventsPolicy:
        return EventsPolicy(quota=StreamQuotaPolicy(streams_per_client=1))

    async def test_endpoints_beyond_the_quota_are_answered_at_once(self, world: World) -> None:
        world.shelf.services[KEY] = snapshot(instance())
        version = (await eds(world, "orders")).json()["version_info"]
        held = await eds(world, "orders", version=version, headers=HELD)
        more = await eds(world, "orders", version=version, headers=HELD)
        clusters = (await cds(world)).json()["version_info"]
        assert (held.complete, more.complete, more.status) == (False, True, 304)
        assert (await cds(world, clusters, HELD)).status == 304
        assert world.events.quota.refused == 2


async def test_clusters_are_those_that_the_node_names(world: World) -> None:
    answer = await cds(
        world, services=["orders", "stock?prefer=zone=a", "dev/G/carts"], cluster={"lb_policy": "RANDOM"}
    )
    assert resources(answer) == {
        "orders": "orders",
        "stock": "stock?prefer=zone=a",
        "dev/G/carts": "dev/G/carts",
    }
    made = answer.json()["resources"][0]
    source = made["eds_cluster_config"]["eds_config"]["api_config_source"]
    assert (made["lb_policy"], source["cluster_names"]) == ("RANDOM", ["nacos_proxy"])
    assert world.registry.calls == [], "costs no request"


@pytest.mark.parametrize(("host", "source"), [("Discovery_1", "Discovery_1"), ("10.0.0.1:8848", "nacos_proxy")])
async def test_clusters_read_their_endpoints_from_the_cluster_that_the_host_names(
    world: World, host: str, source: str
) -> None:
    answer = await cds(world, headers={"host": host}, services=["orders"])
    config = answer.json()["resources"][0]["eds_cluster_config"]["eds_config"]["api_config_source"]
    assert config["cluster_names"] == [source]


@pytest.mark.parametrize(
    "options",
    [
        {"services": ["orders?selctor=a"]},
        {"services": ["orders", "orders?selector=a"]},
        {"services": ["a b/*"]},
        {"services": [f"G{n}@@*" for n in range(11)]},
        {"services": [f"s{n}" for n in range(1001)]},
        {"other": 1},
    ],
    ids=lambda options: str(options)[:40],
)
async def test_clusters_refuse_options_that_cannot_be_meant(world: World, options: dict[str, Any]) -> None:
    assert (await cds(world, **options)).status == 400


def listed(world: World, *names: str) -> None:
    """The registry lists these names from now on."""
    shelf = world.shelf

    def answer(call: Any) -> Any:
        return ServicePage(len(names), names) if isinstance(call, ListServices) else shelf(call)

    world.registry.script = answer


async def test_clusters_are_by_default_all_services_of_the_default_group(world: World) -> None:
    listed(world, "orders", "stock")
    expected = {"orders": "public/DEFAULT_GROUP@@orders", "stock": "public/DEFAULT_GROUP@@stock"}
    assert resources(await cds(world)) == expected
    assert resources(await cds(world, services=["*?prefer=zone=a"]))["stock"] == f"{expected['stock']}?prefer=zone=a"
    assert resources(await cds(world, services=["dev/G/*"])) == {
        "dev/G/orders": "dev/G@@orders",
        "dev/G/stock": "dev/G@@stock",
    }


async def test_clusters_of_many_polls_cost_a_list_of_names_every_five_seconds(world: World) -> None:
    listed(world, "orders")
    version = (await cds(world)).json()["version_info"]
    polls = [await cds(world, version, HELD) for _ in range(20)]
    assert len(world.registry.sent(ListServices)) == 1
    for _ in range(20):
        await world.clock.advance(1)
    assert 3 <= len(world.registry.sent(ListServices)) <= 5
    assert world.registry.sent(Fetch) == []
    for poll in polls:
        await poll.leave()


async def test_clusters_hold_a_request_until_a_service_comes_or_goes(world: World) -> None:
    listed(world, "orders")
    version = (await cds(world)).json()["version_info"]
    poll = await cds(world, version, HELD)
    await world.clock.advance(3)
    assert not poll.complete
    listed(world, "orders", "stock")
    for _ in range(4):
        await world.clock.advance(1)
    await poll.ended()
    assert list(resources(poll)) == ["orders", "stock"]
    same = await cds(world, poll.json()["version_info"], HELD)
    for _ in range(28):
        await world.clock.advance(1)
    await same.ended()
    assert same.status == 304


async def test_clusters_of_a_service_that_is_known_here_come_without_a_list(world: World) -> None:
    listed(world)
    version = (await cds(world)).json()["version_info"]
    poll = await cds(world, version, HELD)
    world.shelf.services[KEY] = snapshot(instance())
    await world.agent.read(KEY)
    await world.clock.advance(1)
    await poll.ended()
    assert list(resources(poll)) == ["orders"]


async def test_clusters_stay_while_the_upstream_cannot_be_asked(world: World) -> None:
    """After a restart of the proxy during an outage, Envoy must not lose clusters that the proxy has forgotten."""
    world.registry.script = lambda call: AWAY
    answer = await cds(world)
    assert (answer.status, answer.json()["detail"].rpartition(": ")[2]) == (503, "refused")
    world.registry.script = world.shelf
    world.shelf.services[KEY] = snapshot(instance())
    await world.agent.read(KEY)
    world.registry.script = lambda call: AWAY
    assert list(resources(await cds(world))) == ["orders"], "a client without any clusters gets those that are known"
    assert (await cds(world, "7")).status == 304
    listed(world, "orders", "stock")
    await world.clock.advance(6)
    await settle()
    answer = await cds(world, "7")
    world.registry.script = lambda call: AWAY
    await world.clock.advance(60)
    assert (await cds(world, answer.json()["version_info"])).status == 304


async def test_a_file_has_what_the_endpoints_have(world: World) -> None:
    world.shelf.services[KEY] = snapshot(
        instance("10.0.0.1", metadata={"zone": "a"}), instance("10.0.0.2"), instance("10.0.0.3", healthy=False)
    )
    target = "/api/v1/sd/envoy?service=orders&prefer=zone=a"
    answer = await world.ask("GET", target)
    assert ips(answer) == {"orders": [["10.0.0.1"], ["10.0.0.2"]]}
    assert (await world.ask("GET", target, headers={"if-none-match": answer.headers["etag"]})).status == 304
    assert ips(await world.ask("GET", f"{target}&unhealthy=mark"))["orders"][1] == ["10.0.0.2", "10.0.0.3"]
    eds_body = (await eds(world, "orders")).body
    assert (await world.ask("GET", "/api/v1/sd/envoy?service=orders")).body == eds_body
    assert (await world.ask("GET", "/api/v1/sd/envoy")).status == 400


class TestManyServices:
    @pytest.fixture
    def max_services(self) -> int:
        return 2

    async def test_clusters_of_a_group_with_too_many_services_are_refused(self, world: World) -> None:
        listed(world, "a", "b", "c")
        answer = await cds(world)
        assert (answer.status, "more than 2 services" in answer.json()["detail"]) == (400, True)
        assert list(resources(await cds(world, services=["a", "b"]))) == ["a", "b"]

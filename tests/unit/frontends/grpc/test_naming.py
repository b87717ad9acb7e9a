"""`Naming`: queries, subscriptions and published instances of a session."""

from __future__ import annotations

import asyncio
import json

from nacos_proxy.catalog.freshness import Freshness
from nacos_proxy.catalog.hub import Notice
from nacos_proxy.catalog.registrations import CONNECTION, Registration
from nacos_proxy.frontends.grpc.access import Served
from nacos_proxy.frontends.open_streams import Right
from nacos_proxy.model.calls import Beat, Deregister, Fetch, Register
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.model.services import Instance
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import settle
from tests.helpers.grpc_client import GrpcWorld, grpc_world, ips

A, B = instance("10.0.0.1"), instance("10.0.0.2", cluster="c2", healthy=False)
DOWN = Unreachable("nobody is there", arrived=False)


async def change(world: GrpcWorld, ip: str) -> None:
    await world.agent.write(Register(KEY, instance(ip)))
    await settle()


# --- reads ---------------------------------------------------------------------------------------------------------


async def test_a_query_is_answered_from_the_cache_with_its_filters() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A, B)
        sdk = world.sdk()
        kind, body = await sdk.query()
        assert (kind, ips(body)) == ("QueryServiceResponse", ["10.0.0.1", "10.0.0.2"])
        assert ips((await sdk.query(cluster="c2"))[1]) == ["10.0.0.2"]
        assert ips((await sdk.query(cluster="c2", healthyOnly=True))[1]) == []
        assert len(world.registry.sent(Fetch)) == 1


async def test_a_query_shows_the_newest_list_although_answers_are_prepared() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        assert ips((await sdk.query())[1]) == []
        for n in range(1, 4):
            await change(world, f"10.0.0.{n}")
            assert len(ips((await sdk.query())[1])) == n


async def test_a_query_of_a_blank_name_has_no_hosts_and_asks_nobody() -> None:
    async with grpc_world() as world:
        kind, body = await world.sdk().query("")
        assert (kind, body["serviceInfo"]["hosts"], world.registry.calls) == ("QueryServiceResponse", [], [])


async def test_a_query_without_anything_known_is_refused_in_its_own_class() -> None:
    async with grpc_world() as world:
        world.registry.script = lambda call: DOWN
        kind, body = await world.sdk().query()
        assert (kind, body["resultCode"], body["success"]) == ("QueryServiceResponse", 500, False)


async def test_a_list_of_services_counts_and_pages() -> None:
    async with grpc_world() as world:
        for name in ("a", "b", "c"):
            world.shelf.services[key(name)] = snapshot(A, service=key(name))
        sdk = world.sdk()
        for page, size, names in ((1, 2, ["a", "b"]), (2, 2, ["c"]), (0, 10, ["a", "b", "c"]), (1, 0, []), (9, 2, [])):
            kind, body = await sdk.about("ServiceListRequest", "", pageNo=page, pageSize=size)
            assert (kind, body["count"], body["serviceNames"]) == ("ServiceListResponse", 3, names)


# --- subscriptions -------------------------------------------------------------------------------------------------


async def test_a_subscription_is_answered_then_pushed_then_every_change() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A)
        sdk = world.sdk()
        kind, body = await sdk.subscribe()
        assert (kind, body["message"], ips(body)) == ("SubscribeServiceResponse", "success", ["10.0.0.1"])
        await change(world, "10.0.0.3")
        await change(world, "10.0.0.4")
        assert sdk.lists() == [["10.0.0.1"], ["10.0.0.1", "10.0.0.3"], ["10.0.0.1", "10.0.0.3", "10.0.0.4"]]
        moments = [body["serviceInfo"]["lastRefTime"] for _, body in sdk.connection.pushed]
        assert moments == sorted(set(moments)), "SDKs drop a list that is not newer (nacos-grpc.md 6)"


async def test_several_changes_at_once_make_one_push() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.subscribe()
        await asyncio.gather(*(world.agent.write(Register(KEY, instance(f"10.0.0.{n}"))) for n in range(1, 6)))
        await settle()
        assert len(sdk.lists()) < 5 and len(sdk.lists()[-1]) == 5


async def test_a_subscription_shows_its_clusters_and_the_last_ones_count() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A, B)
        sdk = world.sdk()
        assert ips((await sdk.subscribe(clusters="c2"))[1]) == ["10.0.0.2"]
        assert ips((await sdk.subscribe(clusters="DEFAULT"))[1]) == ["10.0.0.1"]
        await change(world, "10.0.0.3")
        assert sdk.lists() == [["10.0.0.2"], ["10.0.0.1"], ["10.0.0.1", "10.0.0.3"]]
        assert [body["serviceInfo"]["clusters"] for _, body in sdk.connection.pushed] == ["c2", "DEFAULT", "DEFAULT"]
        assert sdk.session.subscriptions == 1
        await sdk.subscribe(clusters="else", subscribe=False)
        assert sdk.session.subscriptions == 0


async def test_an_ended_subscription_is_answered_and_gets_no_more_pushes() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.subscribe()
        kind, body = await sdk.subscribe(subscribe=False)
        assert (kind, body["message"]) == ("SubscribeServiceResponse", "success")
        await change(world, "10.0.0.3")
        assert sdk.lists() == [[]]
        assert (world.quota.open, world.agent.catalog.hub.readers) == (0, 0)


async def test_a_subscription_while_the_upstream_is_away_gets_what_is_known() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A)
        sdk = world.sdk()
        await sdk.query()
        world.registry.script = lambda call: DOWN
        await world.clock.advance(15)
        assert ips((await sdk.subscribe())[1]) == ["10.0.0.1"]
        kind, body = await sdk.subscribe("stock")
        assert (kind, body["success"]) == ("SubscribeServiceResponse", False)
        assert (sdk.session.subscriptions, world.quota.open, world.agent.catalog.hub.readers) == (1, 1, 1)


async def test_subscriptions_count_against_the_quota_of_their_client() -> None:
    async with grpc_world(streams_per_client=2) as world:
        first, second, other = world.sdk(), world.sdk(), world.sdk("10.0.0.8")
        assert [(await first.subscribe(name))[1]["success"] for name in ("a", "b")] == [True, True]
        kind, body = await second.subscribe("c")
        assert (kind, body["success"], body["errorCode"]) == ("SubscribeServiceResponse", False, 400)
        assert (await other.subscribe("c"))[1]["success"]
        first.connection.lose()
        assert (await second.subscribe("c"))[1]["success"]
        assert world.quota.open == 2


async def test_a_subscription_that_its_client_did_not_wait_for_leaves_nothing() -> None:
    async with grpc_world() as world:
        gate = asyncio.Event()

        async def slowly(call: object) -> object:
            await gate.wait()
            return snapshot(A)

        world.registry.script = slowly
        sdk = world.sdk()
        sdk.send("SubscribeServiceRequest", serviceName="orders", groupName="DEFAULT_GROUP", subscribe=True)
        await settle()
        sdk.connection.lose()
        gate.set()
        await settle()
        assert (world.quota.open, world.agent.catalog.hub.readers, len(world.streams)) == (0, 0, 0)


async def test_a_list_that_readers_may_not_see_any_more_is_not_pushed() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A)
        sdk = world.sdk()
        await sdk.subscribe()
        error = Refused(Reason.NO_RIGHT, "no", status=403)
        world.agent.catalog.cache.reject(KEY, error, world.clock.now(), forbidden=True)
        await world.clock.advance(7)
        assert len(sdk.lists()) == 1
        assert world.agent.catalog.cache.lookup(KEY, world.clock.now()).freshness is Freshness.MISSING


async def test_a_lost_upstream_is_no_reason_to_push() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A)
        sdk = world.sdk()
        await sdk.subscribe()
        world.agent.catalog.hub.publish(Notice("down", "nobody is there"))
        await settle()
        assert len(sdk.lists()) == 1
        await world.clock.advance(6)
        assert world.server.pushes.counts["late"] == 1, "the first push still waits for its acknowledgement"


# --- acknowledgements ----------------------------------------------------------------------------------------------


async def test_a_push_without_acknowledgement_is_repeated_with_a_new_id_and_the_current_list() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.subscribe()
        await world.clock.advance(5.6)
        assert len(sdk.lists()) == 1
        await world.clock.advance(1)
        assert sdk.lists() == [[], []]
        first, second = (body["requestId"] for _, body in sdk.connection.pushed)
        assert first != second and world.server.pushes.counts["late"] == 1
        sdk.acknowledge()
        await world.clock.advance(15)
        assert len(sdk.lists()) == 2


async def test_a_late_acknowledgement_of_an_earlier_push_does_not_count() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.subscribe()
        await change(world, "10.0.0.3")
        sdk.acknowledge(0)
        await world.clock.advance(7)
        assert sdk.lists() == [[], ["10.0.0.3"], ["10.0.0.3"]]


async def test_a_change_is_pushed_at_once_although_the_last_push_is_not_acknowledged() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.subscribe()
        await change(world, "10.0.0.3")
        assert len(sdk.lists()) == 2


async def test_a_session_that_takes_no_more_bytes_gets_only_the_newest_list_later() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.subscribe()
        sdk.connection.unsent = 1 << 30
        for n in range(3, 6):
            await change(world, f"10.0.0.{n}")
        assert sdk.lists() == [[]]
        sdk.connection.unsent = 0
        sdk.session.drained()
        await settle()
        assert sdk.lists() == [[], ["10.0.0.3", "10.0.0.4", "10.0.0.5"]]


# --- published instances -------------------------------------------------------------------------------------------


async def test_a_connection_publishes_one_value_per_service() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        assert await sdk.register("10.0.0.1") == ("InstanceResponse", {
            "resultCode": 200, "errorCode": 0, "type": "registerInstance", "success": True,
        })  # fmt: skip
        await sdk.register("10.0.0.2")
        assert [i.ip for i in world.shelf.of(KEY).instances] == ["10.0.0.2"]
        await sdk.publish("10.0.0.3", "10.0.0.4")
        assert [i.ip for i in world.shelf.of(KEY).instances] == ["10.0.0.3", "10.0.0.4"]
        assert (sdk.session.published, sdk.session.status(world.clock.now())["published"]) == (2, 2)
        await sdk.register("10.9.9.9", kind="deregisterInstance")
        assert (world.shelf.of(KEY).instances, sdk.session.published) == ((), 0)
        await sdk.publish("10.0.0.3")
        await sdk.publish()
        assert (world.shelf.of(KEY).instances, len(world.streams)) == ((), 0)


async def test_a_register_is_refused_in_its_own_class_while_the_upstream_is_away() -> None:
    async with grpc_world() as world:
        world.registry.script = lambda call: DOWN
        sdk = world.sdk()
        while world.agent.catalog.breaker.up:
            await sdk.query()
        kind, body = await sdk.register("10.0.0.1")
        assert (kind, body["success"], body["errorCode"]) == ("InstanceResponse", False, 500)
        assert world.agent.supervisor.failures == {}


async def test_after_an_outage_an_sdk_that_was_refused_has_to_connect_again_and_its_instances_beat_on() -> None:
    async with grpc_world() as world:
        sdk, other = world.sdk(), world.sdk()
        await sdk.register("10.0.0.1", "kept")
        world.registry.script = lambda call: DOWN
        while world.agent.catalog.breaker.up:
            await sdk.query()
        await sdk.register("10.0.0.2")
        await other.query()
        world.registry.script = world.shelf
        await world.agent.send(Fetch(KEY))
        await settle()
        assert (sdk.connection.closed, other.connection.closed) == (True, False)
        assert world.server.closed["redo"] == 1 and world.agent.on_recovery == []
        assert [i.ip for i in world.shelf.of(key("kept")).instances] == ["10.0.0.1"]
        assert world.publications.orphans == 1


async def test_after_an_outage_an_sdk_whose_subscription_was_refused_has_to_connect_again() -> None:
    async with grpc_world() as world:
        sdk, reader = world.sdk(), world.sdk()
        world.registry.script = lambda call: DOWN
        while world.agent.catalog.breaker.up:
            await reader.query()
        kind, body = await sdk.subscribe()
        assert (kind, body["success"], sdk.session.subscriptions) == ("SubscribeServiceResponse", False, 0)
        world.registry.script = world.shelf
        await world.agent.send(Fetch(KEY))
        await settle()
        assert (sdk.connection.closed, reader.connection.closed) == (True, False), "one that only asked stays"
        assert world.server.closed["redo"] == 1 and world.agent.on_recovery == []


async def test_what_a_client_published_goes_even_if_it_leaves_during_the_registration() -> None:
    async with grpc_world() as world:
        gate = asyncio.Event()

        async def slowly(call: object) -> object:
            await gate.wait()
            return world.shelf(call)  # type: ignore[arg-type]

        world.registry.script = slowly
        sdk = world.sdk()
        instances = [{"ip": "10.0.0.1", "port": 80}]
        named = {"serviceName": "orders", "type": "batchRegisterInstance"}
        sdk.send("BatchInstanceRequest", **named, instances=instances)
        await settle()
        sdk.connection.lose()
        gate.set()
        await settle(60)
        assert world.shelf.of(KEY).instances == ()


async def test_a_client_that_leaves_before_it_is_admitted_publishes_nothing() -> None:
    async with grpc_world() as world:
        gate = asyncio.Event()

        async def slowly(token: str | None, right: Right, client: str) -> Served:
            await gate.wait()
            return await world.admit(token, right, client)

        world.server.admit = slowly
        sdk = world.sdk()
        sdk.send(
            "InstanceRequest", serviceName="orders", type="registerInstance", instance={"ip": "10.0.0.1", "port": 80}
        )
        await settle()
        sdk.connection.lose()
        gate.set()
        await settle()
        assert world.shelf.of(KEY).instances == () and len(world.publications) == 0


async def test_a_client_back_after_a_restart_deregisters_what_it_published_before() -> None:
    async with grpc_world() as world:
        world.shelf.services[KEY] = snapshot(A, B)
        for i in (A, B):
            world.agent.catalog.registrations.restore(Registration(KEY, i, world.clock.now(), check=CONNECTION))
        world.publications.restore()
        await world.sdk().register(A.ip, kind="deregisterInstance")
        assert world.shelf.of(KEY).instances == (B,)


async def test_persistent_instances_are_written_as_over_http() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        body = {"type": "registerInstance", "instance": {"ip": "10.0.0.1", "port": 80, "ephemeral": False}}
        kind, answer = await sdk.about("PersistentInstanceRequest", **body)
        assert (kind, answer["type"]) == ("InstanceResponse", "registerInstance")
        assert world.shelf.of(KEY).instances == (Instance("10.0.0.1", 80, ephemeral=False),)
        sdk.connection.lose()
        await settle()
        assert world.registry.sent(Deregister) == [], "it outlives its connection"
        body["type"] = "deregisterInstance"
        await world.sdk().about("PersistentInstanceRequest", **body)
        assert world.shelf.of(KEY).instances == ()


async def test_a_published_instance_beats_from_here() -> None:
    async with grpc_world() as world:
        await world.publications.start()
        await world.sdk().register("10.0.0.1")
        await world.clock.advance(11)
        assert len(world.registry.sent(Beat)) >= 2


async def test_the_status_of_a_session_names_its_sdk_and_has_no_secrets() -> None:
    async with grpc_world() as world:
        sdk = world.sdk(token="secret-token")
        await sdk.subscribe()
        shown = world.server.status()
        assert json.dumps(shown) and "secret" not in json.dumps(shown)
        world.server.off = ""
        assert world.server.status()["sessions"] == [{
            "client": "10.0.0.7", "sdk": "Test:v1", "app": "shop", "module": "naming", "namespaceId": "public",
            "subscriptions": 1, "published": 0, "sinceSeconds": 0.0,
        }]  # fmt: skip

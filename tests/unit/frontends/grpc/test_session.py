"""`Session`: setup, requests, detection and the end of a connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nacos_proxy.frontends.grpc.session import SessionPolicy
from nacos_proxy.model.calls import Call, Deregister, Fetch
from nacos_proxy.request_context import Answered, Incoming, RequestContext, current_request
from nacos_proxy.wire.http import RouteName
from nacos_proxy.wire.nacos.grpc.payload import Payload, write_payload
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import settle
from tests.helpers.grpc_client import STREAM, grpc_world

POLICY = SessionPolicy()


async def test_server_check_is_answered_in_every_state() -> None:
    async with grpc_world() as world:
        sdk = world.connect()
        kind, body = await sdk.ask("ServerCheckRequest")
        assert kind == "ServerCheckResponse"
        assert body["connectionId"] == f"{int(world.clock.wall() * 1000)}_10.0.0.7_40000" == sdk.session.id
        assert body["supportAbilityNegotiation"]
        sdk.set_up(labels={"module": "config"})
        await settle()
        assert (await sdk.ask("ServerCheckRequest"))[1]["connectionId"] == sdk.session.id


async def test_a_setup_is_acknowledged_if_and_only_if_it_has_abilities() -> None:
    async with grpc_world() as world:
        for fields, wanted in (({"abilityTable": {}}, 1), ({"abilityTable": None}, 0), ({"abilities": {}}, 0), ({}, 0)):
            sdk = world.connect()
            sdk.set_up(**fields)
            assert [kind for kind, _ in sdk.connection.pushed] == ["SetupAckRequest"] * wanted
        sdk.set_up(abilityTable={"fuzzyWatch": True})
        (_, ack) = sdk.connection.pushed[-1]
        assert ack["abilityTable"] == {"supportPersistentInstanceByGrpc": True}, "a second setup is acknowledged, too"


async def test_requests_before_the_setup_are_unregistered_but_unknown_types_unknown() -> None:
    async with grpc_world() as world:
        sdk = world.connect()
        for kind, code in (("HealthCheckRequest", 301), ("ServiceQueryRequest", 301), ("NoSuchRequest", 302)):
            answer, body = await sdk.ask(kind)
            assert (answer, body["resultCode"], body["errorCode"]) == ("ErrorResponse", 500, code)
        sdk.set_up()
        assert (await sdk.ask("HealthCheckRequest"))[0] == "HealthCheckResponse"
        assert (await sdk.ask("PushAckRequest"))[1]["errorCode"] == 302
        assert world.server.request_times[RouteName("grpc", "other"), "NoHandler"].count == 2
        assert world.admitted == [], "health and check need no right"


async def test_each_request_has_an_id_and_a_line_in_the_access_log() -> None:
    lines, asked = list[Answered](), list[str]()
    async with grpc_world(log=lines.append) as world:
        answers = world.registry.script

        def script(call: Call[Any]) -> Any:
            request = current_request()
            asked.append("" if request is None else request.id)
            return answers(call)

        world.registry.script = script
        sdk = world.sdk()
        await sdk.query()
        await sdk.ask("HealthCheckRequest")
        await sdk.ask("NoSuchRequest")
    found = [(line.method, line.path, line.route, line.status, line.client) for line in lines]
    assert found[0] == ("grpc", "ServiceQueryRequest", "ServiceQueryRequest", 200, "10.0.0.7")
    assert found[-1] == ("grpc", "other", "other", 302, "10.0.0.7")
    assert len({line.id for line in lines}) == 3
    assert asked[0] == lines[0].id, "the fetch works for the request"


async def test_a_class_that_is_unknown_is_not_kept_as_the_client_wrote_it() -> None:
    begun = list[Incoming]()

    def begin(incoming: Incoming) -> RequestContext:
        begun.append(incoming)
        return RequestContext(incoming.id)

    async with grpc_world(begin=begin) as world:
        sdk = world.connect()
        await sdk.ask("x" * 1_000_000)
        await sdk.ask("ServiceQueryRequest")
    assert [incoming.path for incoming in begun] == ["other", "ServiceQueryRequest"]


async def test_bytes_that_are_no_payload_fail_the_call_or_end_the_session() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        sdk.session.unary(3, b"\xff\xff")
        assert sdk.connection.failures[3][0] == 13
        sdk.session.stream_message(STREAM, b"\xff\xff")
        assert sdk.connection.closed and world.server.closed == {"malformed": 1}


async def test_a_body_that_is_no_json_is_refused_as_real_servers_do() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        sdk.session.unary(3, write_payload(Payload("ServiceQueryRequest", b"{")))
        kind, body = sdk.connection.answers[3]
        assert (kind, body["errorCode"]) == ("ErrorResponse", 502)


async def test_a_failure_here_ends_the_call_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    def broken(call: object) -> object:
        raise KeyError(call)

    lines, ended = list[Answered](), list[str]()

    class Context(RequestContext):
        def ended(self, answered: Answered) -> None:
            ended.append(answered.id)

    async with grpc_world(log=lines.append, begin=lambda incoming: Context(incoming.id)) as world:
        sdk = world.sdk()
        world.agent.ask = broken  # type: ignore[method-assign]
        stream = sdk.send("ServiceListRequest", groupName="g", pageNo=1, pageSize=1)
        await settle()
        assert sdk.connection.failures[stream][0] == 13
        assert world.agent.supervisor.failures["gRPC request"] == 1
        assert world.server.request_times[RouteName("grpc", "ServiceListRequest"), "Internal"].count == 1
        assert [(line.path, line.status, line.size) for line in lines] == [("ServiceListRequest", 500, 0)]
        assert ended == [lines[0].id]
        await settle()


async def test_a_silent_sdk_is_asked_and_closed_if_it_does_not_answer() -> None:
    async with grpc_world() as world:
        sdk, alive = world.sdk(), world.sdk()
        await world.clock.advance(POLICY.silent + 3)
        assert [kind for kind, _ in sdk.connection.pushed] == ["ClientDetectionRequest"]
        alive.acknowledge()
        await world.clock.advance(POLICY.detection + 3)
        assert (sdk.connection.closed, alive.connection.closed) == (True, False)
        assert world.server.closed == {"silent": 1}
        assert list(world.server.sessions) == [alive.session]


async def test_any_request_or_acknowledgement_counts_as_life() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        for _ in range(5):
            await world.clock.advance(POLICY.silent - 1)
            await sdk.ask("HealthCheckRequest")
        assert sdk.connection.pushed == []
        await world.clock.advance(POLICY.silent + 3)
        await sdk.ask("HealthCheckRequest")
        await world.clock.advance(POLICY.detection + 3)
        assert not sdk.connection.closed, "a request answers the detection, too"


async def test_a_process_that_stood_still_closes_nobody() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await world.clock.advance(POLICY.silent + 3)
        assert len(sdk.connection.pushed) == 1
        world.clock.jump(60)
        await world.clock.advance(1)
        assert not sdk.connection.closed
        sdk.acknowledge()
        await world.clock.advance(POLICY.silent - 1)
        assert len(sdk.connection.pushed) == 1


async def test_a_connection_without_setup_is_closed_after_a_while() -> None:
    async with grpc_world() as world:
        sdk = world.connect()
        await world.clock.advance(POLICY.no_setup - 1)
        assert not sdk.connection.closed
        await world.clock.advance(4)
        assert sdk.connection.closed


async def test_an_end_of_the_stream_ends_the_session_and_deregisters() -> None:
    async with grpc_world() as world:
        sdk = world.sdk()
        await sdk.register("10.0.0.1")
        assert world.shelf.of(KEY).instances
        sdk.session.stream_ended(99)
        assert not sdk.connection.closed, "another stream than that of the setup"
        sdk.session.stream_ended(STREAM)
        await settle()
        assert sdk.connection.closed and world.server.closed == {"stream": 1}
        assert len(world.registry.sent(Deregister)) == 1 and not world.shelf.of(KEY).instances


async def test_a_lost_connection_counts_its_own_cause(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with grpc_world() as world:
        world.sdk().connection.lose()
        assert "ends" not in caplog.text, "the common case"
        world.sdk().connection.lose("unread", "it reads nothing")
        assert world.server.closed == {"peer": 1, "unread": 1}
        assert "(Test:v1) ends: it reads nothing" in caplog.text


async def test_a_stop_deregisters_nothing_and_waits_for_requests_under_way() -> None:
    async with grpc_world() as world:
        sdk, idle = world.sdk(), world.sdk()
        await sdk.register("10.0.0.1")
        gate = asyncio.Event()

        async def slowly(call: Fetch) -> object:
            await gate.wait()
            return snapshot(instance())

        world.registry.script = slowly  # type: ignore[assignment]
        sdk.send("ServiceQueryRequest", serviceName="stock")
        await settle()
        world.server.drain()
        assert (idle.connection.closed, sdk.connection.closed) == (True, False)
        gate.set()
        await settle()
        assert sdk.connection.closed and world.registry.sent(Deregister) == []
        assert world.server.closed == {"stopping": 2}


# --- tunnels -------------------------------------------------------------------------------------------------------


async def test_a_session_of_another_module_is_tunnelled_in_order() -> None:
    async with grpc_world() as world:
        sdk, tunnel = world.connect(), world.tunnels.tunnel
        assert tunnel is not None
        sdk.set_up(labels={"module": "config"}, abilityTable={})
        assert sdk.connection.paused
        sdk.send("ConfigQueryRequest")
        sdk.say("ConfigChangeNotifyResponse", requestId="1")
        await settle()
        sdk.send("HealthCheckRequest")
        sdk.say("ConfigChangeNotifyResponse", requestId="2")
        sdk.session.drained()
        assert not sdk.connection.paused and sdk.connection.pushed == [], "the upstream acknowledges the setup"
        sdk.connection.lose()
        assert tunnel.got == [
            ("open", "10.0.0.7", "ConnectionSetupRequest", STREAM),
            ("unary", 3, "ConfigQueryRequest"),
            ("stream", "ConfigChangeNotifyResponse"),
            ("unary", 5, "HealthCheckRequest"),
            ("stream", "ConfigChangeNotifyResponse"),
            ("drained",),
            ("close",),
        ]


async def test_a_tunnel_that_cannot_be_opened_closes_the_connection() -> None:
    async with grpc_world() as world:
        world.tunnels.tunnel = None
        sdk = world.connect()
        sdk.set_up(labels={"module": "config"})
        sdk.send("ConfigQueryRequest")
        await settle()
        assert sdk.connection.closed and world.server.closed == {"tunnel": 1}


async def test_a_tunnel_that_opens_too_late_is_closed() -> None:
    async with grpc_world() as world:
        sdk, tunnel = world.connect(), world.tunnels.tunnel
        assert tunnel is not None
        sdk.set_up(labels={"module": "config"})
        sdk.connection.lose()
        await settle()
        assert tunnel.got[-1] == ("close",)


async def test_a_silent_tunnelled_session_is_asked_by_us() -> None:
    async with grpc_world() as world:
        sdk, tunnel = world.connect(), world.tunnels.tunnel
        assert tunnel is not None
        sdk.set_up(labels={"module": "config"})
        await world.clock.advance(POLICY.silent + 3)
        sdk.acknowledge()
        await world.clock.advance(POLICY.detection + 3)
        assert not sdk.connection.closed
        assert tunnel.got[1:] == [], "the upstream did not ask"


# --- rights --------------------------------------------------------------------------------------------------------


async def test_requests_are_admitted_by_their_token_and_right() -> None:
    async with grpc_world() as world:
        world.tokens["good"] = "write"
        sdk = world.sdk(token="good")
        await sdk.query()
        await sdk.register("10.0.0.1")
        assert world.admitted == [("good", "read", "10.0.0.7"), ("good", "write", "10.0.0.7")]
        assert world.released == 2
        kind, body = await world.sdk(token="bad").query()
        assert (kind, body["errorCode"]) == ("QueryServiceResponse", 403)


async def test_a_session_ends_when_a_token_that_it_holds_is_revoked() -> None:
    async with grpc_world() as world:
        world.tokens |= {"a": "write", "b": "write", "c": "read"}
        subscriber, publisher, reader = world.sdk(token="a"), world.sdk(token="b"), world.sdk(token="c")
        await subscriber.subscribe()
        await publisher.register("10.0.0.1")
        await reader.query()
        assert len(world.streams) == 2
        del world.tokens["a"], world.tokens["b"], world.tokens["c"]
        world.tokens["d"] = "read"
        world.streams.end_revoked()
        assert [sdk.connection.closed for sdk in (subscriber, publisher, reader)] == [True, True, False]
        assert world.server.closed == {"revoked": 2} and len(world.streams) == 0


async def test_a_session_releases_what_it_holds() -> None:
    async with grpc_world() as world:
        world.tokens["a"] = "write"
        sdk = world.sdk(token="a")
        await sdk.subscribe()
        await sdk.subscribe()
        await sdk.register("10.0.0.1")
        await sdk.register("10.0.0.2")
        assert len(world.streams) == 2
        await sdk.subscribe(subscribe=False)
        await sdk.register("10.0.0.2", kind="deregisterInstance")
        assert len(world.streams) == 0
        await sdk.subscribe()
        await sdk.register("10.0.0.2")
        sdk.connection.lose()
        assert len(world.streams) == 0

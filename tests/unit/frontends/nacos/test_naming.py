"""`NacosApi`: HTTP requests in, answers of the dialect out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from nacos_proxy.frontends.answers import ANSWER_HEADER, send_reply
from nacos_proxy.frontends.nacos.naming import NacosApi
from nacos_proxy.model.calls import Alive, Beat, Deregister, Register, Update
from nacos_proxy.model.errors import Denied, Unreachable
from nacos_proxy.model.limits import LENIENT
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.http import CACHEABLE, FORM_TYPE, RULES, HttpReply
from nacos_proxy.wire.nacos.base import ReadService
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers import build
from tests.helpers.asgi import Exchange, ask, scope, start
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf

LIST = "/nacos/v1/ns/instance/list?serviceName=orders"
INSTANCE = "/nacos/v1/ns/instance"
FORM = {"content-type": FORM_TYPE}


async def otherwise(scope: Scope, receive: Receive, send: Send) -> None:
    await send_reply(send, HttpReply(299, None, scope["path"].encode()))


@dataclass
class World:
    registry: ScriptedRegistry
    clock: FakeClock
    api: NacosApi
    agent: Any
    listed: list[ReadService] = field(default_factory=list)
    heard: list[tuple[ServiceKey, str, int]] = field(default_factory=list)

    async def ask(self, method: str, target: str, **more: Any) -> Exchange:
        return await ask(self.api, method, target, **more)


def world_of(context_path: str = "/nacos", max_body: int = 1 << 20) -> World:
    registry, clock = ScriptedRegistry(Shelf(build.snapshot(build.instance()))), FakeClock()
    agent = build.agent(registry, clock)
    listed: list[ReadService] = []
    heard: list[tuple[ServiceKey, str, int]] = []
    api = NacosApi(
        agent,
        (V1, V2, V3),
        otherwise,
        context_path=context_path,
        max_body=max_body,
        on_list=lambda call, shown: listed.append(call),
        on_beat=lambda service, ip, port: heard.append((service, ip, port)),
    )
    return World(registry, clock, api, agent, listed, heard)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = world_of()
    yield made
    await made.agent.close()


async def test_nacos_api_sends_the_age_of_a_list_and_marks_it_cacheable(world: World) -> None:
    exchange = await start(world.api, scope("GET", LIST))
    await exchange.ended()
    assert (exchange.status, exchange.headers["content-type"]) == (200, "application/json")
    assert {"age", "cache-status", "etag"} <= exchange.headers.keys()
    assert exchange.scope[CACHEABLE].invalidation_key == build.KEY
    assert world.listed == [ReadService(build.KEY)]


async def test_nacos_api_renews_a_push_address_while_its_list_is_repeated(world: World) -> None:
    target = f"{LIST}&clientIP=127.0.0.1&udpPort=5000"
    exchange = await start(world.api, scope("GET", target, {"user-agent": "Nacos-Java-Client:v1.4.6"}))
    await exchange.ended()
    assert len(world.listed) == 1
    assert world.listed[0].push is not None
    revalidate = exchange.scope[CACHEABLE].revalidate
    assert revalidate(world.clock.now()) is not None
    assert world.listed == [world.listed[0]] * 2


async def test_nacos_api_answers_304_if_the_client_has_the_response(world: World) -> None:
    tag = (await world.ask("GET", LIST)).headers["etag"]
    again = await world.ask("GET", LIST, headers={"if-none-match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await world.ask("GET", LIST, headers={"if-none-match": '"x"'})).status == 200


@pytest.mark.parametrize(
    ("method", "target", "status", "type"),
    [
        ("HEAD", LIST, 501, "application/json"),
        ("HEAD", "/nacos/v1/console/health/liveness", 200, "text/plain;charset=UTF-8"),  # as load balancers ask
        ("OPTIONS", LIST, 501, "application/json"),
        ("POST", LIST, 501, "application/json"),
        ("GET", "/nacos/v1/ns/nothing", 501, "application/json"),
        ("GET", "/nacos/v2/ns/nothing", 404, "application/json"),
        ("GET", "/nacos/v3/client/ns/nothing", 404, "application/json"),
        ("GET", "/nacos/v1/ns/instance/list/?serviceName=orders", 200, "application/json"),
        ("GET", "/nacos/v2/ns/instance/list/?serviceName=orders", 200, "application/json"),
        ("GET", "/nacos/v3/client/ns/instance/list/?serviceName=orders", 404, "application/json"),
        ("HEAD", "/nacos/v2/ns/instance/list?serviceName=orders", 200, "application/json"),
        ("GET", "/nacos/v1/cs/configs", 299, None),
        ("GET", "/nacos/", 299, None),
    ],
)
async def test_nacos_api_answers_the_paths_and_methods_of_each_dialect(
    world: World, method: str, target: str, status: int, type: str | None
) -> None:
    reply = await world.ask(method, target)
    assert (reply.status, reply.headers.get("content-type")) == (status, type)
    assert (reply.body == b"") is (method == "HEAD")


async def test_nacos_api_takes_the_first_parameter_of_a_name_query_before_form(world: World) -> None:
    target = f"{INSTANCE}?serviceName=a&serviceName=b&ip=10.0.0.1"
    reply = await world.ask("POST", target, headers=FORM, body=b"serviceName=c&ip=10.0.0.2&port=80&port=81")
    assert (reply.status, reply.headers["content-type"], reply.body) == (200, "text/plain;charset=UTF-8", b"ok")
    (call,) = world.registry.sent(Register)
    assert (call.service.name, call.instance.ip, call.instance.port) == ("a", "10.0.0.1", 80)


@pytest.mark.parametrize("type", [FORM_TYPE, f"{FORM_TYPE};charset=UTF-8", f"{FORM_TYPE.upper()} ; charset=utf-8"])
async def test_nacos_api_accepts_a_form_with_any_charset(world: World, type: str) -> None:
    body = b"serviceName=a&ip=10.0.0.1&port=80&metadata=%7B%22k%22%3A%22%E4%B8%AD%22%7D"
    assert (await world.ask("POST", INSTANCE, headers={"content-type": type}, body=body)).body == b"ok"
    assert world.registry.sent(Register)[0].instance.metadata == {"k": "中"}


@pytest.mark.parametrize("version", ["v1", "v2", "v3/client"])
@pytest.mark.parametrize("clusters", ["%20B", "a%23b", "a,%20B"])
async def test_nacos_api_refuses_an_illegal_cluster_if_the_parameter_check_applies(
    world: World, version: str, clusters: str
) -> None:
    target = f"/nacos/{version}/ns/instance/list?serviceName=orders&clusters={clusters}"
    refused = await world.ask("GET", target)
    said = b"Param 'cluster' is illegal, illegal characters should not appear in the param.\r\n"
    assert (refused.status, refused.headers.get("content-type"), refused.body) == (400, None, said)
    assert (await world.ask("GET", target, **{RULES: LENIENT})).status == 200


def fields(**values: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of a `multipart/form-data` request."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{values[name]}\r\n' for name in values]
    return {"content-type": "multipart/form-data; boundary=b"}, "".join([*parts, "--b--\r\n"]).encode()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_nacos_api_reads_parameters_of_a_multipart_form(world: World, version: str) -> None:
    path = f"/nacos/{version}/ns/instance"
    for method, kind in (("POST", Register), ("PUT", Update), ("DELETE", Deregister)):
        headers, body = fields(serviceName="a", ip="10.0.0.1", port="80", weight="2")
        assert (await world.ask(method, path, headers=headers, body=body)).status == 200
        assert len(world.registry.sent(kind)) == 1
    headers, body = fields(serviceName="DEFAULT_GROUP@@a", ip="10.0.0.1", port="80")
    assert (await world.ask("PUT", f"{path}/beat", headers=headers, body=body)).json()["clientBeatInterval"] == 5000
    assert [beat.ip for beat in world.registry.sent(Beat)] == ["10.0.0.1"]


@pytest.mark.parametrize("path", ["/nacos/v1/ns/nothing", "/nacos/v2/ns/nothing", INSTANCE])
async def test_nacos_api_ignores_an_empty_multipart_body(world: World, path: str) -> None:
    reply = await world.ask("POST", path, headers={"content-type": "multipart/form-data"})
    assert reply.status in (400, 404, 501)


@pytest.mark.parametrize("version", ["v1", "v2", "v3/client"])
async def test_nacos_api_refuses_a_cut_multipart_form_in_the_dialect(world: World, version: str) -> None:
    headers, body = fields(serviceName="a", ip="10.0.0.1", port="80", weight="2")
    reply = await world.ask("POST", f"/nacos/{version}/ns/instance", headers=headers, body=body[:-30])
    assert (reply.status, b"cut short" in reply.body, world.registry.calls) == (400, True, [])


@pytest.mark.parametrize("type", ["application/json", "text/plain", "multipart/form-data; boundary=x"])
async def test_nacos_api_ignores_a_body_that_is_no_form(world: World, type: str) -> None:
    reply = await world.ask("POST", INSTANCE, headers={"content-type": type}, body=b'{"serviceName":"a"}')
    assert (reply.status, reply.body) == (400, b"Param 'serviceName' is required.")


async def test_nacos_api_refuses_a_long_body_in_the_dialect() -> None:
    world = world_of(max_body=10)
    reply = await world.ask("POST", INSTANCE, headers=FORM, body=b"serviceName=aaaaaaaaaaaaaaaaaaa")
    assert (reply.status, reply.headers["content-type"]) == (413, "text/plain;charset=UTF-8")
    await world.agent.close()


@pytest.mark.parametrize("context", ["", "/discovery", "/a/b/"])
async def test_nacos_api_shows_another_context_path_in_error_pages(context: str) -> None:
    world, shown = world_of(context), context.rstrip("/")
    assert (await world.ask("GET", f"{shown}/v1/ns/instance/list?serviceName=orders")).status == 200
    page = (await world.ask("GET", f"{shown}/v1/ns/nothing")).json()
    assert (page["path"], page["message"]) == (
        f"{shown}/v1/ns/nothing",
        f"no such api:GET:{shown}/v1/ns/nothing",
    )
    await world.agent.close()


async def test_nacos_api_offers_an_unknown_naming_call_to_the_upstream(world: World) -> None:
    """Unknown paths, and what only servers do. Another method of a known path, even HEAD, is answered as Nacos does."""
    seen: list[str] = []

    async def offer(scope: Scope, receive: Receive, send: Send) -> bool:
        seen.append(f"{scope['method']} {scope['path']}")
        if scope["path"].endswith("nothing"):
            return False
        await send_reply(send, HttpReply(200, "text/plain", b"theirs"))
        return True

    api = NacosApi(world.agent, (V1, V2, V3), otherwise, offer=offer)
    assert (await ask(api, "PUT", "/nacos/v1/ns/cluster", body=b"checkPort=1")).body == b"theirs"
    assert (await ask(api, "GET", "/nacos/v2/ns/client/list")).body == b"theirs"
    assert (await ask(api, "PUT", "/nacos/v1/ns/operator/switches?entry=check&value=true")).body == b"theirs"
    assert (await ask(api, "POST", "/nacos/v1/ns/nothing", body=b"a=1")).status == 501
    assert (await ask(api, "HEAD", "/nacos/v1/ns/instance/list?serviceName=a")).status == 501
    assert (await ask(api, "POST", "/nacos/v2/ns/instance/list")).status == 404
    theirs = ["PUT /nacos/v1/ns/cluster", "GET /nacos/v2/ns/client/list", "PUT /nacos/v1/ns/operator/switches"]
    assert seen == [*theirs, "POST /nacos/v1/ns/nothing"]


@pytest.mark.parametrize("path", ["/nacos/v1/console/health/liveness", "/nacos/v3/admin/core/state/liveness"])
async def test_nacos_api_answers_the_liveness_call_itself(world: World, path: str) -> None:
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert (await world.ask("GET", path)).status == 200
    assert world.registry.sent(Alive) == []


async def test_nacos_api_sends_the_answer_header_unless_the_upstream_answered(world: World) -> None:
    await world.ask("POST", f"{INSTANCE}?serviceName=a&ip=10.0.0.1&port=80")
    beat = f"{INSTANCE}/beat?serviceName=a&ip=10.0.0.1&port=80"
    assert ANSWER_HEADER not in (await world.ask("PUT", beat)).headers
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    reply = await world.ask("PUT", beat)
    assert (reply.status, reply.json()["code"], reply.headers[ANSWER_HEADER]) == (200, 10200, "local")
    assert len(world.registry.sent(Beat)) == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/nacos/v1/ns/instance/beat?serviceName=orders"),
        ("PUT", "/nacos/v2/ns/instance/beat?serviceName=DEFAULT_GROUP@@orders"),
        ("POST", "/nacos/v3/client/ns/instance?heartBeat=true&serviceName=orders"),
    ],
)
async def test_nacos_api_calls_on_beat_in_any_dialect_even_while_the_upstream_is_down(
    world: World, method: str, path: str
) -> None:
    await world.ask(method, f"{path}&ip=10.0.0.1&port=80")
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    await world.ask(method, f"{path}&ip=10.0.0.2&port=80")
    assert world.heard == [(build.KEY, "10.0.0.1", 80), (build.KEY, "10.0.0.2", 80)]
    await world.ask("POST", "/nacos/v1/ns/instance?serviceName=orders&ip=10.0.0.3&port=80")
    assert len(world.heard) == 2


async def test_nacos_api_answers_a_list_with_200_while_the_upstream_is_down(world: World) -> None:
    await world.ask("GET", LIST)
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    await world.clock.advance(60.0)
    for _ in range(3):
        reply = await world.ask("GET", LIST, headers={"cache-control": "no-cache"})
        assert (reply.status, [host["ip"] for host in reply.json()["hosts"]]) == (200, ["10.0.0.1"])


@pytest.mark.parametrize(
    ("path", "type"),
    [
        ("/nacos/v1/ns/instance", "application/json"),
        ("/nacos/v3/client/ns/instance/list", "application/json"),
        ("/nacos/v1/cs/configs", "application/json"),
    ],
)
async def test_refuse_writes_the_error_in_the_dialect_of_the_path(world: World, path: str, type: str) -> None:
    reply = world.api.refuse(scope("GET", path), Denied("no API token", status=401))
    assert (reply.status, reply.content_type) == (403, type)
    assert b"no API token" in reply.body


async def test_nacos_api_parses_a_repeated_write_once(world: World) -> None:
    target = f"{INSTANCE}?serviceName=orders&ip=10.0.0.9&port=80"
    for body in (b"weight=1", b"weight=2", b"weight=1"):
        exchange = await world.ask("POST", target, headers=FORM, body=body)
        assert (exchange.status, exchange.body) == (200, b"ok")
    plain = await world.ask("POST", target, headers={"content-type": "text/plain"}, body=b"weight=2")
    assert plain.status == 200
    first, second, again, other = world.registry.sent(Register)
    assert [call.instance.weight for call in (first, second, again, other)] == [1.0, 2.0, 1.0, 1.0]
    assert again is first and other is not first


@pytest.mark.parametrize("part", ["body", "query", "header"])
async def test_nacos_api_does_not_remember_a_long_write(world: World, part: str) -> None:
    """Each part of a request can have tens of kilobytes."""
    long = "x" * 3000
    target = f"{INSTANCE}?serviceName=orders&ip=10.0.0.9&port=80" + (f"&app={long}" if part == "query" else "")
    headers = {"content-type": FORM["content-type"] + (f"; a={long}" if part == "header" else "")}
    body = b"weight=1" + (f"&app={long}".encode() if part == "body" else b"")
    for _ in range(2):
        assert (await world.ask("POST", target, headers=headers, body=body)).status == 200
    first, again = world.registry.sent(Register)
    assert again == first and again is not first


async def test_nacos_api_does_not_remember_a_refused_write(world: World) -> None:
    for _ in range(2):
        exchange = await world.ask("POST", f"{INSTANCE}?serviceName=orders&ip=10.0.0.9&port=99999")
        assert exchange.status == 400
    assert world.registry.sent(Register) == []

"""One registry over real sockets: servers with each face, their upgrades, outages, rights and logins."""

from __future__ import annotations

import itertools
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import (
    Beat,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    Fetch,
    GetInstance,
    GetService,
    ListServices,
    Register,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import (
    Garbled,
    Reason,
    Refused,
    Unreachable,
    UpstreamError,
    counts_for_upstream,
    is_unavailable,
)
from nacos_proxy.model.services import Instance
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.http.exchange import HttpPolicy, TlsPolicy
from nacos_proxy.upstream.nacos.login import NOBODY, Credential, LoginPolicy
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from nacos_proxy.wire.http import HttpReply
from tests.helpers.build import KEY, instance, key
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FACES, facing
from tests.helpers.live import free_port
from tests.helpers.pair import CALLS, ODD_REPLIES
from tests.unit.upstream.registries import registry_of, version_known
from tests.unit.upstream.stub import Request, Say, ok, say, stub

# --- status --------------------------------------------------------------------------------------------------------


async def test_nacos_registry_status_shows_the_servers_and_the_login_without_secrets() -> None:
    clock = FakeClock()
    login = LoginPolicy("nacos", "s3cret")
    async with facing("v1+v2", clock, passwords={"nacos": "s3cret"}) as upstream:
        async with registry_of(upstream.url, clock=clock, login=login) as registry:
            await registry.send(Fetch(KEY))
            await version_known(registry)
            status = registry.status()
    assert status == {
        "login": {"enabled": True, "logins": 1, "error": ""},
        "servers": [
            {
                "url": f"{upstream.url}/nacos",
                "state": "up",
                "error": "",
                "latencyMs": 0.0,
                "version": "2.5.1",
                "dialects": ["v1"],
                "outcomes": {"ok": 1},
            }
        ],
    }
    assert "s3cret" not in json.dumps(status)


async def test_nacos_registry_status_shows_which_server_is_down_and_why() -> None:
    async with registry_of("127.0.0.1:1") as registry:
        with pytest.raises(Unreachable):
            await registry.send(Fetch(KEY))
        [server] = registry.status()["servers"]
        assert (server["state"], server["outcomes"]) == ("down", {"Unreachable": 1})
        assert "127.0.0.1:1" in server["error"]


async def test_nacos_registry_status_shows_a_refused_login_without_the_password() -> None:
    async with facing("v1+v2", passwords={"nacos": "another"}) as upstream:
        async with registry_of(upstream.url, login=LoginPolicy("nacos", "s3cret")) as registry:
            with pytest.raises(Refused, match="the login as 'nacos' was refused"):
                await registry.send(Fetch(KEY))
            status = registry.status()
            assert status["login"]["error"].startswith("the login as 'nacos' was refused")
            assert "s3cret" not in json.dumps(status)


# --- every call at every kind of server ----------------------------------------------------------------------------

OTHER = key("orders", "other", "dev")
PERSISTENT = key("disks")
EMPTY = key("empty")
A, B, C, D = (instance(f"10.0.0.{n}") for n in range(1, 5))

Step = Call[Any]
OK: Any = {"hosts": [], "lastRefTime": 1}
WRITES: list[Step] = [
    Register(KEY, A),
    Register(KEY, instance("10.0.0.2", 81, cluster="c1", weight=2.5, metadata={"zone": "a", "k": "v=1,2"})),
    Register(KEY, instance("10.0.0.3", 82, cluster="c2", healthy=False)),
    Register(KEY, instance("2001:db8::1", 80, enabled=False)),
    Register(OTHER, A),
    Register(PERSISTENT, instance("10.0.0.9", ephemeral=False)),
    Register(PERSISTENT, instance("10.0.0.8", ephemeral=True)),
    Update(KEY, "10.0.0.1", 80, weight=7.0, metadata={"a": "1"}),
    Update(KEY, "10.0.0.1", 80, weight=3.0, partial=True),
    Update(KEY, "10.0.0.2", 81, "c1", metadata={"b": "2"}, partial=True),
    Update(KEY, "10.9.9.9", 80, weight=3.0),
    Update(KEY, "10.9.9.9", 80, weight=3.0, partial=True),
    Update(key("nobody"), "10.9.9.9", 80, weight=3.0, partial=True),
    Beat(KEY, "10.0.0.1", 80),
    Beat(KEY, "10.0.0.3", 82, "c2"),
    Beat(KEY, "10.0.0.4", 80),
    Beat(KEY, "10.0.0.4", 80, full=D),
    Beat(KEY, "10.0.0.4", 80, full=D),
    Deregister(KEY, "10.0.0.4", 80),
    Deregister(KEY, "10.0.0.4", 80),
    Deregister(key("nobody"), "10.0.0.4", 80),
]
READS: list[Step] = [
    Fetch(KEY),
    Fetch(OTHER),
    Fetch(PERSISTENT),
    Fetch(key("nobody")),
    GetInstance(KEY, "10.0.0.1", 80),
    GetInstance(KEY, "10.0.0.2", 81, "c1"),
    GetInstance(KEY, "10.9.9.9", 80),
    GetInstance(key("nobody"), "10.0.0.1", 80),
    ListServices("public", "DEFAULT_GROUP"),
    ListServices("dev", "other", page=1, size=1),
    ListServices("dev", "other", page=2, size=1),
]
SERVICES: list[Step] = [
    CreateService(EMPTY, 0.6, {"team": "x"}),
    CreateService(EMPTY),
    GetService(EMPTY),
    UpdateService(EMPTY, 0.8, {"team": "y"}),
    GetService(EMPTY),
    DeleteService(EMPTY),
    DeleteService(EMPTY),
    GetService(EMPTY),
    DeleteService(KEY),
    UpdateService(key("nobody")),
]


async def outcome(registry: Any, call: Step) -> Any:
    """The result of a call, or the reason of its refusal, to compare two registries."""
    try:
        result = await registry.send(call)
    except Refused as refused:
        return refused.reason
    if isinstance(call, Fetch):
        return [plain(i) for i in result.instances if i.enabled]
    if isinstance(call, GetInstance):
        return result.ip, result.port, result.cluster, result.weight, result.healthy, dict(result.metadata)
    if isinstance(call, Beat):
        return result.code
    if isinstance(call, GetService):
        return result.key, result.threshold, dict(result.metadata)
    if isinstance(call, ListServices):
        return result.count, sorted(result.names)
    return result


def plain(i: Instance) -> tuple[Any, ...]:
    return i.ip, i.port, i.cluster, i.weight, i.healthy, i.ephemeral, dict(i.metadata)


@pytest.mark.parametrize("face", FACES)
async def test_nacos_registry_send_gives_the_result_of_the_registry_behind_it_for_every_call(face: str) -> None:
    clock = FakeClock()
    direct = EmbeddedRegistry(clock)
    async with facing(face, clock) as upstream, registry_of(upstream.url, clock=clock) as registry:
        for call in (*WRITES, *READS, *SERVICES, *READS):
            expected = await outcome(direct, call)
            got = await outcome(registry, call)
            assert (call, got) == (call, expected)
        assert registry.servers.all[0].outcomes.keys() <= {"ok", "refused"}


WHOLE = [
    (face, dialect.name) for face in FACES for dialect in FACES[face].dialects if (face, dialect.name) != ("3.0", "v1")
]


@pytest.mark.parametrize(("face", "dialect"), WHOLE)
async def test_nacos_registry_send_in_a_fixed_dialect_gives_the_same_results(face: str, dialect: str) -> None:
    clock = FakeClock()
    direct = EmbeddedRegistry(clock)
    async with facing(face, clock) as upstream:
        async with registry_of(upstream.url, clock=clock, dialect=dialect) as registry:
            for call in (*WRITES, *READS, *SERVICES):
                expected = await outcome(direct, call)
                assert (call, await outcome(registry, call)) == (call, expected)
            assert all(f"/{dialect}/" in line or "/auth/" in line for line in upstream.asked)


# --- partial changes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("face", "dialect"), [("v1", "v1"), ("v1+v2", "v1"), ("v1+v2", "v2"), ("3.0", "v3")])
async def test_nacos_registry_send_of_a_partial_update_changes_only_what_it_names(face: str, dialect: str) -> None:
    """The instance was never modified before, so that the server's own PATCH would reset fields."""
    clock = FakeClock()
    off = instance("10.0.0.5", 80, weight=2.5, enabled=False, metadata={"a": "1"})
    async with facing(face, clock) as upstream:
        async with registry_of(upstream.url, clock=clock, dialect=dialect) as registry:
            await upstream.registry.send(Register(KEY, off))
            await registry.send(Update(KEY, "10.0.0.5", 80, metadata={"b": "2"}, partial=True))
            [found] = (await upstream.registry.send(Fetch(KEY))).instances
            assert (found.weight, found.enabled, dict(found.metadata)) == (2.5, False, {"a": "1", "b": "2"})
            await registry.send(Update(KEY, "10.0.0.5", 80, enabled=True, partial=True))
            await registry.send(Update(KEY, "10.0.0.5", 80, weight=4.0, partial=True))
            [found] = (await upstream.registry.send(Fetch(KEY))).instances
            assert (found.weight, found.enabled, dict(found.metadata)) == (4.0, True, {"a": "1", "b": "2"})


# --- capabilities ----------------------------------------------------------------------------------------------------


async def test_server_client_send_does_not_repeat_a_refused_dialect() -> None:
    async with facing("3.0") as upstream, registry_of(upstream.url) as registry:
        await registry.send(Register(KEY, A))
        await version_known(registry)
        await registry.send(Update(KEY, "10.0.0.1", 80, weight=2.0))
        upstream.asked.clear()
        await registry.send(Update(KEY, "10.0.0.1", 80, weight=2.0))
        await registry.send(Beat(KEY, "10.0.0.1", 80))
        assert upstream.asked == ["PUT /v3/admin/ns/instance", "PUT /v1/ns/instance/beat"]


async def test_server_client_send_loses_no_call_in_rolling_upgrades_and_downgrades() -> None:
    """From 2.5 to 3.2 and back, without an outage in between."""
    clock = FakeClock()
    direct = EmbeddedRegistry(clock)
    async with facing("v1+v2", clock) as upstream, registry_of(upstream.url, clock=clock) as registry:
        for face in ("v1+v2", "3.0", "3.0 closed", "v3", "3.0", "v1+v2", "v3", "v1", "v1+v2"):
            upstream.turn(face)
            for call in (*WRITES, *READS, *SERVICES):
                assert (face, call, await outcome(registry, call)) == (face, call, await outcome(direct, call))
        assert registry.servers.all[0].outcomes.keys() <= {"ok", "refused"}


async def test_server_client_send_creates_the_right_kind_of_service_after_a_downgrade() -> None:
    """A server still taken for 3.x would be asked in v1, which creates only persistent services."""
    async with facing("3.0") as upstream, registry_of(upstream.url) as registry:
        await registry.send(CreateService(EMPTY, ephemeral=True))
        await version_known(registry)
        upstream.turn("v1+v2")
        await registry.send(CreateService(key("next"), ephemeral=True))
        assert (await upstream.registry.send(GetService(key("next")))).ephemeral


# --- admin rights and logins ------------------------------------------------------------------------------------------


async def test_authenticated_client_add_clusters_adds_clusters_to_list_without_admin_rights() -> None:
    clock = FakeClock()
    users = {"nacos": "pw", "reader": "pw"}
    async with facing("v3", clock, passwords=users) as upstream:
        async with registry_of(upstream.url, clock=clock, login=LoginPolicy("reader", "pw")) as registry:
            for number, cluster in enumerate(("DEFAULT", "c1", "c2")):
                await upstream.registry.send(Register(KEY, instance(f"10.0.0.{number}", cluster=cluster)))
            assert {i.cluster for i in (await registry.send(Fetch(KEY))).instances} == {"DEFAULT"}
            registry.own_client.add_clusters(KEY, ["c1"])
            await registry.send(Register(KEY, instance("10.0.1.2", cluster="c2")))
            assert {i.cluster for i in (await registry.send(Fetch(KEY))).instances} == {"DEFAULT", "c1", "c2"}


async def test_nacos_registry_fetch_uses_the_client_list_if_the_admin_api_is_hidden() -> None:
    """As behind a gateway that lets only the client API through, and answers 404 to everything else."""

    def play(request: Request) -> Say:
        if b"/v3/client/" not in request.line:
            return say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return ok(b'{"code":0,"message":"success","data":[{"ip":"10.0.0.1","port":80}]}')

    clock = FakeClock()
    async with stub(play) as gateway, registry_of(gateway.url, clock=clock) as registry:
        assert [i.ip for i in (await registry.send(Fetch(KEY))).instances] == ["10.0.0.1"]
        gateway.requests.clear()
        await registry.send(Fetch(KEY))
        assert len(gateway.requests) == 1


async def test_nacos_registry_send_says_which_right_is_missing() -> None:
    users = {"nacos": "pw", "reader": "pw"}
    async with facing("v3", passwords=users) as upstream:
        async with registry_of(upstream.url, login=LoginPolicy("reader", "pw")) as registry:
            await registry.send(Register(KEY, A))
            with pytest.raises(Refused, match="needs the admin API of Nacos 3") as caught:
                await registry.send(Update(KEY, "10.0.0.1", 80, weight=2.0))
            assert (caught.value.reason, caught.value.status) == (Reason.NO_RIGHT, 403)


@pytest.mark.parametrize("face", FACES)
async def test_server_client_ask_logs_in_and_renews_a_refused_token_with_each_face(face: str) -> None:
    clock = FakeClock()
    async with facing(face, clock, passwords={"nacos": "pw"}) as upstream:
        async with registry_of(upstream.url, clock=clock, login=LoginPolicy("nacos", "pw")) as registry:
            await registry.send(Register(KEY, A))
            assert upstream.users is not None
            await clock.advance(6)
            upstream.users.revoke()
            assert len((await registry.send(Fetch(KEY))).instances) == 1
            assert registry.session.logins == 2


# --- gRPC ------------------------------------------------------------------------------------------------------------


async def test_nacos_registry_grpc_targets_are_the_ports_beside_those_of_http() -> None:
    async with registry_of("10.0.0.1", "http://10.0.0.2:7848/x", "https://n.example:65000") as registry:
        found = {target.host: (target.port, target.http_port, target.tls) for target in registry.grpc_targets("a")}
        assert found == {"10.0.0.1": (9848, 8848, None), "10.0.0.2": (8848, 7848, None)}, "no port is above 65535"
    async with registry_of("10.0.0.1", "10.0.0.2:8000", grpc_port=443) as registry:
        assert [target.port for target in registry.grpc_targets("a")] == [443], "nor below 1"


async def test_nacos_registry_grpc_targets_begin_with_the_server_of_a_key() -> None:
    urls = [f"10.0.0.{number}" for number in range(1, 6)]
    async with registry_of(*urls) as registry:
        firsts = {key: next(registry.grpc_targets(key)).host for key in map(str, range(50))}
        assert len(set(firsts.values())) == 5
        assert all(next(registry.grpc_targets(key)).host == host for key, host in firsts.items())
        assert {target.host for target in registry.grpc_targets("a")} == set(urls), "each of them is tried"


async def test_nacos_registry_grpc_targets_of_https_use_tls_with_the_name_of_http() -> None:
    policy = HttpPolicy(sni="name.example")
    async with registry_of("https://n.example:8848", http=policy, tls=TlsPolicy(verify=False)) as registry:
        (target,) = registry.grpc_targets("a")
        assert target.tls is not None and target.tls.verify_mode is ssl.CERT_NONE
        assert (target.name, next(registry.grpc_targets("b")).tls is target.tls) == ("name.example", True)


async def test_authenticated_client_grpc_headers_have_the_token_and_the_server_identity() -> None:
    async with facing("v1+v2", passwords={"nacos": "pw"}) as upstream:
        policy = HttpPolicy(identity=("who", "me"))
        async with registry_of(upstream.url, http=policy, login=LoginPolicy("nacos", "pw")) as registry:
            first = await registry.own_client.grpc_headers()
            assert first.keys() == {"who", "accessToken"}
            assert await registry.own_client.grpc_headers() == first
            assert registry.session.logins == 1
            assert await registry.acting_as(Credential("t")).grpc_headers() == {"accessToken": "t"}
            assert await registry.acting_as(NOBODY).grpc_headers({}) == {}
        async with registry_of(upstream.url) as registry:
            assert await registry.own_client.grpc_headers() == {}


async def test_authenticated_client_grpc_headers_renew_a_refused_token() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock, passwords={"nacos": "pw"}) as upstream:
        async with registry_of(upstream.url, clock=clock, login=LoginPolicy("nacos", "pw")) as registry:
            first = await registry.own_client.grpc_headers()
            await clock.advance(10)
            assert await registry.own_client.grpc_headers({"accessToken": "older"}) == first
            assert await registry.own_client.grpc_headers(first) != first
            assert registry.session.logins == 2


async def test_authenticated_client_grpc_headers_log_in_at_the_next_server() -> None:
    async with facing("v1+v2", passwords={"nacos": "pw"}) as upstream:
        login = LoginPolicy("nacos", "pw")
        async with registry_of(f"http://127.0.0.1:{free_port()}", upstream.url, login=login) as registry:
            assert await registry.own_client.grpc_headers()
        async with registry_of(f"http://127.0.0.1:{free_port()}", login=login) as registry:
            with pytest.raises(Unreachable):
                await registry.own_client.grpc_headers()
        async with registry_of(upstream.url, login=LoginPolicy("nacos", "wrong")) as registry:
            with pytest.raises(Refused):
                await registry.own_client.grpc_headers()


@pytest.mark.parametrize(
    ("face", "user", "expected"), [("v3", "nacos", True), ("v3", "reader", False), ("v1+v2", "nacos", False)]
)
async def test_authenticated_client_lists_disabled_if_it_may_use_the_admin_api(
    face: str, user: str, expected: bool
) -> None:
    async with facing(face, passwords={"nacos": "pw", "reader": "pw"}) as upstream:
        async with registry_of(upstream.url, login=LoginPolicy(user, "pw")) as registry:
            await registry.send(Fetch(KEY))
            assert registry.own_client.lists_disabled(KEY) is expected


# --- protection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
async def test_nacos_registry_fetch_unmasks_a_protected_list_with_each_face(face: str) -> None:
    clock = FakeClock()
    async with facing(face, clock) as upstream, registry_of(upstream.url, clock=clock) as registry:
        await upstream.registry.send(CreateService(KEY, 0.5, ephemeral=True))
        for number, healthy in enumerate((True, False, False)):
            await upstream.registry.send(Register(KEY, instance(f"10.0.0.{number}", healthy=healthy)))
        snapshot = await registry.send(Fetch(KEY))
        assert [i.healthy for i in snapshot.instances] == [True, False, False]
        assert (snapshot.threshold, snapshot.select().protected) == (0.5, True)
        assert await registry.send(Fetch(KEY)) is snapshot


# --- several servers -------------------------------------------------------------------------------------------------


async def test_authenticated_client_send_pins_registrations_and_beats_to_one_server() -> None:
    clock = FakeClock()
    async with facing("v3", clock) as one, facing("v3", clock) as two:
        async with registry_of(one.url, two.url, clock=clock) as registry:
            for number in range(10):
                await registry.send(Register(KEY, instance(f"10.0.0.{number}")))
                await registry.send(Beat(KEY, f"10.0.0.{number}", 80))
            await registry.send(Fetch(KEY))
            busy, idle = (one, two) if any("POST" in line for line in one.asked) else (two, one)
            assert not any("instance" in line for line in idle.asked)
            assert len((await busy.registry.send(Fetch(KEY))).instances) == 10


async def test_authenticated_client_send_reads_a_service_from_the_node_that_created_it() -> None:
    """The other nodes learn of it a second later."""
    clock = FakeClock()
    async with facing("v1+v2", clock) as one, facing("v1+v2", clock) as two:
        async with registry_of(one.url, two.url, clock=clock) as registry:
            for number in range(10):
                await registry.send(CreateService(key(f"own{number}"), 0.5))
                assert (await registry.send(GetService(key(f"own{number}")))).threshold == 0.5


async def test_authenticated_client_send_tries_the_next_server_if_one_is_down() -> None:
    clock = FakeClock()
    async with facing("v1+v2", clock) as up:
        async with registry_of("127.0.0.1:1", up.url, clock=clock) as registry:
            for number in range(20):
                await registry.send(Register(key(f"s{number}"), A))
            down, _ = registry.servers.all
            assert not down.up
            assert registry.status()["servers"][0]["state"] == "down"


async def test_authenticated_client_send_is_unreachable_if_all_servers_are_down() -> None:
    async with registry_of("127.0.0.1:1", "127.0.0.1:2") as registry:
        with pytest.raises(Unreachable) as caught:
            await registry.send(Register(KEY, A))
        assert not caught.value.arrived


@pytest.mark.parametrize("call", [CreateService(EMPTY), DeleteService(EMPTY)])
async def test_authenticated_client_send_does_not_repeat_a_call_that_is_not_idempotent(call: Step) -> None:
    """Both servers accept the call and close the connection; only one of them must get it."""
    async with stub(lambda _: say(then="close")) as one, stub(lambda _: say(then="close")) as two:
        async with registry_of(one.url, two.url) as registry:
            with pytest.raises(UpstreamError):
                await registry.send(call)
            sent = [request.line for request in (*one.requests, *two.requests) if b"/ns/service" in request.line]
            assert len(sent) == 1


async def test_authenticated_client_send_repeats_an_idempotent_call_at_the_next_server() -> None:
    async with stub(lambda _: say(then="close")) as broken, facing("v1") as up:
        async with registry_of(broken.url, up.url) as registry:
            for number in range(8):
                await registry.send(Register(key(f"s{number}"), A))
            assert len(broken.requests) >= 1
            assert (await up.registry.send(ListServices("public", "DEFAULT_GROUP"))).count == 8


REDIRECT = (400, "receive invalid redirect request from peer 10.0.0.2")
NO_PEER = (500, "Server failed, caused: java.net.ConnectException: Connection refused (Connection refused);")


@pytest.mark.parametrize("said", [REDIRECT, NO_PEER], ids=["redirect", "refused"])
@pytest.mark.parametrize(
    "call", [Register(KEY, A), Deregister(KEY, A.ip, A.port), Update(KEY, A.ip, A.port), Beat(KEY, A.ip, A.port)]
)
async def test_authenticated_client_send_tries_the_next_node_if_one_lacks_its_peer(
    call: Step, said: tuple[int, str]
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/state"):
            return httpx.Response(200, json={})
        asked.append(request.url.host)
        if len(asked) == 1:
            return httpx.Response(said[0], text=said[1])
        return httpx.Response(200, json={"code": 10200}) if isinstance(call, Beat) else httpx.Response(200, text="ok")

    policy = NacosPolicy(ServersPolicy(("a", "b", "c")), dialect="v1")
    registry = NacosRegistry(policy, FakeClock(), httpx.MockTransport(answer))
    await registry.send(call)
    assert len(asked) == len(set(asked)) == 2
    assert all(server.up for server in registry.servers.all)
    await registry.close()


@pytest.mark.parametrize("said", [REDIRECT, NO_PEER], ids=["redirect", "refused"])
async def test_authenticated_client_send_fails_if_all_nodes_lack_their_peer(said: tuple[int, str]) -> None:
    policy = NacosPolicy(ServersPolicy(("a", "b", "c")), dialect="v1")
    transport = httpx.MockTransport(lambda _: httpx.Response(said[0], text=said[1]))
    registry = NacosRegistry(policy, FakeClock(), transport)
    with pytest.raises(Refused) as caught:
        await registry.send(Beat(KEY, A.ip, A.port))
    assert is_unavailable(caught.value) and not counts_for_upstream(caught.value, fetching=False)
    assert all(server.up for server in registry.servers.all)
    with pytest.raises(Refused):
        await registry.send(CreateService(KEY))
    assert sum(sum(server.outcomes.values()) for server in registry.servers.all) == 4, "it is sent once"
    await registry.close()


async def test_nacos_registry_report_unreadable_counts_and_logs_the_same_hosts_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hosts: list[Any] = [{"ip": "10.0.0.1", "port": 80}, {"port": 0}]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"hosts": hosts, "lastRefTime": 1})

    registry = NacosRegistry(NacosPolicy(ServersPolicy(("a",)), dialect="v1"), FakeClock(), httpx.MockTransport(answer))
    for _ in range(3):
        assert len((await registry.send(Fetch(KEY))).instances) == 1
    assert registry.unreadable == 1 and caplog.text.count("were left out (1): ") == 1
    hosts.append({"port": 0, "ip": None})
    await registry.send(Fetch(KEY))
    assert registry.unreadable == 3 and caplog.text.count("were left out (2): ") == 1
    del hosts[1:]
    await registry.send(Fetch(KEY))
    hosts.append({"port": 0})
    await registry.send(Fetch(KEY))
    assert registry.unreadable == 4
    await registry.close()


async def test_authenticated_client_send_tries_the_next_server_after_a_garbled_answer() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"hosts": 1} if request.url.host == registry.servers.all[0].origin[7:8] else OK)

    policy = NacosPolicy(ServersPolicy(("a", "b")), dialect="v1")
    registry = NacosRegistry(policy, FakeClock(), httpx.MockTransport(answer))
    for number in range(30):
        await registry.send(Fetch(key(f"s{number}")))
    assert all(server.up for server in registry.servers.all)
    assert registry.servers.all[0].outcomes["Garbled"] > 5
    await registry.close()


# --- hostile answers -------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(CALLS), st.lists(ODD_REPLIES, min_size=1, max_size=4), st.sampled_from(["auto", "v1", "v2", "v3"])
)
async def test_nacos_registry_send_gives_a_result_or_an_upstream_error_for_any_answer(
    call: Step, replies: list[HttpReply], dialect: Any
) -> None:
    turns = itertools.cycle(replies)

    def answer(_: httpx.Request) -> httpx.Response:
        reply = next(turns)
        headers = {"content-type": reply.content_type} if reply.content_type else {}
        return httpx.Response(reply.status, headers=headers, content=reply.body)

    policy = NacosPolicy(ServersPolicy(("127.0.0.1:8848",)), dialect=dialect)
    registry = NacosRegistry(policy, FakeClock(), httpx.MockTransport(answer))
    try:
        await registry.send(call)
    except UpstreamError as error:
        assert str(error)
    finally:
        await registry.close()


# --- forwarding ------------------------------------------------------------------------------------------------------


async def forwarded_to(registry: NacosRegistry, method: str, query: str, form: bytes = b"") -> str:
    """The body of the response, which names the server that answered."""

    async def body() -> AsyncIterator[bytes]:
        yield form

    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"content-length", b"%d" % len(form))]
    async with registry.forward(method, "/v1/cs/configs", query, headers, body()) as reply:
        return b"".join([chunk async for chunk in reply.body()]).decode()


async def test_nacos_registry_forward_starts_at_the_same_server_for_all_calls_about_a_configuration() -> None:
    async with stub(lambda request: ok(b"one")) as one, stub(lambda request: ok(b"other")) as other:
        async with registry_of(one.url, other.url) as registry:
            read = [await forwarded_to(registry, "GET", f"dataId=d{number}&group=g") for number in range(40)]
            published = [await forwarded_to(registry, "POST", "", b"dataId=d%d&content=x" % n) for n in range(40)]
        assert read == published
        assert 5 <= read.count("one") <= 35


async def test_nacos_registry_forward_of_other_calls_starts_at_a_random_server_for_each_proxy() -> None:
    async with stub(lambda request: ok(b"one")) as one, stub(lambda request: ok(b"other")) as other:
        drawn: list[set[str]] = []
        for _ in range(40):
            async with registry_of(one.url, other.url) as registry:
                drawn.append({await forwarded_to(registry, "GET", "search=blur") for _ in range(2)})
        assert {"one"} in drawn and {"other"} in drawn
        assert all(len(servers) == 1 for servers in drawn)


# --- one server ----------------------------------------------------------------------------------------------------


def listing(name: bytes) -> bytes:
    return b'{"name":"DEFAULT_GROUP@@%s","hosts":[{"ip":"10.0.0.1","port":80}]}' % name


async def test_server_client_send_drops_a_connection_that_answers_another_question() -> None:
    """A server, or a gateway before it, that is one answer behind on a connection would stay behind."""
    answers = [listing(b"orders"), listing(b"orders"), listing(b"carts")]

    def play(request: Request) -> Say:
        return ok(answers.pop(0)) if b"/instance/list" in request.line else ok(b'{"version":"2.5.1"}')

    async with stub(play) as server:
        registry = NacosRegistry(NacosPolicy(ServersPolicy((server.url,)), dialect="v1"), FakeClock())
        registry.servers.all[0].capabilities.version_asked_at = 0.0
        await registry.send(Fetch(KEY))
        with pytest.raises(Garbled, match="asked for 'DEFAULT_GROUP@@carts', but the answer is about") as caught:
            await registry.send(Fetch(key("carts")))
        assert caught.value.answered and server.connections == 1
        assert (await registry.send(Fetch(key("carts")))).key == key("carts")
        assert server.connections == 2 and registry.servers.all[0].up
        await registry.close()


async def test_server_client_send_keeps_a_connection_after_an_unreadable_answer() -> None:
    answers = [b'{"hosts":1}', b'{"ip":1,"port":80}', listing(b"orders")]
    async with stub(lambda request: ok(answers.pop(0))) as server:
        registry = NacosRegistry(NacosPolicy(ServersPolicy((server.url,)), dialect="v1"), FakeClock())
        registry.servers.all[0].capabilities.version_asked_at = 0.0
        for call in (Fetch(KEY), GetInstance(KEY, "10.0.0.1", 80)):
            with pytest.raises(Garbled):
                await registry.send(call)
        await registry.send(Fetch(KEY))
        assert server.connections == 1
        await registry.close()

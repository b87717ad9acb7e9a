"""Which requests each dialect client sends for a call, and what it makes of the replies."""

from __future__ import annotations

from typing import Any

import pytest

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    Call,
    CreateService,
    Fetch,
    GetInstance,
    GetService,
    Register,
    ServiceInfo,
    Update,
)
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.nacos.dialect_client import (
    MANY_SIMILAR_NAMES,
    NEEDS_ADMIN,
    DialectClient,
    dialect_clients,
)
from nacos_proxy.upstream.nacos.response_cache import ADMIN_RETRY, INFO_TTL, ResponseCache
from nacos_proxy.wire.http import HttpReply, HttpRequest
from tests.helpers.build import KEY, instance, key
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FaceServer
from tests.helpers.pair import asked_by


class FakeServerClient:
    """A server without a socket: the registry and the dialects of a face, and what it was asked."""

    def __init__(self, face: str, dialect: str, *, admin: bool = True) -> None:
        self.clock = FakeClock()
        self.server = FaceServer(face, self.clock)
        self.cache = ResponseCache()
        self.dialect_client: DialectClient = dialect_clients(self.cache, self.clock)[dialect]
        self.admin = admin
        self.asked: list[str] = []
        self.idempotent: list[bool] = []

    async def ask(self, request: HttpRequest, *, idempotent: bool = True) -> HttpReply:
        self.asked.append(f"{request.method} {request.path}")
        self.idempotent.append(idempotent)
        if request.path.startswith("/v3/admin/") and not self.admin:
            return HttpReply(403, "application/json", b'{"status":403,"message":"authorization failed!"}')
        body, headers = request.body, {"content-type": "application/x-www-form-urlencoded"} if request.form else {}
        arrived = HttpRequest.parse(request.method, request.path, request.target.partition("?")[2], body, headers)
        return await self.server._perform(arrived)

    async def send(self, call: Call[Any]) -> Any:
        return await self.execute(call)

    def with_push_address(self, _: ServiceKey, request: HttpRequest) -> tuple[HttpRequest, int | None]:
        return request, None

    async def execute(self, call: Call[Any]) -> Any:
        return await self.dialect_client.execute(self, call)

    async def at_server(self, *calls: Call[Any]) -> None:
        """Calls that another client has made."""
        for call in calls:
            await self.server.registry.send(asked_by(call))

    def requests_since(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.mark.parametrize("dialect", ["v1", "v2"])
async def test_list_dialect_client_asks_for_the_threshold_only_if_an_instance_is_unhealthy(dialect: str) -> None:
    client = FakeServerClient("v1+v2", dialect)
    await client.at_server(Register(KEY, instance("10.0.0.1", ephemeral=False)))
    await client.execute(Fetch(KEY))
    assert client.requests_since() == [f"GET /{dialect}/ns/instance/list"]
    await client.at_server(Register(KEY, instance("10.0.0.2", healthy=False, ephemeral=False)))
    await client.execute(Fetch(KEY))
    assert client.requests_since() == [f"GET /{dialect}/ns/instance/list", f"GET /{dialect}/ns/service"]
    await client.execute(Fetch(KEY))
    assert client.requests_since() == [f"GET /{dialect}/ns/instance/list"]
    await client.clock.advance(INFO_TTL)
    await client.execute(Fetch(KEY))
    assert client.requests_since() == [f"GET /{dialect}/ns/instance/list", f"GET /{dialect}/ns/service"]


@pytest.mark.parametrize("dialect", ["v1", "v2"])
async def test_list_dialect_client_unmasks_a_protected_list_by_the_list_of_healthy_instances(dialect: str) -> None:
    client = FakeServerClient("v1+v2", dialect)
    await client.at_server(CreateService(KEY, 0.8, ephemeral=True))
    await client.at_server(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2", healthy=False)))
    snapshot = await client.execute(Fetch(KEY))
    assert client.requests_since()[:2] == [f"GET /{dialect}/ns/instance/list"] * 2
    assert [i.healthy for i in snapshot.instances] == [True, False]
    assert (snapshot.threshold, snapshot.masking) == (0.8, True)
    assert await client.execute(Fetch(KEY)) is snapshot


async def test_unmask_without_a_known_threshold_takes_one_that_masks_as_the_server_did() -> None:
    class Silent(FakeServerClient):
        async def send(self, call: Call[Any]) -> Any:
            raise Refused(Reason.GONE, "no such call", status=404)

    client = Silent("v1+v2", "v1")
    await client.at_server(CreateService(KEY, 0.8, ephemeral=True))
    await client.at_server(*(Register(KEY, instance(f"10.0.0.{n}", healthy=n == 1)) for n in range(3)))
    snapshot = await client.execute(Fetch(KEY))
    assert [i.healthy for i in snapshot.instances] == [False, True, False]
    assert snapshot.select().protected
    assert snapshot.threshold == pytest.approx(1 / 3)


async def test_v3_dialect_client_fetches_all_clusters_in_one_request_as_admin() -> None:
    client = FakeServerClient("v3", "v3")
    hosts = [
        instance("10.0.0.1"),
        instance("10.0.0.2", cluster="c1"),
        instance("10.0.0.3", cluster="c2", enabled=False),
    ]
    await client.at_server(*(Register(KEY, host) for host in hosts), Register(key("orders-eu"), instance("10.0.0.9")))
    snapshot = await client.execute(Fetch(KEY))
    assert [(i.ip, i.cluster, i.enabled) for i in snapshot.instances] == [(h.ip, h.cluster, h.enabled) for h in hosts]
    assert client.requests_since() == ["GET /v3/admin/ns/service/list"]
    assert (await client.execute(Fetch(key("order")))).instances == ()


async def test_v3_dialect_client_lists_each_cluster_if_many_services_have_similar_names() -> None:
    client = FakeServerClient("v3", "v3")
    for number in range(MANY_SIMILAR_NAMES + 1):
        await client.at_server(Register(key(f"a{number}-orders"), instance()))
    await client.at_server(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2", cluster="c1")))
    assert len((await client.execute(Fetch(KEY))).instances) == 2
    client.requests_since()
    assert len((await client.execute(Fetch(KEY))).instances) == 2
    lists = ["GET /v3/admin/ns/instance/list"] * 2
    assert client.requests_since() == ["GET /v3/admin/ns/service", *lists]
    client.cache.set_list_by_cluster(key("nobody"))
    assert (await client.execute(Fetch(key("nobody")))).instances == ()


async def test_v3_dialect_client_without_admin_rights_uses_the_client_list_and_retries_later() -> None:
    client = FakeServerClient("v3", "v3", admin=False)
    await client.at_server(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2", cluster="c1")))
    assert [i.ip for i in (await client.execute(Fetch(KEY))).instances] == ["10.0.0.1"]
    assert client.requests_since() == ["GET /v3/admin/ns/service/list", "GET /v3/client/ns/instance/list"]
    client.cache.add_clusters(KEY, ["c1"])
    assert [i.ip for i in (await client.execute(Fetch(KEY))).instances] == ["10.0.0.1", "10.0.0.2"]
    assert client.requests_since() == ["GET /v3/client/ns/instance/list"]
    client.admin = True
    await client.clock.advance(ADMIN_RETRY)
    await client.execute(Fetch(KEY))
    assert client.requests_since()[0] == "GET /v3/admin/ns/service/list"


async def test_v3_dialect_client_without_admin_rights_finds_an_instance_in_the_client_list() -> None:
    client = FakeServerClient("v3", "v3", admin=False)
    one = instance("10.0.0.1", cluster="c1", weight=2.0)
    await client.at_server(Register(KEY, one))
    found = await client.execute(GetInstance(KEY, "10.0.0.1", 80, "c1"))
    assert (found.key, found.weight) == (one.key, 2.0)
    assert client.requests_since() == ["GET /v3/admin/ns/instance", "GET /v3/client/ns/instance/list"]
    for unknown in (
        GetInstance(KEY, "10.0.0.2", 80, "c1"),
        GetInstance(KEY, "10.0.0.1", 80),
        GetInstance(key("none"), "10.0.0.1", 80),
    ):
        with pytest.raises(Refused) as caught:
            await client.execute(unknown)
        assert (caught.value.reason, caught.value.status) == (Reason.INSTANCE_NOT_FOUND, 404)


async def test_v3_dialect_client_explains_a_missing_admin_right() -> None:
    client = FakeServerClient("v3", "v3", admin=False)
    await client.at_server(Register(KEY, instance("10.0.0.1")))
    for call in (Update(KEY, "10.0.0.1", 80, weight=2.0), GetService(KEY)):
        with pytest.raises(Refused) as caught:
            await client.execute(call)
        assert caught.value.text.endswith(NEEDS_ADMIN)
        assert (caught.value.reason, caught.value.status) == (Reason.NO_RIGHT, 403)


async def test_v3_dialect_client_registers_an_unknown_instance_after_a_full_beat() -> None:
    client = FakeServerClient("v3", "v3")
    full = instance("10.0.0.1", weight=3.0, metadata={"preserved.heart.beat.interval": "2000"})
    result = await client.execute(Beat(KEY, "10.0.0.1", 80, full=full))
    assert (result.code, result.interval) == (BEAT_OK, 2000)
    assert client.requests_since() == ["POST /v3/client/ns/instance"] * 2
    await client.execute(Beat(KEY, "10.0.0.1", 80, full=full))
    assert client.requests_since() == ["POST /v3/client/ns/instance"]


@pytest.mark.parametrize(("face", "dialect"), [("v1+v2", "v1"), ("v1+v2", "v2"), ("v3", "v3")])
async def test_dialect_client_execute_completes_a_partial_update(face: str, dialect: str) -> None:
    client = FakeServerClient(face, dialect)
    await client.at_server(Register(KEY, instance("10.0.0.1", weight=2.5, metadata={"a": "1"})))
    await client.execute(Update(KEY, "10.0.0.1", 80, metadata={"b": "2"}, partial=True))
    assert client.requests_since()[-1].startswith("PUT ")
    [found] = (await client.server.registry.send(Fetch(KEY))).instances
    assert (found.weight, dict(found.metadata)) == (2.5, {"a": "1", "b": "2"})
    with pytest.raises(Refused) as caught:
        await client.execute(Update(KEY, "10.9.9.9", 80, weight=2.0, partial=True))
    assert caught.value.reason is Reason.INSTANCE_NOT_FOUND


async def test_dialect_client_execute_allows_only_idempotent_calls_to_be_sent_twice() -> None:
    client = FakeServerClient("v1+v2", "v1")
    await client.execute(CreateService(KEY))
    await client.execute(Register(KEY, instance("10.0.0.1", ephemeral=False)))
    assert client.idempotent == [False, True]


@pytest.mark.parametrize(("face", "dialect"), [("v1+v2", "v1"), ("v1+v2", "v2"), ("v3", "v3")])
async def test_dialect_client_reads_an_answer_to_a_beat_once(face: str, dialect: str) -> None:
    client = FakeServerClient(face, dialect)
    await client.at_server(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2")))
    first, second = [await client.execute(Beat(KEY, ip, 80)) for ip in ("10.0.0.1", "10.0.0.2")]
    lost, again = [await client.execute(Beat(KEY, ip, 80)) for ip in ("10.0.0.9", "10.0.0.1")]
    assert first is second and (lost.code, again) == (BEAT_NOT_FOUND, first)


async def test_dialect_client_listed_stamps_a_list_that_has_no_last_ref_time() -> None:
    client = FakeServerClient("v3", "v3")
    await client.at_server(Register(KEY, instance("10.0.0.1")))
    assert (await client.execute(Fetch(KEY))).last_ref_time == int(client.clock.wall() * 1000)


async def test_dialect_client_info_is_cached_for_its_ttl() -> None:
    client = FakeServerClient("v1+v2", "v1")
    client.cache.set_info(KEY, ServiceInfo(KEY, 0.4), client.clock.now())
    assert (await client.dialect_client.info(client, KEY)) == ServiceInfo(KEY, 0.4)
    assert client.requests_since() == []
    await client.clock.advance(INFO_TTL)
    assert await client.dialect_client.info(client, KEY) is None  # there is no such service any more

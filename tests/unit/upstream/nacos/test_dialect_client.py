"""How a whole service is asked for, call by call: which requests go out, and what is made of their answers."""

from __future__ import annotations

import tracemalloc
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
    BEATS,
    CROWD,
    NEEDS_ADMIN,
    DialectClient,
    dialect_clients,
)
from nacos_proxy.upstream.nacos.response_cache import ResponseCache, ResponseCachePolicy
from nacos_proxy.wire.http import HttpReply, HttpRequest
from tests.helpers.build import KEY, instance, key
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FaceServer
from tests.helpers.pair import asked_by


class Line:
    """A server without a socket: the face's own registry and dialects, and what it was asked."""

    def __init__(self, face: str, dialect: str, *, admin: bool = True) -> None:
        self.clock = FakeClock()
        self.server = FaceServer(face, self.clock)
        self.memory = ResponseCache(ResponseCachePolicy(info=30.0, bar=60.0))
        self.dialect_clients = dialect_clients(self.memory, self.clock)
        self.speech: DialectClient = self.dialect_clients[dialect]
        self.admin = admin
        self.asked: list[str] = []
        self.again: list[bool] = []

    async def ask(self, request: HttpRequest, *, again: bool = True) -> HttpReply:
        self.asked.append(f"{request.method} {request.path}")
        self.again.append(again)
        if request.path.startswith("/v3/admin/") and not self.admin:
            return HttpReply(403, "application/json", b'{"status":403,"message":"authorization failed!"}')
        body, headers = request.body, {"content-type": "application/x-www-form-urlencoded"} if request.form else {}
        arrived = HttpRequest.parse(request.method, request.path, request.target.partition("?")[2], body, headers)
        return await self.server._perform(arrived)

    async def send(self, call: Call[Any]) -> Any:
        return await self.say(call)

    def subscribing(self, _: ServiceKey, request: HttpRequest) -> tuple[HttpRequest, int | None]:
        return request, None

    async def say(self, call: Call[Any]) -> Any:
        return await self.speech.execute(self, call)

    async def there(self, *calls: Call[Any]) -> None:
        """Past the line."""
        for call in calls:
            await self.server.registry.send(asked_by(call))

    def since(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.mark.parametrize("dialect", ["v1", "v2"])
async def test_a_calm_list_is_one_request_and_a_list_with_an_unhealthy_one_asks_for_the_threshold(dialect: str) -> None:
    line = Line("v1+v2", dialect)
    await line.there(Register(KEY, instance("10.0.0.1", ephemeral=False)))
    await line.say(Fetch(KEY))
    assert line.since() == [f"GET /{dialect}/ns/instance/list"]
    await line.there(Register(KEY, instance("10.0.0.2", healthy=False, ephemeral=False)))
    await line.say(Fetch(KEY))
    assert line.since() == [f"GET /{dialect}/ns/instance/list", f"GET /{dialect}/ns/service"]
    await line.say(Fetch(KEY))
    assert line.since() == [f"GET /{dialect}/ns/instance/list"]
    await line.clock.advance(30)
    await line.say(Fetch(KEY))
    assert line.since() == [f"GET /{dialect}/ns/instance/list", f"GET /{dialect}/ns/service"]


@pytest.mark.parametrize("dialect", ["v1", "v2"])
async def test_a_masked_list_is_looked_at_twice(dialect: str) -> None:
    line = Line("v1+v2", dialect)
    await line.there(CreateService(KEY, 0.8, ephemeral=True))
    await line.there(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2", healthy=False)))
    snapshot = await line.say(Fetch(KEY))
    assert line.since()[:2] == [f"GET /{dialect}/ns/instance/list"] * 2
    assert [i.healthy for i in snapshot.instances] == [True, False]
    assert (snapshot.threshold, snapshot.masking) == (0.8, True)
    assert await line.say(Fetch(KEY)) is snapshot


async def test_where_the_threshold_is_not_told_it_is_one_that_masks_as_the_server_did() -> None:
    class Silent(Line):
        async def send(self, call: Call[Any]) -> Any:
            raise Refused(Reason.GONE, "no such call", status=404)

    line = Silent("v1+v2", "v1")
    await line.there(CreateService(KEY, 0.8, ephemeral=True))
    await line.there(*(Register(KEY, instance(f"10.0.0.{n}", healthy=n == 1)) for n in range(3)))
    snapshot = await line.say(Fetch(KEY))
    assert [i.healthy for i in snapshot.instances] == [False, True, False]
    assert snapshot.select().protected
    assert snapshot.threshold == pytest.approx(1 / 3)


async def test_v3_shows_the_truth_of_all_clusters_in_one_request_to_an_admin() -> None:
    line = Line("v3", "v3")
    hosts = [
        instance("10.0.0.1"),
        instance("10.0.0.2", cluster="c1"),
        instance("10.0.0.3", cluster="c2", enabled=False),
    ]
    await line.there(*(Register(KEY, host) for host in hosts), Register(key("orders-eu"), instance("10.0.0.9")))
    snapshot = await line.say(Fetch(KEY))
    assert [(i.ip, i.cluster, i.enabled) for i in snapshot.instances] == [(h.ip, h.cluster, h.enabled) for h in hosts]
    assert line.since() == ["GET /v3/admin/ns/service/list"]
    assert (await line.say(Fetch(key("order")))).instances == ()


async def test_v3_asks_cluster_by_cluster_where_too_many_are_named_alike() -> None:
    line = Line("v3", "v3")
    for number in range(CROWD + 1):
        await line.there(Register(key(f"a{number}-orders"), instance()))
    await line.there(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2", cluster="c1")))
    assert len((await line.say(Fetch(KEY))).instances) == 2
    line.since()
    assert len((await line.say(Fetch(KEY))).instances) == 2
    lists = ["GET /v3/admin/ns/instance/list"] * 2
    assert line.since() == ["GET /v3/admin/ns/service", *lists]
    line.memory.crowd(key("nobody"))
    assert (await line.say(Fetch(key("nobody")))).instances == ()


async def test_without_admin_rights_the_client_list_serves_and_the_right_is_tried_again_later() -> None:
    line = Line("v3", "v3", admin=False)
    await line.there(Register(KEY, instance("10.0.0.1")), Register(KEY, instance("10.0.0.2", cluster="c1")))
    assert [i.ip for i in (await line.say(Fetch(KEY))).instances] == ["10.0.0.1"]
    assert line.since() == ["GET /v3/admin/ns/service/list", "GET /v3/client/ns/instance/list"]
    line.memory.saw(KEY, ["c1"])
    assert [i.ip for i in (await line.say(Fetch(KEY))).instances] == ["10.0.0.1", "10.0.0.2"]
    assert line.since() == ["GET /v3/client/ns/instance/list"]
    line.admin = True
    await line.clock.advance(60)
    await line.say(Fetch(KEY))
    assert line.since()[0] == "GET /v3/admin/ns/service/list"


async def test_without_admin_rights_an_instance_is_looked_up_in_the_client_list() -> None:
    line = Line("v3", "v3", admin=False)
    one = instance("10.0.0.1", cluster="c1", weight=2.0)
    await line.there(Register(KEY, one))
    found = await line.say(GetInstance(KEY, "10.0.0.1", 80, "c1"))
    assert (found.key, found.weight) == (one.key, 2.0)
    assert line.since() == ["GET /v3/admin/ns/instance", "GET /v3/client/ns/instance/list"]
    for unknown in (
        GetInstance(KEY, "10.0.0.2", 80, "c1"),
        GetInstance(KEY, "10.0.0.1", 80),
        GetInstance(key("none"), "10.0.0.1", 80),
    ):
        with pytest.raises(Refused) as caught:
            await line.say(unknown)
        assert (caught.value.reason, caught.value.status) == (Reason.INSTANCE_NOT_FOUND, 404)


async def test_a_missing_admin_right_is_explained() -> None:
    line = Line("v3", "v3", admin=False)
    await line.there(Register(KEY, instance("10.0.0.1")))
    for call in (Update(KEY, "10.0.0.1", 80, weight=2.0), GetService(KEY)):
        with pytest.raises(Refused) as caught:
            await line.say(call)
        assert caught.value.text.endswith(NEEDS_ADMIN)
        assert (caught.value.reason, caught.value.status) == (Reason.NO_RIGHT, 403)


async def test_a_full_beat_of_v3_registers_what_the_server_does_not_know() -> None:
    line = Line("v3", "v3")
    full = instance("10.0.0.1", weight=3.0, metadata={"preserved.heart.beat.interval": "2000"})
    result = await line.say(Beat(KEY, "10.0.0.1", 80, full=full))
    assert (result.code, result.interval) == (BEAT_OK, 2000)
    assert line.since() == ["POST /v3/client/ns/instance"] * 2
    await line.say(Beat(KEY, "10.0.0.1", 80, full=full))
    assert line.since() == ["POST /v3/client/ns/instance"]


@pytest.mark.parametrize(("face", "dialect"), [("v1+v2", "v1"), ("v1+v2", "v2"), ("v3", "v3")])
async def test_a_partial_change_names_all_when_it_is_sent(face: str, dialect: str) -> None:
    line = Line(face, dialect)
    await line.there(Register(KEY, instance("10.0.0.1", weight=2.5, metadata={"a": "1"})))
    await line.say(Update(KEY, "10.0.0.1", 80, metadata={"b": "2"}, partial=True))
    assert line.since()[-1].startswith("PUT ")
    [found] = (await line.server.registry.send(Fetch(KEY))).instances
    assert (found.weight, dict(found.metadata)) == (2.5, {"a": "1", "b": "2"})
    with pytest.raises(Refused) as caught:
        await line.say(Update(KEY, "10.9.9.9", 80, weight=2.0, partial=True))
    assert caught.value.reason is Reason.INSTANCE_NOT_FOUND


async def test_only_what_says_the_same_twice_may_be_sent_twice() -> None:
    line = Line("v1+v2", "v1")
    await line.say(CreateService(KEY))
    await line.say(Register(KEY, instance("10.0.0.1", ephemeral=False)))
    assert line.again == [False, True]


async def test_a_beat_is_asked_for_its_own_instance_however_often_and_among_however_many() -> None:
    line = Line("v1", "v1")
    await line.there(Register(KEY, instance("10.9.9.9")))
    known, unknown = Beat(KEY, "10.9.9.9", 80), [Beat(KEY, f"10.0.{n // 250}.{n % 250}", 80) for n in range(BEATS)]
    for beat in (known, known, *unknown, known):
        assert (await line.say(beat)).code == (BEAT_OK if beat is known else BEAT_NOT_FOUND)


async def test_long_beats_leave_nothing_behind() -> None:
    line = Line("v1", "v1")
    tracemalloc.start()
    try:
        for number in range(100):
            full = instance(metadata={"note": f"{number}" + "x" * 100_000})
            await line.say(Beat(KEY, "10.0.0.1", 80, full=full))
            line.since()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_an_answer_without_a_moment_gets_one() -> None:
    line = Line("v3", "v3")
    await line.there(Register(KEY, instance("10.0.0.1")))
    assert (await line.say(Fetch(KEY))).last_ref_time == int(line.clock.wall() * 1000)


async def test_what_is_known_of_a_service_is_kept_while_it_is_young() -> None:
    line = Line("v1+v2", "v1")
    line.memory.learned(KEY, ServiceInfo(KEY, 0.4), line.clock.now())
    assert (await line.speech.info(line, KEY)) == ServiceInfo(KEY, 0.4)
    assert line.since() == []
    await line.clock.advance(30)
    assert await line.speech.info(line, KEY) is None  # there is no such service any more

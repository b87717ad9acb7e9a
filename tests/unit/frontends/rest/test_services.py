"""Our own API, asked as a server would ask it."""

from __future__ import annotations

import pytest

from nacos_proxy.app.router import rest_app
from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.core.agent import Written
from nacos_proxy.frontends.rest.models import Instance, Instances, ServicePage, Snapshot
from nacos_proxy.frontends.rest.reads import Reads
from nacos_proxy.frontends.rest.routing import json_reply
from nacos_proxy.frontends.rest.services import RestApi
from nacos_proxy.model.calls import Beat, Deregister, Fetch, GetInstance, ListServices, Register, Update, Write
from nacos_proxy.model.errors import Reason, Refused, TooSlow, Unreachable
from nacos_proxy.model.services import Instance as ModelInstance
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.http import CACHEABLE
from tests.helpers.asgi import Exchange, ask
from tests.helpers.build import KEY, instance, key, snapshot
from tests.unit.frontends.conftest import World

A = instance("10.0.0.1", 80, metadata={"zone": "a"})
B = instance("10.0.0.2", 80, weight=2.0)
INSTANCES = "/api/v1/services/orders/instances"
ONE = f"{INSTANCES}/10.0.0.1:80"


def is_problem(answer: Exchange, status: int, parameter: str | None = None) -> str:
    """Asserts on the shape of every error; its detail."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) >= {"type", "title", "status", "detail", "instance"}
    assert document["status"] == status
    assert document["instance"] == answer.scope["path"]
    assert document.get("parameter") == parameter
    return document["detail"]


# reads


async def test_snapshot_has_age_and_cache_status(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    first = await world.ask("GET", "/api/v1/services/orders")
    assert first.status == 200
    Snapshot.model_validate(first.json())
    assert [host["ip"] for host in first.json()["hosts"]] == ["10.0.0.1", "10.0.0.2"]
    assert first.headers["age"] == "0"
    assert first.headers["cache-status"] == "nacos-proxy; fwd=miss; ttl=10"
    assert first.headers["etag"] == f'"{first.json()["revision"]}"'
    assert first.headers["cache-control"] == "private, max-age=0, must-revalidate"
    await world.clock.advance(3)
    again = await world.ask("GET", "/api/v1/services/orders")
    assert (again.headers["age"], again.headers["cache-status"]) == ("3", "nacos-proxy; hit; ttl=7")
    assert len(world.registry.sent(Fetch)) == 1


async def test_snapshot_shows_null_in_metadata(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance(metadata={"a": "1", "b": None}))
    answer = (await world.ask("GET", "/api/v1/services/orders")).json()
    Snapshot.model_validate(answer)
    assert answer["hosts"][0]["metadata"] == {"a": "1", "b": None}


async def test_snapshot_is_304_if_the_reader_has_it(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    tag = (await world.ask("GET", "/api/v1/services/orders")).headers["etag"]
    for text in (tag, f'"x", W/{tag}', "*"):
        answer = await world.ask("GET", "/api/v1/services/orders", headers={"if-none-match": text})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
        assert "content-length" not in answer.headers and "age" in answer.headers
    assert (await world.ask("GET", "/api/v1/services/orders", headers={"if-none-match": '"x"'})).status == 200


async def test_each_representation_has_its_own_etag(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    targets = ("", "?clusters=DEFAULT", "?healthy_only=true", "/instances", "/instances/10.0.0.1:80")
    tags = [(await world.ask("GET", f"/api/v1/services/orders{t}")).headers["etag"] for t in targets]
    assert len(set(tags)) == len(tags)


async def test_snapshot_with_no_cache_asks_the_upstream_and_max_age_bounds_the_age(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    for expected, wanted, wait in ((1, "", 0), (2, "no-cache", 0), (2, "max-age=5", 4), (3, "max-age=5", 2)):
        await world.clock.advance(wait)
        headers = {"cache-control": wanted} if wanted else None
        assert (await world.ask("GET", "/api/v1/services/orders", headers=headers)).status == 200
        assert len(world.registry.sent(Fetch)) == expected, wanted


async def test_reads_are_marked_for_the_fast_path_only_if_repeatable(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    fresh = await world.ask("GET", "/api/v1/services/orders")
    mark = fresh.scope[CACHEABLE]
    assert (mark.invalidation_key, mark.confirmed_at, mark.valid_until) == (KEY, 1000.0, 1010.0)
    asked = await world.ask("GET", "/api/v1/services/orders", headers={"cache-control": "no-cache"})
    assert CACHEABLE not in asked.scope
    young = await world.ask("GET", "/api/v1/services/orders", headers={"cache-control": "max-age=4"})
    assert young.scope[CACHEABLE].valid_until == 1004.0
    await world.clock.advance(11)
    stale = await world.ask("GET", "/api/v1/services/orders")
    assert CACHEABLE not in stale.scope


async def test_a_stale_snapshot_is_marked_in_body_header_and_etag(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    fresh = await world.ask("GET", "/api/v1/services/orders")
    world.registry.script = lambda call: Unreachable("connection refused", arrived=False)
    await world.clock.advance(60)
    stale = await world.ask("GET", "/api/v1/services/orders")
    assert (fresh.json()["stale"], stale.json()["stale"]) == (False, True)
    assert stale.headers["age"] == "60" and "hit; ttl=-50; detail=" in stale.headers["cache-status"]
    assert stale.headers["etag"] != fresh.headers["etag"]


async def test_snapshot_without_cache_and_upstream_is_503_with_the_reason(world: World) -> None:
    world.registry.script = lambda call: Unreachable("connection refused", arrived=False)
    answer = await world.ask("GET", "/api/v1/services/orders")
    assert "connection refused" in is_problem(answer, 503)
    assert answer.headers["retry-after"] == "1"


async def test_snapshot_applies_filters_namespace_and_group(world: World) -> None:
    other = key("a/b;c", "g", "n")
    world.shelf.services[other] = snapshot(
        instance("10.0.0.1", cluster="x", healthy=False), instance("10.0.0.2", cluster="x"), B, service=other
    )
    answer = await world.ask("GET", "/api/v1/services/a%2Fb%3Bc?group=g&namespace=n&clusters=x,y&healthy_only=true")
    body = answer.json()
    assert [host["ip"] for host in body["hosts"]] == ["10.0.0.2"]
    assert (body["name"], body["clusters"], body["namespaceId"]) == ("g@@a/b;c", "x,y", "n")
    grouped = await world.ask("GET", "/api/v1/services/g%40%40a%2Fb%3Bc?namespace=n")
    assert len(grouped.json()["hosts"]) == 3


async def test_instances_show_disabled_ones_and_true_health(world: World) -> None:
    world.shelf.services[KEY] = snapshot(
        instance("10.0.0.1", enabled=False), instance("10.0.0.2", healthy=False), threshold=1.0
    )
    answer = await world.ask("GET", "/api/v1/services/orders/instances")
    Instances.model_validate(answer.json())
    assert [(i["enabled"], i["healthy"]) for i in answer.json()["instances"]] == [(False, True), (True, False)]
    healthy = await world.ask("GET", "/api/v1/services/orders/instances?healthy_only=1")
    assert healthy.json()["count"] == 1


async def test_instance_comes_from_memory_or_from_the_upstream(world: World) -> None:
    six = instance("2001:db8::1", 80, cluster="c1")
    world.shelf.services[KEY] = snapshot(A, six)
    answer = await world.ask("GET", "/api/v1/services/orders/instances/[2001:db8::1]:80")
    Instance.model_validate(answer.json())
    assert (answer.json()["ip"], answer.json()["clusterName"]) == ("2001:db8::1", "c1")
    unknown = await world.ask("GET", "/api/v1/services/orders/instances/10.0.0.9:80")
    assert is_problem(unknown, 404) == "no matched ip found!"
    assert unknown.json()["reason"] == "instance not found"


SPELLINGS = [
    "[2001:db8::7]:80",
    "%5B2001:db8::7%5D:80",
    "2001:db8::7:80",
    "2001%3ADB8%3A0%3A%3A7%3A80",
    "[2001:DB8::7]:80",
]


@pytest.mark.parametrize("place", SPELLINGS)
@pytest.mark.parametrize("registered", ["[2001:db8::7]", "2001:db8::7", "2001:DB8:0::7"])
async def test_instance_finds_any_spelling_of_an_ipv6_address(world: World, registered: str, place: str) -> None:
    world.shelf.services[KEY] = snapshot(instance(registered, 80))
    path = f"/api/v1/services/orders/instances/{place}"
    assert (await world.ask("GET", path)).json()["ip"] == registered
    assert (await world.ask("PATCH", path, json_body={"weight": 3})).json()["ip"] == registered
    assert (await world.ask("PUT", f"{path}/beat")).status == 200
    again = await world.ask("POST", "/api/v1/services/orders/instances", json_body={"ip": "2001:db8::7", "port": 80})
    assert (again.json()["ip"], again.headers["location"][-16:]) == (registered, "[2001:db8::7]:80")
    assert (await world.ask("DELETE", path)).status == 204
    written = [call for call in world.registry.calls if isinstance(call, Write)]
    assert {call.instance.ip if isinstance(call, Register) else call.ip for call in written} == {registered}


async def test_instance_finds_any_spelling_of_a_disabled_instance_registered_here(world: World) -> None:
    world.agent.catalog.registrations.record_write(Register(KEY, instance("[2001:db8::7]", 80)), world.clock.now())
    assert (await world.ask("DELETE", "/api/v1/services/orders/instances/2001:db8::7:80")).status == 204
    assert world.registry.calls[-1] == Deregister(KEY, "[2001:db8::7]", 80)


async def test_a_write_to_an_ipv6_address_needs_no_list(world: World) -> None:
    world.registry.script = lambda call: Unreachable("gone", arrived=False) if isinstance(call, Fetch) else None
    assert (await world.ask("DELETE", "/api/v1/services/orders/instances/[2001:db8::7]:80")).status == 204
    assert world.registry.calls[-1] == Deregister(KEY, "2001:db8::7", 80)


async def test_instance_asks_the_upstream_for_one_that_lists_hide(world: World) -> None:
    hidden = instance("10.0.0.3", enabled=False)
    world.registry.script = lambda call: hidden if isinstance(call, GetInstance) else world.shelf(call)
    answer = await world.ask("GET", "/api/v1/services/orders/instances/10.0.0.3:80")
    assert (answer.status, answer.json()["enabled"]) == (200, False)
    assert answer.headers["cache-status"] == "nacos-proxy; fwd=uri-miss"
    assert CACHEABLE not in answer.scope


async def test_services_do_not_wait_for_an_upstream_that_is_down(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    await world.ask("GET", "/api/v1/services/orders")
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    for _ in range(5):
        assert (await world.ask("GET", "/api/v1/services")).json()["services"] == ["orders"]
    assert len(world.registry.sent(ListServices)) == 3


async def test_services_are_listed_from_the_upstream_or_from_the_cache(world: World) -> None:
    world.shelf.services = {k: snapshot(A, service=k) for k in (key("a"), key("b"), key("c", "other"))}
    answer = await world.ask("GET", "/api/v1/services?size=1&page=2")
    ServicePage.model_validate(answer.json())
    assert (answer.json()["count"], answer.json()["services"], answer.json()["stale"]) == (2, ["b"], False)
    await world.ask("GET", "/api/v1/services/b")
    world.registry.script = lambda call: TooSlow("no answer")
    known = await world.ask("GET", "/api/v1/services")
    assert (known.json()["services"], known.json()["stale"]) == (["b"], True)
    assert is_problem(await world.ask("GET", "/api/v1/services?group=other"), 503)


# writes


async def test_register_shows_in_the_next_read(world: World) -> None:
    body = {"ip": "10.0.0.5", "port": 8080, "clusterName": "c1", "weight": 2, "metadata": {"a": "1"}, "enabled": True}
    answer = await world.ask("POST", "/api/v1/services/g@@orders/instances?namespace=n", json_body=body)
    assert answer.status == 201
    assert answer.headers["location"] == "/api/v1/services/g@@orders/instances/10.0.0.5:8080?namespace=n"
    assert answer.headers["nacos-proxy-answer"] == "upstream"
    (sent,) = world.registry.sent(Register)
    assert sent == Register(
        key("orders", "g", "n"), instance("10.0.0.5", 8080, cluster="c1", weight=2.0, metadata={"a": "1"})
    )
    shown = await world.ask("GET", "/api/v1/services/g@@orders?namespace=n")
    assert shown.json()["hosts"] == [answer.json()]


async def test_register_managed_is_refused_without_a_health_checker(world: World) -> None:
    body = {"ip": "10.0.0.5", "port": 8080, "managed": {"check": {"ttl": "30s"}}}
    answer = await world.ask("POST", "/api/v1/services/orders/instances", json_body=body)
    assert "not possible" in is_problem(answer, 400, "managed")
    assert world.registry.calls == []


class Keeper:
    """Takes notes of what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    async def register(
        self, service: ServiceKey, instance: ModelInstance, spec: CheckSpec, owner: str = ""
    ) -> Written[None]:
        self.told.append(("register", service, instance.address, spec.kind, spec.ttl, owner))
        return Written(None, "local")

    def heard(self, service: ServiceKey, ip: str, port: int) -> bool:
        self.told.append(("heard", ip, port))
        return True

    def forget(self, service: ServiceKey, ip: str, port: int) -> None:
        self.told.append(("forget", ip, port))


async def test_register_managed_calls_the_health_checker(world: World) -> None:
    keeper = Keeper()
    app = rest_app({RestApi: RestApi(world.agent, Reads(world.agent), keeper)})
    body = {"ip": "10.0.0.1", "port": 80, "managed": {"check": {"ttl": "30s"}}}
    made = await ask(app, "POST", INSTANCES, json_body=body)
    assert (made.status, made.headers["nacos-proxy-answer"]) == (201, "local")
    await ask(app, "PUT", f"{ONE}/beat", json_body={})
    await ask(app, "DELETE", ONE)
    assert keeper.told == [
        ("register", KEY, "10.0.0.1:80", "ttl", 30.0, "127.0.0.1"),
        ("heard", "10.0.0.1", 80),
        ("forget", "10.0.0.1", 80),
    ]
    bad = await ask(app, "POST", INSTANCES, json_body={**body, "managed": {"check": {}}})
    is_problem(bad, 400, "managed.check")


async def test_update_changes_only_the_given_fields(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", weight=3.0, metadata={"a": "1", "b": "2"}))
    answer = await world.ask(
        "PATCH", "/api/v1/services/orders/instances/10.0.0.1:80", json_body={"metadata": {"a": "9"}}
    )
    assert (answer.status, answer.json()["weight"], answer.json()["metadata"]) == (200, 3.0, {"a": "9", "b": "2"})
    assert answer.headers["nacos-proxy-answer"] == "upstream"
    (sent,) = world.registry.sent(Update)
    assert (sent.weight, sent.enabled, sent.partial) == (3.0, True, False)
    unknown = await world.ask("PATCH", "/api/v1/services/orders/instances/10.0.0.9:80", json_body={"weight": 1})
    assert is_problem(unknown, 404)


async def test_deregister_answers_204(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    answer = await world.ask("DELETE", "/api/v1/services/orders/instances/10.0.0.1:80?cluster=c1&ephemeral=false")
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers
    assert world.registry.sent(Deregister) == [Deregister(KEY, "10.0.0.1", 80, "c1", ephemeral=False)]


async def test_deregister_finds_out_by_itself_whether_the_instance_is_persistent(world: World) -> None:
    """A server reports success for the wrong kind, and removes nothing."""
    world.shelf.services[KEY] = snapshot(instance(ephemeral=False), instance("10.0.0.2"))
    for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        assert (await world.ask("DELETE", f"/api/v1/services/orders/instances/{ip}:80")).status == 204
    assert [call.ephemeral for call in world.registry.sent(Deregister)] == [False, True, True]
    await world.ask(
        "POST", "/api/v1/services/new/instances", json_body={"ip": "10.0.0.9", "port": 80, "ephemeral": False}
    )
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    await world.ask("DELETE", "/api/v1/services/new/instances/10.0.0.9:80")
    await world.ask("DELETE", "/api/v1/services/unread/instances/10.0.0.9:80")
    assert [call.ephemeral for call in world.registry.sent(Deregister)][3:] == [False, True]


async def test_light_beat_of_an_unknown_instance_is_404(world: World) -> None:
    answer = await world.ask("PUT", "/api/v1/services/orders/instances/10.0.0.1:80/beat")
    assert "register it" in is_problem(answer, 404)


async def test_full_beat_registers_an_unknown_instance(world: World) -> None:
    target = "/api/v1/services/orders/instances/10.0.0.1:80/beat?cluster=c1"
    answer = await world.ask("PUT", target, json_body={"weight": 2.0, "metadata": {"a": "1"}})
    assert answer.json() == {"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True}
    assert answer.headers["nacos-proxy-answer"] == "upstream"
    (sent,) = world.registry.sent(Beat)
    assert sent.full == instance("10.0.0.1", 80, cluster="c1", weight=2.0, metadata={"a": "1"})


async def test_beat_is_answered_locally_while_the_upstream_is_down(world: World) -> None:
    await world.ask("POST", "/api/v1/services/orders/instances", json_body={"ip": "10.0.0.1", "port": 80})
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    answer = await world.ask("PUT", "/api/v1/services/orders/instances/10.0.0.1:80/beat")
    assert (answer.status, answer.headers["nacos-proxy-answer"]) == (200, "local")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unreachable("refused", arrived=False), 502),
        (TooSlow("5 s"), 504),
        (Refused(Reason.WRONG_KIND, "Current service is persistent service", status=400, dialect="v1"), 409),
        (Refused(Reason.OTHER, "no", status=418), 418),
        (Refused(Reason.OTHER, "said in a 200", status=200), 502),
    ],
)
async def test_write_answers_the_error_of_the_upstream(world: World, error: Exception, status: int) -> None:
    world.registry.script = lambda call: error
    body = {"ip": "10.0.0.1", "port": 80}
    answer = await world.ask("POST", "/api/v1/services/orders/instances", json_body=body)
    assert is_problem(answer, status) == str(error)


# bad input


@pytest.mark.parametrize(
    ("method", "target", "body", "parameter"),
    [
        ("GET", "/api/v1/services/@bad", None, "service"),
        ("GET", "/api/v1/services/%E4%BD%A0%E5%A5%BD", None, "service"),
        ("GET", "/api/v1/services/@@x", None, "service"),
        ("GET", "/api/v1/services/g@@", None, "service"),
        ("GET", "/api/v1/services/orders?namespace=a/b", None, "namespace"),
        ("GET", "/api/v1/services/orders?group=a%20b", None, "group"),
        ("GET", "/api/v1/services/orders?clusters=a,b%20c", None, "clusters"),
        ("GET", "/api/v1/services/orders?healthy_only=maybe", None, "healthy_only"),
        ("GET", "/api/v1/services?page=0", None, "page"),
        ("GET", "/api/v1/services?size=1001", None, "size"),
        ("GET", f"{INSTANCES}/10.0.0.1", None, "address"),
        ("GET", f"{INSTANCES}/10.0.0.1:70000", None, "port"),
        ("GET", f"{INSTANCES}/:80", None, "ip"),
        ("GET", f"{ONE}?cluster=a%20b", None, "cluster"),
        ("DELETE", f"{ONE}?ephemeral=perhaps", None, "ephemeral"),
        ("POST", INSTANCES, {"port": 80}, "ip"),
        ("POST", INSTANCES, {"ip": "10.0.0.1"}, "port"),
        ("POST", INSTANCES, {"ip": "10 0 0 1", "port": 80}, "ip"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": "80"}, "port"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 65536}, "port"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": True}, "port"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "weight": 10001}, "weight"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "weight": "1"}, "weight"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "weigth": 1}, "weigth"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "metadata": {"a": 1}}, "metadata"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "metadata": {"a": "x" * 1024}}, "metadata"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "cluster": "a_b"}, "cluster"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "cluster": "a", "clusterName": "b"}, "cluster"),
        ("POST", INSTANCES, {"ip": "10.0.0.1", "port": 80, "ephemeral": "yes"}, "ephemeral"),
        ("POST", INSTANCES, [1], None),
        ("PATCH", ONE, {}, None),
        ("PATCH", ONE, {"healthy": False}, "healthy"),
        ("PATCH", ONE, {"metadata": {"a": None}}, "metadata"),
        ("PUT", f"{ONE}/beat", {"weight": -1}, "weight"),
    ],
)
async def test_write_names_bad_input_and_forwards_nothing(
    world: World, method: str, target: str, body: object, parameter: str | None
) -> None:
    is_problem(await world.ask(method, target, json_body=body), 400, parameter)
    assert world.registry.calls == []


async def test_body_must_be_declared_json_of_bounded_size(world: World) -> None:
    assert "not JSON" in is_problem(
        await world.ask("POST", INSTANCES, body=b"{", headers={"content-type": "application/json"}), 400
    )
    nan = b'{"ip":"10.0.0.1","port":80,"weight":NaN}'
    is_problem(await world.ask("POST", INSTANCES, body=nan, headers={"content-type": "application/json"}), 400)
    for media in ("text/plain", "application/x-www-form-urlencoded", ""):
        is_problem(await world.ask("POST", INSTANCES, body=b"{}", headers={"content-type": media}), 415)
    large = b" " * ((1 << 20) + 1)
    is_problem(await world.ask("POST", INSTANCES, body=large, headers={"content-type": "application/json"}), 413)
    is_problem(await world.ask("PUT", f"{ONE}/beat", body=b"{}", headers={"content-type": "text/plain"}), 415)
    assert world.registry.calls == []


async def test_unknown_paths_and_methods_are_problems_too(world: World) -> None:
    is_problem(await world.ask("GET", "/api/v1/nothing"), 404)
    refused = await world.ask("DELETE", "/api/v1/services/orders")
    is_problem(refused, 405)
    assert refused.headers["allow"] == "GET, HEAD"


async def test_head_is_a_get_without_its_body(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    got = await world.ask("GET", "/api/v1/services/orders")
    head = await world.ask("HEAD", "/api/v1/services/orders")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(got.body))


def test_json_reply_accepts_invalid_unicode() -> None:
    assert json_reply({"reason": "cannot be written: /tmp/\udcff"}).body == b'{"reason":"cannot be written: /tmp/?"}'


ZONES = [instance(f"10.0.0.{n}", 80, metadata={"zone": zone}) for n, zone in enumerate("aabc", 1)]


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("selector=zone=b", [3]),
        ("selector=zone%20in%20(a,c)", [1, 2, 4]),
        ("selector=zone!=a&prefer=zone=c", [4]),
        ("prefer=zone=b&prefer_min=0.26", [3, 1, 2, 4]),
        ("prefer=zone=b&prefer_min=0.25", [3]),
    ],
)
async def test_snapshot_selector_filters_and_prefer_orders_and_cuts(world: World, query: str, shown: list[int]) -> None:
    world.shelf.services[KEY] = snapshot(*ZONES)
    target = f"/api/v1/services/orders?{query}"
    answer = await world.ask("GET", target)
    assert [int(host["ip"][-1]) for host in answer.json()["hosts"]] == shown
    again = await world.ask("GET", target, headers={"if-none-match": answer.headers["etag"]})
    assert again.status == 304


async def test_instances_selector_filters_disabled_instances_too(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*ZONES, instance("10.0.0.5", 80, metadata={"zone": "b"}, enabled=False))
    answer = await world.ask("GET", "/api/v1/services/orders/instances?selector=zone=b")
    assert [host["ip"] for host in answer.json()["instances"]] == ["10.0.0.3", "10.0.0.5"]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("selector=zone=a%20b", "Param 'selector' is illegal, at character 8 ('b'): expected ',' or the end."),
        ("prefer=zone=(", "Param 'prefer' is illegal, at character 6 ('('): expected a value"),
        ("prefer=zone=a&prefer_min=2", "Param 'prefer_min' is illegal, it must be a number from 0 to 1."),
        ("prefer_min=0.5", "Param 'prefer_min' needs 'prefer'"),
    ],
)
async def test_snapshot_on_invalid_selector_points_at_the_place(world: World, query: str, detail: str) -> None:
    answer = await world.ask("GET", f"/api/v1/services/orders?{query}")
    assert answer.status == 400
    assert answer.json()["detail"].startswith(detail)

"""Picks and lists for load balancers and scrapers."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from nacos_proxy.frontends.rest.models import Instance, TargetGroup
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.wire.http import CACHEABLE
from tests.helpers.build import KEY, instance, key, snapshot
from tests.unit.frontends.conftest import World

A, B = instance("10.0.0.1", 80), instance("10.0.0.2", 80, weight=3.0, cluster="c2")
PICK = "/api/v1/services/orders/pick"


async def test_pick_answers_an_instance_or_its_address(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    answer = await world.ask("GET", PICK)
    Instance.model_validate(answer.json())
    assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-store", "accept")
    assert "age" in answer.headers and "etag" not in answer.headers
    for target, accept in ((f"{PICK}?format=text", ""), (PICK, "text/plain"), (PICK, "text/plain, */*;q=0.1")):
        text = await world.ask("GET", target, headers={"accept": accept})
        assert (text.body, text.headers["content-type"]) == (b"10.0.0.1:80", "text/plain;charset=UTF-8")
    for target, accept in ((f"{PICK}?format=json", "text/plain"), (PICK, "application/json, text/plain")):
        assert (await world.ask("GET", target, headers={"accept": accept})).json()["ip"] == "10.0.0.1"


async def test_pick_shows_an_ipv6_address_as_registered_or_as_text_in_brackets(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("[2001:DB8::7]", 80))
    assert (await world.ask("GET", f"{PICK}?format=text")).body == b"[2001:db8::7]:80"
    assert (await world.ask("GET", PICK)).json()["ip"] == "[2001:DB8::7]"


async def test_pick_weighted_honours_weights_and_random_does_not(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    for strategy, share in (("weighted", 3), ("random", 2)):
        world.rng.next = [n / 4 for n in range(4)]
        picks = [(await world.ask("GET", f"{PICK}?strategy={strategy}&format=text")).body for _ in range(4)]
        assert Counter(picks)[b"10.0.0.2:80"] == share


async def test_pick_round_robin_keeps_turns_per_service_and_view(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    world.shelf.services[key("stock")] = snapshot(A, B, service=key("stock"))
    turns = [
        (await world.ask("GET", f"/api/v1/services/{name}/pick?strategy=round_robin&format=text")).body[7:8]
        for name in ("orders", "orders", "stock", "orders")
    ]
    assert turns == [b"1", b"2", b"1", b"1"]


async def test_pick_round_robin_ignores_unknown_clusters(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    target = f"{PICK}?strategy=round_robin&format=text&clusters=DEFAULT,c2"
    turns = [(await world.ask("GET", f"{target}{more}")).body[7:8] for more in ("", ",x1", "&clusters=x2", ",c2")]
    assert turns == [b"1", b"2", b"1", b"2"]
    other = (await world.ask("GET", f"{PICK}?strategy=round_robin&format=text&clusters=c2,x3")).body
    assert other == b"10.0.0.2:80"


async def test_pick_of_ever_new_clusters_takes_bounded_memory(world: World) -> None:
    """4,000 of them took 400 MiB. What the fast path keeps of an answer is held here, too."""
    hosts = [
        instance(f"10.0.{n // 250}.{n % 250}", n, cluster=f"c{n % 40}", metadata={"zone": "a" * 50}) for n in range(500)
    ]
    world.shelf.services[KEY] = snapshot(*hosts)
    rng = random.Random(1)
    marks: list[Any] = []
    await world.ask("GET", PICK)
    tracemalloc.start()
    try:
        for number in range(1500):
            named = ",".join(f"c{c}" for c in range(40) if rng.random() < 0.7)
            answer = await world.ask("GET", f"{PICK}?clusters={named}&clusters=x{number}")
            marks.append(answer.scope[CACHEABLE])
            for _ in range(20):
                marks[-1].make_body()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"{held / 2**20:.1f} MiB")
    assert held < 32 << 20
    assert all(b'"ip":"10.0.' in mark.make_body() for mark in marks), "what is no longer kept is made anew"


async def test_pick_hash_keeps_a_key_on_its_instance(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B, instance("10.0.0.3"))
    target = f"{PICK}?strategy=hash&key=user-7&format=text"
    picks = {(await world.ask("GET", target)).body for _ in range(3)}
    assert len(picks) == 1
    missing = await world.ask("GET", f"{PICK}?strategy=hash")
    assert (missing.status, missing.json()["parameter"]) == (400, "key")


async def test_pick_of_no_instance_answers_503_with_the_reason(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", healthy=False))
    answer = await world.ask("GET", PICK)
    assert (answer.status, answer.json()["type"]) == (503, "urn:nacos-proxy:problem:nothing-to-pick")
    assert answer.json()["detail"] == "public/DEFAULT_GROUP@@orders: its only instance is not healthy"
    assert (await world.ask("GET", f"{PICK}?healthy_only=false")).status == 200
    assert (await world.ask("GET", f"{PICK}?healthy_only=false&clusters=x")).status == 503


async def test_pick_marks_a_response_that_chooses_anew_each_time(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    weighted = (await world.ask("GET", f"{PICK}?format=text")).scope[CACHEABLE]
    world.rng.next = [0.1, 0.9]
    assert (weighted.kind, weighted.make_body(), weighted.make_body()) == ("pick", b"10.0.0.1:80", b"10.0.0.2:80")
    turns = (await world.ask("GET", f"{PICK}?strategy=round_robin&format=text")).scope[CACHEABLE]
    assert (turns.make_body(), turns.make_body()) == (b"10.0.0.2:80", b"10.0.0.1:80")
    hashed = (await world.ask("GET", f"{PICK}?strategy=hash&key=a")).scope[CACHEABLE]
    assert hashed.make_body is None
    assert CACHEABLE not in (await world.ask("GET", PICK, headers={"cache-control": "no-cache"})).scope


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("strategy=best", "strategy"), ("format=xml", "format"), ("healthy_only=?", "healthy_only")],
)
async def test_lookup_names_bad_parameters(world: World, query: str, parameter: str) -> None:
    answer = await world.ask("GET", f"{PICK}?{query}")
    assert (answer.status, answer.json()["parameter"], world.registry.calls) == (400, parameter, [])


# lists


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


async def test_prometheus_can_ask_for_a_whole_group(world: World) -> None:
    names = [key("a", "g"), key("b", "g"), key("c")]
    world.shelf.services = {k: snapshot(A, service=k) for k in names}
    answer = await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=g")
    assert [group["labels"]["__meta_nacos_service"] for group in answer.json()] == ["a", "b"]
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    known = await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=g")
    assert len(known.json()) == 2
    assert (await world.ask("GET", "/api/v1/sd/prometheus?service=*&group=none")).status == 503


async def test_prometheus_fails_if_one_service_is_unknown(world: World) -> None:
    """Prometheus keeps its last list on an error; half a list would drop the other half's targets."""
    world.shelf.services[KEY] = snapshot(A)
    await world.ask("GET", "/api/v1/services/orders")
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert (await world.ask("GET", "/api/v1/sd/prometheus?service=orders&service=stock")).status == 503


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


async def test_pick_chooses_among_selected_or_preferred_instances_only(world: World) -> None:
    hosts = [instance(f"10.0.0.{n}", 80, metadata={"zone": zone}) for n, zone in enumerate("abb", 1)]
    world.shelf.services[KEY] = snapshot(*hosts)
    for query in ("selector=zone=a", "prefer=zone=a"):
        picks = {(await world.ask("GET", f"{PICK}?format=text&strategy=round_robin&{query}")).body for _ in range(3)}
        assert picks == {b"10.0.0.1:80"}
    nothing = await world.ask("GET", f"{PICK}?selector=zone=c")
    assert nothing.status == 503
    assert "none of 3 instances is matched by the selector zone=c" in nothing.json()["detail"]
    targets = (await world.ask("GET", "/api/v1/sd/prometheus?service=orders&selector=zone=b")).json()
    assert [group["targets"] for group in targets] == [["10.0.0.2:80"], ["10.0.0.3:80"]]

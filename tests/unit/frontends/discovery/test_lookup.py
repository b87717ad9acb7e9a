"""One instance to send a request to."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from nacos_proxy.frontends.rest.models import Instance, Picked
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
        for number in range(500):
            named = ",".join(f"c{c}" for c in range(40) if rng.random() < 0.7)
            answer = await world.ask("GET", f"{PICK}?clusters={named}&clusters=x{number}")
            marks.append(answer.scope[CACHEABLE])
            for _ in range(20):
                marks[-1].make_body()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"{held / 2**20:.1f} MiB")
    assert held < 6 << 20  # without the bound: 10 MiB
    assert all(b'"ip":"10.0.' in mark.make_body() for mark in marks), "what is no longer kept is made anew"


async def test_pick_hash_keeps_a_key_on_its_instance(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B, instance("10.0.0.3"))
    target = f"{PICK}?strategy=hash&key=user-7&format=text"
    picks = {(await world.ask("GET", target)).body for _ in range(3)}
    assert len(picks) == 1
    missing = await world.ask("GET", f"{PICK}?strategy=hash")
    assert (missing.status, missing.json()["parameter"]) == (400, "key")


async def test_pick_answers_a_list_whenever_n_is_given(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    for n, number in ((1, 1), (2, 2), (100, 2)):
        for strategy in ("weighted", "round_robin", "random", "least_recent", "hash&key=a"):
            answer = await world.ask("GET", f"{PICK}?n={n}&strategy={strategy}")
            body = Picked.model_validate(answer.json())
            assert (body.name, body.count) == ("DEFAULT_GROUP@@orders", number) == (body.name, len(body.instances))
            assert len({shown.ip for shown in body.instances}) == number
    text = await world.ask("GET", f"{PICK}?n=2&strategy=round_robin&format=text")
    assert sorted(text.body.splitlines(keepends=True)) == [b"10.0.0.1:80\n", b"10.0.0.2:80\n"]
    for wrong in ("0", "101", "x", "-1"):
        refused = await world.ask("GET", f"{PICK}?n={wrong}")
        assert (refused.status, refused.json()["parameter"]) == (400, "n")
        assert "from 1 to 100" in refused.json()["detail"]


async def test_pick_least_recent_takes_the_one_picked_longest_ago(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A, B)
    target = f"{PICK}?strategy=least_recent&format=text"
    marked = (await world.ask("GET", target)).scope[CACHEABLE]
    assert [marked.make_body()[7:8] for _ in range(3)] == [b"2", b"1", b"2"]
    assert (await world.ask("GET", target)).body[7:8] == b"1"


async def test_pick_split_sends_a_share_to_a_canary_also_from_the_fast_path(world: World) -> None:
    canary = instance("10.0.0.9", 80, metadata={"version": "2"})
    world.shelf.services[KEY] = snapshot(A, canary)
    marked = (await world.ask("GET", f"{PICK}?split=version=2:10&format=text")).scope[CACHEABLE]
    world.rng.next = [0.09, 0.0, 0.11, 0.0]
    assert (marked.make_body(), marked.make_body()) == (b"10.0.0.9:80", b"10.0.0.1:80")
    all_of_them = await world.ask("GET", f"{PICK}?split=version=2:100&n=2&format=text")
    assert all_of_them.body == b"10.0.0.9:80\n10.0.0.1:80\n"
    world.shelf.services[KEY] = snapshot(A)
    assert (await world.ask("GET", f"{PICK}?split=version=3:100&format=text")).body == b"10.0.0.1:80"


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ("version=2", "it must be SELECTOR:PERCENT, such as version=2:10."),
        (":10", "it must be SELECTOR:PERCENT, such as version=2:10."),
        ("version=2:x", "at character 11 ('x'): expected a number from 0 to 100."),
        ("version=2:101", "at character 11 ('101'): expected a number from 0 to 100."),
        ("a b:10", "at character 3 ('b'): expected '=', '!=', 'in', 'notin', '<', '>' or ','."),
    ],
)
async def test_pick_names_the_place_of_an_error_in_split(world: World, split: str, text: str) -> None:
    world.shelf.services[KEY] = snapshot(A)
    answer = await world.ask("GET", f"{PICK}?split={split.replace(' ', '%20')}")
    problem = answer.json()
    assert (answer.status, problem["parameter"], problem["detail"]) == (
        400,
        "split",
        f"Param 'split' is illegal, {text}",
    )


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
    assert (weighted.make_body(), weighted.make_body()) == (b"10.0.0.1:80", b"10.0.0.2:80")
    turns = (await world.ask("GET", f"{PICK}?strategy=round_robin&format=text")).scope[CACHEABLE]
    assert (turns.make_body(), turns.make_body()) == (b"10.0.0.2:80", b"10.0.0.1:80")
    several = (await world.ask("GET", f"{PICK}?strategy=round_robin&n=3&format=text")).scope[CACHEABLE]
    assert several.make_body() == b"10.0.0.1:80\n10.0.0.2:80\n"
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


async def test_pick_chooses_among_selected_or_preferred_instances_only(world: World) -> None:
    hosts = [instance(f"10.0.0.{n}", 80, metadata={"zone": zone}) for n, zone in enumerate("abb", 1)]
    world.shelf.services[KEY] = snapshot(*hosts)
    for query in ("selector=zone=a", "prefer=zone=a"):
        picks = {(await world.ask("GET", f"{PICK}?format=text&strategy=round_robin&{query}")).body for _ in range(3)}
        assert picks == {b"10.0.0.1:80"}
    nothing = await world.ask("GET", f"{PICK}?selector=zone=c")
    assert nothing.status == 503
    assert "none of 3 instances is matched by the selector zone=c" in nothing.json()["detail"]

"""Long polls of one service: answered on a change, or when reads are refused."""

from __future__ import annotations

from nacos_proxy.frontends.rest.models import Snapshot
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from tests.helpers.build import KEY, instance, snapshot
from tests.unit.frontends.conftest import World, ips, register

A = instance()


async def test_watch_answers_at_once_if_the_index_differs(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    for index in ("", "?index=", "?index=abc"):
        answer = await world.ask("GET", f"/api/v1/services/orders/watch{index}")
        Snapshot.model_validate(answer.json())
        assert answer.headers["nacos-proxy-index"] == answer.json()["revision"]
        assert answer.headers["cache-control"] == "no-store"


async def test_watch_waits_for_the_first_change_in_its_view(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    index = (await world.ask("GET", "/api/v1/services/orders")).json()["revision"]
    poll = await world.start(f"/api/v1/services/orders/watch?index={index}&clusters=c2")
    await register(world, "10.0.0.8")
    assert not poll.complete
    await register(world, "10.0.0.9", cluster="c2")
    await poll.ended()
    assert ips(poll.json()["hosts"]) == ["10.0.0.9"]
    assert poll.headers["nacos-proxy-index"] not in ("", index)
    assert world.events.quota.clients == {} and world.agent.catalog.hub.readers == 0


async def test_watch_answers_unchanged_after_its_wait(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    index = (await world.ask("GET", "/api/v1/services/orders")).json()["revision"]
    poll = await world.start(f"/api/v1/services/orders/watch?index={index}&wait=20s")
    await world.clock.advance(19)
    assert not poll.complete
    await world.clock.advance(1)
    await poll.ended()
    assert (poll.status, poll.headers["nacos-proxy-index"]) == (200, index)


async def test_watch_forgets_a_client_that_disconnects(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    index = (await world.ask("GET", "/api/v1/services/orders")).json()["revision"]
    poll = await world.start(f"/api/v1/services/orders/watch?index={index}")
    await poll.leave()
    assert repr(world.events) == "<EventsApi 0 readers, 0 polls, 0 clients>"


async def test_watch_answers_503_for_an_unknown_service_without_an_upstream(world: World) -> None:
    world.registry.script = lambda call: Unreachable("refused", arrived=False)
    answer = await world.ask("GET", "/api/v1/services/orders/watch")
    assert (answer.status, world.events.quota.clients) == (503, {})


async def test_watch_answers_with_a_refusal_that_arrives_while_it_waits(world: World) -> None:
    await register(world, "10.0.0.1")
    refusal = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)
    polls = []
    for name in ("orders", "carts"):
        first = await world.ask("GET", f"/api/v1/services/{name}/watch")
        target = f"/api/v1/services/{name}/watch?wait=30s&index={first.headers['nacos-proxy-index']}"
        polls.append(await world.start(target))
    assert KEY.name == "orders" and len(world.events.polls) == 2
    world.events.refuse(refusal, KEY)
    await polls[0].ended()
    assert (polls[0].status, "10.0.0.1" in polls[0].body.decode()) == (403, False)
    assert not polls[1].complete
    world.events.refuse(refusal)
    await polls[1].ended()
    assert (polls[1].status, len(world.events.polls)) == (403, 0)

"""Long polls: one service, answered when it has changed, or may not be shown any longer."""

from __future__ import annotations

from nacos_proxy.frontends.rest.models import Snapshot
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from tests.helpers.build import KEY, instance, snapshot
from tests.unit.frontends.conftest import World, ips, register

A = instance()


async def test_a_long_poll_with_another_index_answers_at_once(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    for index in ("", "?index=", "?index=abc"):
        answer = await world.ask("GET", f"/api/v1/services/orders/watch{index}")
        Snapshot.model_validate(answer.json())
        assert answer.headers["nacos-proxy-index"] == answer.json()["revision"]
        assert answer.headers["cache-control"] == "no-store"


async def test_a_long_poll_waits_for_the_first_change_in_its_view(world: World) -> None:
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


async def test_a_long_poll_ends_unchanged_when_its_time_is_over(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    index = (await world.ask("GET", "/api/v1/services/orders")).json()["revision"]
    poll = await world.start(f"/api/v1/services/orders/watch?index={index}&wait=20s")
    await world.clock.advance(19)
    assert not poll.complete
    await world.clock.advance(1)
    await poll.ended()
    assert (poll.status, poll.headers["nacos-proxy-index"]) == (200, index)


async def test_a_long_poll_whose_client_disconnects_is_forgotten(world: World) -> None:
    world.shelf.services[KEY] = snapshot(A)
    index = (await world.ask("GET", "/api/v1/services/orders")).json()["revision"]
    poll = await world.start(f"/api/v1/services/orders/watch?index={index}")
    await poll.leave()
    assert repr(world.events) == "<EventsApi 0 readers, 0 polls, 0 clients>"


async def test_a_long_poll_without_a_snapshot_and_upstream_is_503(world: World) -> None:
    world.registry.script = lambda call: Unreachable("refused", arrived=False)
    answer = await world.ask("GET", "/api/v1/services/orders/watch")
    assert (answer.status, world.events.quota.clients) == (503, {})


async def test_a_long_poll_is_answered_with_a_refusal_that_comes_while_it_waits(world: World) -> None:
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


async def test_a_long_poll_waits_for_a_change_that_its_selector_or_preference_shows(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", metadata={"zone": "a"}))
    index = (await world.ask("GET", "/api/v1/services/orders")).json()["revision"]
    polls = [
        await world.start(f"/api/v1/services/orders/watch?index={index}&{query}")
        for query in ("selector=zone=b", "prefer=zone=a")
    ]
    await register(world, "10.0.0.8", metadata={"zone": "c"})
    assert not any(poll.complete for poll in polls)
    await register(world, "10.0.0.9", metadata={"zone": "b"})
    await polls[0].ended()
    assert ips(polls[0].json()["hosts"]) == ["10.0.0.9"]
    assert not polls[1].complete
    await register(world, "10.0.0.2", metadata={"zone": "a"})
    await polls[1].ended()
    assert ips(polls[1].json()["hosts"]) == ["10.0.0.1", "10.0.0.2"]

from __future__ import annotations

import dns.edns
import dns.flags
import pytest

from nacos_proxy.frontends.dns.responder import VARIANTS, ResponderPolicy
from nacos_proxy.model.calls import Fetch, Register
from nacos_proxy.model.errors import Unreachable
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import settle
from tests.helpers.world import Held
from tests.unit.frontends.dns.conftest import World, make_world

HOSTS = [instance(f"10.0.0.{n}") for n in range(1, 10)]


async def test_responder_prepares_answers_in_several_orders(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*HOSTS)
    packet = world.ask()
    await settle()
    prepared = world.table.get(packet[2:])
    assert prepared is not None
    assert len(prepared.variants) == VARIANTS
    sent = [dns.message.from_wire(packet[:2] + prepared.next()).answer[0] for _ in range(VARIANTS)]
    assert len({str(rrset[0]) for rrset in sent}) == VARIANTS


async def test_responder_forgets_prepared_answers_when_the_service_changes(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*HOSTS)
    packet, missing = world.ask(), world.ask("nothing.nacos.")
    await settle()
    await world.agent.write(Register(KEY, instance("10.0.0.99")))
    assert world.table.get(packet[2:]) is None
    assert world.table.get(missing[2:]) is not None
    assert "10.0.0.99" in await world.texts()


async def test_responder_keeps_answers_about_known_services_apart(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*HOSTS)
    packet = world.ask()
    await settle()
    for n in range(3000):
        world.ask(f"{n}.example.com.")
        world.ask(f"{n:08x}.addr.nacos.")
    assert world.table.known.get(packet[2:]) is not None
    assert len(world.table.known) == 1


async def test_responder_does_not_prepare_queries_with_options(world: World) -> None:
    packet = world.ask("nacos.", "SOA", use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")])
    assert world.answers
    assert world.table.get(packet[2:]) is None


async def test_responder_answers_known_services_while_another_name_waits(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*HOSTS)
    await world.answer()
    held = Held(world.shelf, Fetch)
    world.registry.script = held
    world.ask("slow.nacos.")
    await settle()
    assert world.responder.waiting.total == 1
    assert len(await world.texts(rdtype="TXT")) == 1 + len(HOSTS)
    before = len(world.answers)
    await world.clock.advance(2.5)
    assert world.answers[before].rcode().name == "SERVFAIL"
    assert world.responder.waiting.total == 0
    await held.release()


async def test_responder_bounds_what_one_client_may_wait_for() -> None:
    world = make_world(responder=ResponderPolicy(max_waiting=4))
    held = Held(world.shelf, Fetch)
    world.registry.script = held
    for n in range(10):
        world.ask(f"a{n}.nacos.")
    assert [answer.rcode().name for answer in world.answers] == ["SERVFAIL"] * 8
    assert world.responder.counts.dropped["budget"] == 8
    world.ask("b.nacos.", client="127.0.0.2")
    assert world.responder.waiting.total == 3
    await settle()
    await held.release()
    await settle()
    assert world.responder.waiting.total == 0
    await world.agent.close()


async def test_responder_bounds_what_invented_names_cost_the_upstream() -> None:
    world = make_world(responder=ResponderPolicy(reads_per_client=2, burst=2))
    world.shelf.services[KEY] = snapshot(*HOSTS)
    await world.answer()
    for n in range(20):
        world.ask(f"invented{n}.nacos.")
        await settle()
    assert len(world.registry.sent(Fetch)) == 4
    await world.clock.advance(3600)
    assert len(await world.texts()) == 1 + len(HOSTS)  # a known service, stale
    await world.agent.close()


async def test_responder_answers_stale_when_there_is_no_room_to_wait() -> None:
    world = make_world(responder=ResponderPolicy(max_waiting=0))
    world.shelf.services[KEY] = snapshot(*HOSTS)
    await world.agent.read(KEY)
    world.clock.jump(60)
    assert len(await world.texts()) == 1 + len(HOSTS)
    await world.agent.close()


async def test_responder_truncates_to_what_the_client_takes(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*(instance(f"10.0.0.{n}") for n in range(100)))
    small = await world.answer()
    assert small.flags & dns.flags.TC
    assert len(small.answer[0]) == 30
    large = await world.answer(use_edns=0, payload=4096)
    assert not large.flags & dns.flags.TC
    assert len(large.answer[0]) == 100
    assert world.responder.counts.truncated == 1


@pytest.mark.parametrize("packet", [b"", b"\0" * 5, b"\0\1\x80\0" + bytes(8)])
def test_responder_never_answers_what_is_no_query(world: World, packet: bytes) -> None:
    assert not world.responder.answer(packet, "127.0.0.1", world.answers.append)
    assert world.answers == []
    assert world.responder.counts.dropped["no query"] == 1


async def test_responder_answers_servfail_after_a_failure_of_its_own(world: World) -> None:
    def broken(call: object) -> object:
        raise RuntimeError("a bug")

    world.registry.script = broken
    assert await world.texts() == ["SERVFAIL"]
    assert world.responder.waiting.total == 0
    world.registry.script = lambda call: Unreachable("gone", arrived=False)
    assert await world.texts() == ["SERVFAIL"]


async def test_reads_count_what_is_answered_without_the_agent_and_durations_what_waits(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance())
    counts = world.responder.counts
    await world.answer()
    assert (counts.reads, world.agent.counts.reads) == ({}, {"miss": 1})
    assert {code: waited.count for code, waited in counts.waited.items()} == {"NOERROR": 1}
    await world.answer(rdtype="TXT")
    assert (counts.reads, world.agent.counts.reads) == ({"hit": 1}, {"miss": 1})
    await world.answer("elsewhere.example.com.")
    assert counts.reads == {"hit": 1, "": 1}, "that is no read of a service"
    world.agent.registry.script = lambda call: Unreachable("gone", arrived=False)
    await world.clock.advance(60.0)
    packet = world.ask(rdtype="SRV")
    await settle()
    assert (counts.reads["hit"], world.agent.counts.reads) == (1, {"miss": 1, "stale": 1})
    prepared = world.table.get(packet[2:])
    assert prepared is not None and prepared.outcome == "stale"

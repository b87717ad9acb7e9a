from __future__ import annotations

import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.frontends.dns.finder import MAX_RECORDS, MIN_INDEX, FinderPolicy
from nacos_proxy.model.calls import Deregister, Fetch, Register
from nacos_proxy.model.errors import Reason, Refused, Unreachable
from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.views import Preference
from nacos_proxy.wire.dns.names import OfService
from tests.helpers.build import KEY, instance, key, snapshot
from tests.unit.frontends.dns.conftest import ZONE, World, make_world

AWAY = Unreachable("connection refused", arrived=False)


def fetched(world: World) -> list[str]:
    return [call.service.name for call in world.registry.sent(Fetch)]


async def test_finder_shows_usable_instances_only(world: World) -> None:
    hosts = [
        instance("10.0.0.1"),
        instance("10.0.0.2", healthy=False),
        instance("10.0.0.3", enabled=False),
        instance("10.0.0.4", weight=0.0),
        instance("::1"),
    ]
    world.shelf.services[KEY] = snapshot(*hosts)
    assert await world.texts() == ["NOERROR", "10.0.0.1"]
    assert await world.texts(rdtype="AAAA") == ["NOERROR", "::1"]
    assert await world.texts(rdtype="ANY") == ["NOERROR", "10.0.0.1"]
    assert await world.texts(rdtype="TXT") == ["NOERROR", '"instance=10.0.0.1:80"', '"instance=[::1]:80"']
    assert await world.texts(rdtype="MX") == ["NOERROR"]
    assert fetched(world) == ["orders"]


async def test_finder_shows_protected_instances(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1", healthy=False), threshold=0.5)
    assert await world.texts() == ["NOERROR", "10.0.0.1"]


async def test_finder_answers_near_instances_first() -> None:
    world = make_world(FinderPolicy((ZONE,), prefer=Preference(Selector.parse("zone=a"))))
    near, far = instance("10.0.0.1", metadata={"zone": "a"}), instance("10.0.0.2", metadata={"zone": "b"})
    world.shelf.services[KEY] = snapshot(near, far)
    assert await world.texts() == ["NOERROR", "10.0.0.1"]
    srv = await world.texts("_orders._tcp.nacos.", "SRV")
    assert srv[1:] == ["1 6400 80 0a000001.addr.nacos.", "2 6400 80 0a000002.addr.nacos."]
    assert await world.texts("_orders._zone=b.nacos.") == ["NOERROR", "10.0.0.2"]


async def test_finder_tells_what_does_not_exist_from_what_is_empty(world: World) -> None:
    assert await world.texts() == ["NXDOMAIN"]
    assert await world.texts("public.nacos.") == ["NOERROR"]
    await world.agent.write(Register(KEY, instance()))
    assert await world.texts() == ["NOERROR", "10.0.0.1"]
    await world.agent.write(Deregister(KEY, "10.0.0.1", 80))
    assert await world.texts() == ["NOERROR"]


async def test_finder_finds_the_first_reading_that_exists(world: World) -> None:
    pay = key("orders", "MY_PAY", "dev")
    world.shelf.services[pay] = snapshot(instance(), service=pay)
    assert await world.texts("Orders.my-pay.dev.nacos.") == ["NXDOMAIN"]  # the case is not known yet
    assert await world.texts("orders.MY-PAY.dev.nacos.") == ["NOERROR", "10.0.0.1"]
    assert await world.texts("ORDERS.my-pay.DEV.nacos.") == ["NOERROR", "10.0.0.1"]


async def test_finder_answers_servfail_while_nothing_is_known(world: World) -> None:
    world.registry.script = lambda call: AWAY
    assert await world.texts() == ["SERVFAIL"]
    world.registry.script = world.shelf
    await world.clock.advance(60)
    assert await world.texts() == ["NXDOMAIN"]
    world.registry.script = lambda call: AWAY
    await world.clock.advance(60)
    await world.answer()  # stale: it may exist by now
    assert await world.texts() == ["SERVFAIL"]


async def test_finder_answers_the_last_known_state_while_the_upstream_is_away(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance())
    await world.answer()
    world.registry.script = lambda call: AWAY
    await world.clock.advance(3600)
    answer = await world.answer()
    assert [rrset.ttl for rrset in answer.answer] == [1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused(Reason.NO_RIGHT, "no", status=403), "REFUSED"),
        (Refused(Reason.SERVICE_NOT_FOUND, "no", status=404), "NXDOMAIN"),
        (Refused(Reason.OTHER, "no", status=400), "SERVFAIL"),
    ],
)
async def test_finder_answers_what_a_refusal_means(world: World, error: Refused, code: str) -> None:
    world.registry.script = lambda call: error
    assert await world.texts() == [code]


async def test_finder_answers_addresses_zones_and_what_is_outside(world: World) -> None:
    assert await world.texts("0a000001.addr.nacos.") == ["NOERROR", "10.0.0.1"]
    assert await world.texts("0a000001.addr.nacos.", "AAAA") == ["NOERROR"]
    assert await world.texts("nacos.", "NS") == ["NOERROR", "ns.nacos."]
    assert await world.texts("addr.nacos.") == ["NOERROR"]
    assert await world.texts("zz.addr.nacos.") == ["NXDOMAIN"]
    assert await world.texts("example.com.") == ["REFUSED"]
    assert fetched(world) == []


async def test_finder_reverse_lookup_shows_known_instances_only(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("[2001:DB8::7]"), instance("10.0.0.1"))
    assert await world.texts("1.0.0.10.in-addr.arpa.", "PTR") == ["REFUSED"]
    await world.answer()
    assert await world.texts("1.0.0.10.in-addr.arpa.", "PTR") == ["NOERROR", "orders.DEFAULT-GROUP.public.nacos."]
    assert await world.texts("1.0.0.10.in-addr.arpa.", "A") == ["REFUSED"]
    nibbles = "7" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa."
    assert await world.texts(nibbles, "PTR") == ["NOERROR", "orders.DEFAULT-GROUP.public.nacos."]


async def test_finder_refuses_names_that_clash_and_logs_them_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("orders", "Orders"):
        world.shelf.services[key(name)] = snapshot(instance(), service=key(name))
        await world.agent.read(key(name))
    assert await world.texts() == ["REFUSED"]
    assert await world.texts("ORDERS.nacos.") == ["REFUSED"]
    assert caplog.text.count("cannot tell these services apart") == 1


async def test_finder_restored_learns_the_names_in_the_cache(world: World) -> None:
    loud = key("Com.Acme.Orders")
    world.agent.catalog.cache.restore(snapshot(instance(), service=loud), 5.0, world.clock.now())
    world.responder.restored()
    world.shelf.services[loud] = snapshot(instance(), service=loud)
    assert await world.texts("com.acme.orders.nacos.") == ["NOERROR", "10.0.0.1"]


async def test_finder_makes_the_records_of_a_snapshot_once(world: World) -> None:
    world.shelf.services[KEY] = snapshot(*(instance(f"10.0.0.{n}") for n in range(9)))
    await world.agent.read(KEY)

    def found(name: str) -> object:
        answer = world.finder.at_once(world.finder.ask(dns.name.from_text(name)), dns.rdatatype.SRV)
        assert answer is not None
        return answer.tiers

    first = found("_orders._tcp.nacos.")
    assert found("_ORDERS._tcp.NACOS.") is first
    assert found("_orders._canary.nacos.") == ()
    await world.agent.write(Register(KEY, instance("10.0.0.99")))
    assert found("_orders._tcp.nacos.") is not first


async def test_finder_forgets_names_that_the_cache_has_forgotten(world: World) -> None:
    for n in range(MIN_INDEX + 1):
        world.finder.changed(key(f"s{n}"))
    world.agent.catalog.cache.restore(snapshot(instance()), 5.0, world.clock.now())
    assert world.finder.unknown(world.finder.ask(dns.name.from_text("s1.nacos."))) == 1
    world.finder.changed(key("another"))
    asked = world.finder.ask(dns.name.from_text("S1.nacos.")).asked
    assert isinstance(asked, OfService)
    assert asked.services == (key("S1"), key("s1"))


async def test_finder_bounds_the_records_of_one_answer(world: World) -> None:
    hosts = [instance(f"10.0.{n // 250}.{n % 250}") for n in range(MAX_RECORDS + 500)]
    world.shelf.services[KEY] = snapshot(*hosts)
    assert len(await world.texts(tcp=True)) == 1 + MAX_RECORDS


@given(age=st.floats(0, 50), ttl=st.integers(0, 60))
async def test_finder_ttl_and_repetition_end_with_the_freshness(age: float, ttl: int) -> None:
    world = make_world(FinderPolicy((ZONE,), ttl=ttl))
    world.shelf.services[KEY] = snapshot(instance())
    await world.agent.read(KEY)
    world.clock.jump(age)
    found = world.finder.at_once(world.finder.ask(dns.name.from_text("orders.nacos.")), dns.rdatatype.A)
    if found is not None:
        assert found.answer.ttl <= min(ttl, max(1, 10.0 - age))
        assert found.answer.ttl + found.valid_for <= max(10.0 - age, 1.0 + min(ttl, 10))
    await world.agent.close()

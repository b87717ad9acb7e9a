from __future__ import annotations

import dns.exception
import dns.name
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.dns.names import (
    MAX_SPELLINGS,
    Apex,
    Asked,
    Between,
    Names,
    Nothing,
    OfAddress,
    OfService,
    Outside,
    address_labels,
    folded,
    parse_aliases,
    parse_zone,
    service_name,
)
from tests.helpers.build import key

ZONE = parse_zone("nacos")
UUID = "6c1fd2d0-5a1b-4a0e-9d7f-1b2c3d4e5f60"


def names(*known: ServiceKey, aliases: dict[str, ServiceKey] | None = None) -> Names:
    made = Names((ZONE, parse_zone("nacos.svc.cluster.local")), aliases=aliases or {})
    for service in known:
        made.index.add(service)
    return made


def asked(name: str, *known: ServiceKey, aliases: dict[str, ServiceKey] | None = None) -> Asked:
    return names(*known, aliases=aliases).read(dns.name.from_text(name)).asked


def services(name: str, *known: ServiceKey) -> tuple[ServiceKey, ...]:
    found = asked(name, *known)
    assert isinstance(found, OfService)
    return found.services


PAY, LOUD = key("orders", "PAY_GROUP", "dev"), key("Com.Acme.Orders")


@pytest.mark.parametrize(
    "name",
    ["orders.nacos.", "orders.DEFAULT-GROUP.nacos.", "orders.public.nacos.", "orders.default-group.PUBLIC.nacos."],
)
def test_names_read_finds_a_service_by_each_form(name: str) -> None:
    assert services(name) == (key(),)
    assert services(name, key()) == (key(),)


@pytest.mark.parametrize("name", ["_orders._tcp.nacos.", "_orders._udp.DEFAULT-GROUP.public.nacos."])
def test_names_read_finds_a_service_by_rfc_2782(name: str) -> None:
    assert services(name) == (key(),)


def test_names_read_compares_known_services_without_case_and_groups_without_underscores() -> None:
    assert services("ORDERS.pay-group.Dev.NACOS.", PAY) == (PAY,)
    assert services("com.acme.orders.nacos.", LOUD) == (LOUD,)
    assert services("_com.acme.orders._tcp.nacos.", LOUD) == (LOUD,)


def test_names_read_offers_the_readings_of_an_unknown_group_and_namespace() -> None:
    assert services("orders.PAY.dev.nacos.") == (
        key("orders.PAY.dev"),
        key("orders", "PAY", "dev"),
        key("orders.PAY", "dev"),
        key("orders.pay.dev"),
        key("orders.pay", "dev"),
    )
    assert key("orders", "MY_GROUP") in services("orders.MY-GROUP.public.nacos.")
    assert key("orders", "PAY_GROUP", UUID) in services(f"orders.PAY-GROUP.{UUID}.nacos.")


def test_names_read_takes_the_labels_of_rfc_2782_as_they_are() -> None:
    assert services("_orders._tcp.PAY.dev.nacos.") == (key("orders", "PAY", "dev"),)
    assert asked("_orders._tcp.a.b.c.nacos.") == Nothing()


def test_names_read_takes_another_tag_as_a_selector() -> None:
    found = asked("_orders._zone=a,canary.nacos.")
    assert found == OfService((key(),), Selector.parse("zone=a,canary"))
    assert asked("_orders._zone=(.nacos.") == Nothing()


def test_names_read_of_services_that_differ_only_in_case_clashes() -> None:
    found = asked("orders.nacos.", key("orders"), key("Orders"))
    assert isinstance(found, OfService)
    assert found.clashing
    aliased = asked("big.nacos.", key("orders"), key("Orders"), aliases={"Big": key("Orders")})
    assert aliased == OfService((key("Orders"),))


def test_names_read_finds_aliases_in_any_case() -> None:
    users = key("providers:com.acme.Users:1.0:")
    assert asked("USERS.api.nacos.", aliases={"users.api": users}) == OfService((users,))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nacos.", Apex()),
        ("NACOS.svc.cluster.local.", Apex()),
        ("addr.nacos.", Between()),
        ("view.nacos.", Between()),
        ("_tcp.nacos.", Between()),
        ("near.view.nacos.", Nothing()),
        ("_orders.nacos.", Nothing()),
        ("__tcp._tcp.nacos.", OfService((key("_tcp"),))),
        ("zz.addr.nacos.", Nothing()),
        ("x.7f000001.addr.nacos.", Nothing()),
        (r"or\000ders.nacos.", Nothing()),
        (r"a\@\@b.nacos.", Nothing()),
        ("example.com.", Outside()),
        ("svc.cluster.local.", Outside()),
        ("10.in-addr.arpa.", Outside()),
        (".", Outside()),
    ],
)
def test_names_read_of_what_is_no_service(name: str, found: Asked) -> None:
    assert asked(name) == found


@pytest.mark.parametrize("name", ["public.nacos.", "DEFAULT-GROUP.nacos.", "default-group.public.nacos."])
def test_names_read_says_what_stands_between_a_service_and_the_zone(name: str) -> None:
    found = asked(name)
    assert isinstance(found, OfService)
    assert found.between


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::7", "0.0.0.0"])
def test_names_read_address_labels_and_reverse_names_are_inverse(address: str) -> None:
    found = asked(dns.reversename.from_address(address).to_text())
    assert isinstance(found, OfAddress)
    assert (str(found.address), found.reverse) == (address, True)
    name, _ = dns.name.from_wire(address_labels(found.address) + b"\5nAcos\0", 0)
    assert asked(name.to_text()) == OfAddress(found.address)


def test_names_read_answers_in_the_zone_that_was_asked() -> None:
    assert names().read(dns.name.from_text("orders.NaCos.")).zone.to_text() == "nacos."
    question = names().read(dns.name.from_text("orders.nacos.svc.cluster.local."))
    assert question.zone.to_text() == "nacos.svc.cluster.local."


def test_names_read_takes_the_longest_of_its_zones() -> None:
    inner, outer = parse_zone("svc.nacos"), ZONE
    found = Names((outer, inner)).read(dns.name.from_text("orders.svc.nacos."))
    assert (found.zone, found.asked) == (inner, OfService((key(),)))


LABELS = st.text(st.sampled_from("abAB-_12.:"), min_size=1, max_size=8)


@given(st.builds(ServiceKey, LABELS, LABELS, LABELS))
def test_names_read_finds_a_known_service_by_its_full_name(service: ServiceKey) -> None:
    name = service_name(service, ZONE)
    if name is None or "." in service.group + service.namespace or service.name.startswith("_"):
        return
    found = names(service).read(name).asked
    if isinstance(found, OfService):
        assert service in found.services


@given(st.binary(max_size=60))
def test_names_read_survives_any_name(raw: bytes) -> None:
    try:
        name = dns.name.Name((*raw.split(b"."), b"nacos", b""))
    except dns.exception.DNSException:
        return
    found = names(key(), PAY).read(name).asked
    assert not isinstance(found, OfService) or len(found.services) <= MAX_SPELLINGS


def test_service_name_is_none_if_dns_cannot_carry_it() -> None:
    assert service_name(key(), ZONE) == dns.name.from_text("orders.DEFAULT-GROUP.public.nacos.")
    assert service_name(key("a b"), ZONE) is None
    assert service_name(key("a" * 64), ZONE) is None
    assert service_name(key("a..b"), ZONE) is None


def test_index_forgets_case_and_knows_what_it_has() -> None:
    index = names(LOUD).index
    assert LOUD in index and key("com.acme.orders") not in index
    assert len(index) == 1
    assert folded("A", "B_c", "D") == ("a", "b-c", "d")


@pytest.mark.parametrize("text", ["", ".", "a..b", "a" * 64])
def test_parse_zone_refuses_what_is_no_zone(text: str) -> None:
    with pytest.raises(ValueError):
        parse_zone(text)


def test_parse_aliases_reads_services_as_the_rest_of_the_proxy_does() -> None:
    text = ["users=dev/PAY@@providers:com.acme.Users:1.0:", "b=x", "C.d=g@@y"]
    assert parse_aliases(text) == {
        "users": key("providers:com.acme.Users:1.0:", "PAY", "dev"),
        "b": key("x"),
        "c.d": key("y", "g"),
    }


@pytest.mark.parametrize("text", ["a", "=x", "a=", "a b=x", "x.addr=y", "a/b=x"])
def test_parse_aliases_refuses_what_cannot_be_a_name(text: str) -> None:
    with pytest.raises(ValueError):
        parse_aliases([text])

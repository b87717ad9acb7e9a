"""What templates read: cached answers, usable instances, and lists that are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nacos_proxy.cli.lists import (
    MAX_SERVICES,
    BadRequest,
    Group,
    Lists,
    Reader,
    Service,
    followed,
    instances_of,
    one_line,
)
from nacos_proxy.frontends.events.streams import EventsPolicy
from nacos_proxy.model.services import ServiceKey

ORDERS = Service(ServiceKey("public", "g", "orders"))
NEAR = Service(ORDERS.key, (("selector", "zone=a"),))
GROUP = Group("public", "g")


def host(ip: str = "10.0.0.1", port: int = 80, **more: Any) -> dict[str, Any]:
    whole = {"ip": ip, "port": port, "weight": 1.0, "healthy": True, "enabled": True, "ephemeral": True}
    return {**whole, "clusterName": "DEFAULT", "serviceName": "g@@orders", "metadata": {}, **more}


class Proxy:
    """Answers of a proxy: hosts by service and `selector`, names by page."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, Mapping[str, str]]]()
        self.hosts: dict[str, list[Any]] = {}
        self.names = list[str]()
        self.stale = False
        self.revision = "r1"

    def __call__(self, path: str, query: Mapping[str, str]) -> Any:
        self.asked.append((path, query))
        if path == "/api/v1/services":
            page, size = int(query["page"]) - 1, int(query["size"])
            return {"services": self.names[page * size : (page + 1) * size], "stale": self.stale}
        return {"revision": self.revision, "hosts": self.hosts.get(query.get("selector", ""), [])}


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def test_lists_ask_once_until_the_service_has_another_revision(proxy: Proxy) -> None:
    lists = Lists(proxy)
    for _ in range(2):
        lists.hosts(ORDERS)
        lists.hosts(NEAR)
    whole = {"namespace": "public", "group": "g"}
    path = "/api/v1/services/g%40%40orders"
    assert proxy.asked == [(path, whole), (path, {**whole, "selector": "zone=a"})]
    assert not lists.changed(ORDERS.key, False, "r1")
    assert not lists.changed(ORDERS.key, True, "r2")  # nobody asked for this view
    assert not lists.changed(ServiceKey("public", "g", "stock"), False, "r2")
    assert lists.changed(ORDERS.key, False, "r2")
    lists.hosts(ORDERS)
    lists.hosts(NEAR)
    assert len(proxy.asked) == 4


def test_lists_names_come_page_by_page_and_sorted(proxy: Proxy) -> None:
    proxy.names = [f"s{number:04}" for number in reversed(range(1500))]
    lists = Lists(proxy)
    assert lists.names(GROUP) == tuple(sorted(proxy.names))
    assert not lists.refresh_names()
    proxy.names = ["b", "a\nb", "a"]
    assert lists.refresh_names()
    assert lists.names(GROUP) == ("a", "b")


def test_lists_names_lose_none_while_the_upstream_is_away(proxy: Proxy) -> None:
    lists = Lists(proxy)
    proxy.names = ["a", "b"]
    lists.names(GROUP)
    proxy.names, proxy.stale = ["c"], True
    assert lists.refresh_names()
    assert lists.names(GROUP) == ("a", "b", "c")


def test_lists_keep_only_what_is_used(proxy: Proxy) -> None:
    lists = Lists(proxy)
    lists.hosts(ORDERS)
    lists.hosts(NEAR)
    lists.names(GROUP)
    lists.keep_only({NEAR}, set())
    assert lists.changed(ORDERS.key, False, "r2")
    assert not lists.refresh_names()
    lists.hosts(NEAR)
    lists.forget()
    assert not lists.changed(ORDERS.key, False, "r3")


def test_instances_are_those_that_a_load_balancer_may_use() -> None:
    hosts = [
        host("10.0.0.1", metadata={"zone": "a\r\nb", "none": None}, clusterName="c\n1"),
        host("10.0.0.2", healthy=False),
        host("10.0.0.3", enabled=False),
        host("10.0.0.4", weight=0),
        host("10.0.0.5", port=0),
        host("a;b"),
        host("[2001:DB8::7]"),
        host("2001:db8:0::7", weight=7),
    ]
    found = instances_of(hosts, ORDERS)
    assert [(i.address, i.weight) for i in found] == [("10.0.0.1:80", 1), ("[2001:db8::7]:80", 7)]
    assert (found[0].metadata, found[0].cluster) == ({"zone": "a  b"}, "c 1")
    every = instances_of(hosts, ORDERS._replace(usable=False))
    assert [i.ip for i in every] == [f"10.0.0.{n}" for n in (1, 2, 3, 4, 5)] + ["2001:db8::7"]


def test_instances_of_what_is_no_list_are_an_error() -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        instances_of(["x"], ORDERS)


@pytest.mark.parametrize("mark", ["\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\ud800"])
def test_one_line_has_no_line_break_and_nothing_unprintable(mark: str) -> None:
    assert one_line(f"a{mark}b") == "a b"


def test_reader_holds_the_last_list_of_a_service_without_instances(proxy: Proxy) -> None:
    kept = {ORDERS.text: [host()]}
    reader = Reader(Lists(proxy), kept)
    assert [i.address for i in reader.service(ORDERS)] == ["10.0.0.1:80"]
    assert (reader.held, reader.blocked, reader.lists) == ([ORDERS.key], [], kept)


def test_reader_holds_the_last_list_if_all_instances_are_unhealthy(proxy: Proxy) -> None:
    proxy.hosts[""] = [host(healthy=False)]
    reader = Reader(Lists(proxy), {ORDERS.text: [host()]})
    assert len(reader.service(ORDERS)) == 1


def test_reader_allows_an_empty_list_on_request_and_where_none_was_before(proxy: Proxy) -> None:
    allowed = Reader(Lists(proxy), {ORDERS.text: [host()]}, allow_empty=True, unknown=True)
    fresh = Reader(Lists(proxy), {})
    for reader in (allowed, fresh):
        assert (reader.service(ORDERS), reader.names(GROUP)) == ([], ())
        assert (reader.held, reader.blocked, reader.lists) == ([], [], {})


def test_reader_keeps_no_list_that_had_nothing_usable(proxy: Proxy) -> None:
    proxy.hosts[""] = [host(healthy=False)]
    reader = Reader(Lists(proxy), {})
    assert (reader.service(ORDERS), reader.lists, reader.blocked) == ([], {}, [])


def test_reader_allows_a_filter_to_leave_nothing_of_a_service_with_instances(proxy: Proxy) -> None:
    proxy.hosts[""] = [host()]
    reader = Reader(Lists(proxy), {NEAR.text: [host()]})
    assert (reader.service(NEAR), reader.held, reader.lists) == ([], [], {})
    assert followed(reader.used) == {("public", False): {"g@@orders"}}


def test_reader_holds_the_last_list_of_the_truly_healthy_while_protection_hides_health(proxy: Proxy) -> None:
    """Protection shows all instances as healthy, unless a call asks for the truly healthy ones."""
    healthy = Service(ORDERS.key, (("healthy_only", "true"), ("selector", "zone=a")))
    lists = Lists(lambda path, query: {"revision": "", "hosts": [] if "healthy_only" in query else [host()]})
    reader = Reader(lists, {healthy.text: [host()]})
    assert (len(reader.service(healthy)), reader.held) == (1, [ORDERS.key])


def test_reader_is_blocked_if_it_has_no_list_to_hold(proxy: Proxy) -> None:
    other = Reader(Lists(proxy), {NEAR.text: [host()]})
    unknown = Reader(Lists(proxy), {}, unknown=True)
    for reader in (other, unknown):
        assert (reader.service(ORDERS), reader.blocked) == ([], [ORDERS.key])
    assert (unknown.names(GROUP), unknown.blocked) == ((), [ORDERS.key, GROUP])


def test_reader_holds_the_last_names_of_a_group(proxy: Proxy) -> None:
    reader = Reader(Lists(proxy), {GROUP.text: ["a", "b"]})
    assert (reader.names(GROUP), reader.held) == (["a", "b"], [GROUP])
    proxy.names, proxy.stale = ["c"], True
    reader = Reader(Lists(proxy), {GROUP.text: ["a", "b"]})
    assert reader.names(GROUP) == ("a", "b", "c")
    proxy.stale = False
    reader = Reader(Lists(proxy), {GROUP.text: ["a", "b"]})
    assert (reader.names(GROUP), reader.held, reader.lists) == (("c",), [], {GROUP.text: ("c",)})


def test_followed_has_a_stream_for_each_namespace_and_true_health() -> None:
    stock = Service(ServiceKey("dev", "g", "stock"))
    healthy = Service(ORDERS.key, (("healthy_only", "true"),))
    assert followed([ORDERS, NEAR, stock, healthy]) == {
        ("public", False): {"g@@orders"},
        ("dev", False): {"g@@stock"},
        ("public", True): {"g@@orders"},
    }


def test_max_services_are_those_of_a_stream() -> None:
    assert EventsPolicy().services_per_stream == MAX_SERVICES


def test_followed_refuses_more_services_than_a_stream_follows() -> None:
    many = [Service(ServiceKey("public", "g", f"s{number}")) for number in range(501)]
    assert len(followed(many[1:])[("public", False)]) == 500
    with pytest.raises(BadRequest, match="at most 500"):
        followed(many)

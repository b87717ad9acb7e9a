from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import Garbled, Reason, Refused, TooSlow, Unreachable
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.nacos.servers import (
    IDLE,
    MAX_ATTEMPTS,
    MAX_PINS,
    RECOVERY,
    Server,
    Servers,
    ServersPolicy,
    parse_addresses,
    parse_server,
    server_failed,
)

GONE = Unreachable("no connection", arrived=False)
SLOW = TooSlow("no answer in time")


def three() -> Servers:
    return Servers(ServersPolicy(("a", "b", "c"), slow=5.0))


def asked(servers: Servers, *keys: object, now: float = 0.0, reading: bool = False) -> list[str]:
    return [server.origin for server in servers.candidates(keys, now, reading=reading)]


def key(name: str) -> ServiceKey:
    return ServiceKey("public", "DEFAULT_GROUP", name)


def test_servers_have_parameter_check_if_every_server_is_known_to() -> None:
    servers = Servers(ServersPolicy())
    assert not servers.have_parameter_check
    servers = three()
    for server, version in zip(servers.all, ("2.5.1", "2.3.0", "2.2.0"), strict=True):
        assert not servers.have_parameter_check
        server.capabilities.set_version({"version": version})
    assert not servers.have_parameter_check
    servers.all[-1].capabilities.set_version({"version": "3.0.3"})
    assert servers.have_parameter_check


# addresses


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("nacos", "http://nacos:8848/nacos"),
        (" nacos.example.com ", "http://nacos.example.com:8848/nacos"),
        ("nacos_1.svc.cluster.local.:80", "http://nacos_1.svc.cluster.local.:80/nacos"),
        ("10.0.0.1:8849", "http://10.0.0.1:8849/nacos"),
        ("http://NACOS", "http://nacos:8848/nacos"),
        ("https://nacos", "https://nacos:443/nacos"),
        ("https://nacos:8443/", "https://nacos:8443/nacos"),
        ("http://nacos/discovery/", "http://nacos:8848/discovery"),
        ("http://nacos/a/b", "http://nacos:8848/a/b"),
        ("nacos:1/ctx", "http://nacos:1/ctx"),
        ("[::1]", "http://[::1]:8848/nacos"),
        ("[fe80::1]:80", "http://[fe80::1]:80/nacos"),
        ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
    ],
)
def test_parse_server_accepts_what_people_write(text: str, url: str) -> None:
    assert parse_server(text).url == url


def test_parse_server_accepts_an_empty_context_path() -> None:
    assert parse_server("nacos", "").url == parse_server("nacos", "/").url == "http://nacos:8848"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no valid host name"),
        ("http://", "has no valid host name"),
        (":8848", "has no valid host name"),
        ("a b", "has no valid host name"),
        ("a..b", "has no valid host name"),
        (".a", "has no valid host name"),
        ("a%2fb", "has no valid host name"),
        ("ftp://nacos", "'ftp://nacos' is neither http nor https"),
        ("nacos:port", "the port of 'nacos:port' is not a number from 1 to 65535"),
        ("nacos:0", "not a number from 1 to 65535"),
        ("nacos:65536", "not a number from 1 to 65535"),
        ("nacos:-1", "not a number from 1 to 65535"),
        ("::1", "as in [::1]:8848"),
        ("fe80::1:8848", "as in [::1]:8848"),
        ("[::1", "put an IPv6 address in brackets"),
        ("[fe80::1%eth0]", "has no valid host name"),
        ("nacos?x=1", "a port and a context path, and nothing else"),
        ("nacos#x", "a port and a context path, and nothing else"),
        ("http://nacos/../admin", "is not a context path: it must look like /nacos"),
        ("http://nacos/a/./b", "is not a context path"),
        ("http://nacos/a//b", "is not a context path"),
        ("http://nacos/%2e%2e", "is not a context path"),
        ("http://nacos/a;b", "is not a context path"),
    ],
)
def test_parse_server_refuses_an_invalid_address_with_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_server(text)


@pytest.mark.parametrize("scheme", ["http", "ftp"])
@pytest.mark.parametrize("rest", ["nacos", "nacos:port", "[::1", "", "a b", "nacos?x"])
def test_parse_server_refuses_a_password_and_does_not_show_it(scheme: str, rest: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as raised:
        parse_server(f"{scheme}://nacos:hunter2@{rest}")
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_parse_server_gives_a_server_or_a_sentence_for_any_text(text: str) -> None:
    try:
        server = parse_server(text)
    except ValueError as error:
        assert re.search(
            r"no valid host|not a context path|not an address|neither http|nothing else|not a number", str(error)
        )
    else:
        assert re.fullmatch(r"https?://[0-9A-Za-z._:\[\]-]+:\d+(/[0-9A-Za-z._~-]+)*", server.url)


def test_parse_addresses_reads_line_by_line() -> None:
    body = (
        "\ufeff10.0.0.1\r\n"
        "10.0.0.2:8849 # the second\n"
        "\n"
        "# none\n"
        "10.0.0.3:8848?raft_port=7848\n"
        "10.0.0.1:8848\n"
        "no address\n"
        "https://10.0.0.4/ctx\n"
    )
    assert [server.url for server in parse_addresses(body.encode(), "/n")] == [
        "http://10.0.0.1:8848/n",
        "http://10.0.0.2:8849/n",
        "http://10.0.0.3:8848/n",
        "https://10.0.0.4:443/ctx",
    ]


@pytest.mark.parametrize(
    "body", [b"", b"\n\n", b'{"code":404,"message":"no"}', b"<html><body>", bytes(range(128, 256))]
)
def test_parse_addresses_of_something_else_is_empty(body: bytes) -> None:
    assert parse_addresses(body) == []


def test_parse_addresses_is_bounded() -> None:
    body = "\n".join(f"10.0.{n // 256}.{n % 256}" for n in range(5000))
    assert len(parse_addresses(body.encode())) == 100


# up and down


def test_servers_on_up_and_on_down_are_called_once_for_each_transition() -> None:
    servers = three()
    told: list[str] = []
    servers.on_up.append(lambda server: told.append(f"{server.origin} up"))
    servers.on_down.append(lambda server: told.append(f"{server.origin} down"))
    a, b, _ = servers.all
    servers.succeeded(a, 1.0)
    for now in (2.0, 3.0, 4.0):
        servers.failed(a, now, GONE)
    servers.failed(b, 5.0, SLOW)
    for now in (6.0, 7.0):
        servers.succeeded(a, now)
    assert told == ["http://a:8848 down", "http://a:8848 up"]


@pytest.mark.parametrize("error", [SLOW, Garbled("no HTTP"), Refused(Reason.OTHER, "not ready", status=503)])
def test_servers_failed_tolerates_one_slow_or_garbled_answer(error: TooSlow | Garbled | Refused) -> None:
    servers = three()
    [server] = servers.all[:1]
    servers.failed(server, 1.0, error)
    assert server.up
    servers.succeeded(server, 2.0)
    servers.failed(server, 7.0, error)
    assert server.up, "not in a row"
    servers.failed(server, 8.0, error)
    assert not server.up
    assert server.error == str(error)


def test_servers_failed_ignores_timeouts_while_other_calls_are_answered() -> None:
    servers = three()
    server = servers.all[0]
    servers.succeeded(server, 99.5)
    for second in range(60):
        for _ in range(10):
            servers.failed(server, 100.0 + second, SLOW)
        servers.succeeded(server, 100.5 + second)
        assert server.up
    for now in (164.4, 164.4, 164.4, 164.5):
        servers.failed(server, now, SLOW)
    assert server.up
    servers.failed(server, 164.5, SLOW)
    assert not server.up


def test_servers_failed_takes_a_server_down_at_once_if_it_is_unreachable() -> None:
    servers = three()
    servers.failed(servers.all[0], 1.0, GONE)
    assert [server.origin for server in servers.up] == ["http://b:8848", "http://c:8848"]
    assert repr(servers.all[0]) == "<Server http://a:8848/nacos down>"


def test_servers_failed_backs_off_probes_until_a_success() -> None:
    servers = three()
    server = servers.all[0]
    now, pauses = 100.0, list[float]()
    for _ in range(7):
        servers.failed(server, now, GONE)
        pauses.append(server.retry_at - now)
        now = server.retry_at
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    servers.succeeded(server, now)
    servers.failed(server, now, GONE)
    assert server.retry_at - now == 0.5


def test_servers_failed_counts_many_calls_that_fail_together_once_for_the_back_off() -> None:
    servers = three()
    server = servers.all[0]
    for n in range(64):
        servers.failed(server, 100.0 + n / 1000, GONE)
    assert server.retry_at == 100.5


def test_servers_to_probe_gives_a_server_that_is_down_after_its_back_off_and_once_at_a_time() -> None:
    servers = three()
    for server in servers.all:
        servers.succeeded(server, 100.0)
    down = servers.all[0]
    servers.failed(down, 100.0, GONE)
    assert servers.to_probe(100.4) == []
    assert servers.to_probe(100.5) == [down]
    down.probing = True
    assert servers.to_probe(101.0) == []


def test_servers_to_probe_gives_idle_servers_if_there_are_several() -> None:
    servers = three()
    a, b, c = servers.all
    for server in servers.all:
        servers.succeeded(server, 100.0)
    servers.succeeded(b, 105.0)
    assert servers.to_probe(99.9 + IDLE) == []
    assert servers.to_probe(100.0 + IDLE) == [a, c]
    assert Servers(ServersPolicy(("alone",))).to_probe(1e9) == []


def test_servers_succeeded_keeps_a_moving_mean_of_the_latency() -> None:
    servers = three()
    server = servers.all[0]
    for seconds in (1.0, None, 2.0):
        servers.succeeded(server, 1.0, seconds)
    assert server.latency == pytest.approx(1.1)


# candidates


def test_servers_candidates_always_include_the_only_server() -> None:
    servers = Servers(ServersPolicy(("alone",)))
    servers.failed(servers.all[0], 1.0, GONE)
    assert asked(servers, key("x")) == ["http://alone:8848"]


def test_servers_candidates_spread_services_and_keep_each_in_its_place() -> None:
    servers = three()
    first = {f"s{n}": asked(servers, key(f"s{n}"))[0] for n in range(300)}
    assert min(Counter(first.values()).values()) > 60
    assert {name: asked(three(), key(name))[0] for name in first} == first, "after a restart too"
    servers.failed(servers.all[0], 1.0, GONE)
    moved = {name for name in first if asked(servers, key(name))[0] != first[name]}
    assert moved == {name for name, origin in first.items() if origin == "http://a:8848"}


def test_servers_candidates_start_at_the_same_server_for_all_calls_about_a_service() -> None:
    servers = three()
    for n in range(50):
        service = key(f"s{n}")
        assert asked(servers, (service, "10.0.0.1", n), service) == asked(servers, service)


def test_servers_candidates_are_distinct_and_at_most_max_attempts() -> None:
    servers = Servers(ServersPolicy(tuple("abcde")))
    servers.pin("i", servers.all[2], 0.0)
    servers.pin("s", servers.all[2], 0.0)
    assert asked(servers, "i", "s")[0] == "http://c:8848"
    assert len(set(asked(servers, "i", "s"))) == len(asked(servers, "i", "s")) == MAX_ATTEMPTS


def test_servers_pin_keeps_an_instance_at_its_server_while_that_is_up() -> None:
    """A server does not pass beats on to the server of the registration (nacos-http.md 1.3)."""
    servers = three()
    service = key("s")
    instance = (service, "10.0.0.1", 80)
    home = next(server for server in servers.all if server.origin != asked(servers, service)[0])
    servers.pin(instance, home, 0.0)
    assert asked(servers, instance, service)[0] == home.origin
    servers.failed(home, 1.0, GONE)
    assert home.origin not in asked(servers, instance, service)
    servers.succeeded(home, 2.0)
    assert asked(servers, instance, service)[0] == home.origin
    servers.unpin(instance)
    assert asked(servers, instance, service) == asked(servers, service)


def test_servers_pin_returns_keys_to_a_node_that_is_back_within_a_minute_and_not_all_at_once() -> None:
    servers = three()
    instances = [(key("s"), "10.0.0.1", port) for port in range(600)]
    home, _, other = servers.all

    def at(now: float) -> int:
        """How many of the beats go to `home`."""
        count = 0
        for instance in instances:
            chosen = next(iter(servers.candidates((instance, key("s")), now)))
            servers.pin(instance, chosen, now)
            count += chosen is home
        return count

    for instance in instances:
        servers.pin(instance, home, 0.0)
    assert at(1.0) == 600
    servers.failed(home, 2.0, GONE)
    assert at(3.0) == 0
    servers.succeeded(home, 100.0)
    assert at(109.0) == 0, "recovering"
    assert 100 < at(120.0) < 500
    assert at(140.0) == 600
    servers.failed(home, 150.0, GONE)
    at(151.0)
    servers.replace([other])
    assert at(152.0) == 0, "a home that left the list is forgotten"
    servers.replace([other, home])
    assert at(1000.0) == 0


def test_servers_pin_returns_a_key_whose_node_was_only_too_slow() -> None:
    servers = three()
    a, b, _ = servers.all
    servers.pin("i", a, 0.0)
    servers.pin("i", b, 1.0)
    assert next(iter(servers.candidates(("i",), 2.0))) is b
    assert next(iter(servers.candidates(("i",), 45.0))) is a


def test_servers_candidates_for_reads_leave_a_recovering_node_to_the_end() -> None:
    servers = three()
    services = [key(f"s{n}") for n in range(30)]
    a, b, c = servers.all
    servers.failed(a, 1.0, GONE)
    servers.succeeded(a, 2.0)
    first = [next(iter(servers.candidates((service,), 1.9 + RECOVERY, reading=True))) for service in services]
    assert a not in first and {b, c} == set(first)
    assert a in [next(iter(servers.candidates((service,), 1.9 + RECOVERY))) for service in services], "writes go to it"
    assert a in [next(iter(servers.candidates((service,), 2.0 + RECOVERY, reading=True))) for service in services]
    for server in (b, c):
        servers.failed(server, 3.0, GONE)
    assert next(iter(servers.candidates((services[0],), 5.0, reading=True))) is a


def test_servers_pin_is_bounded() -> None:
    servers = three()
    for n in range(MAX_PINS + 10):
        servers.pin(n, servers.all[n % 3], 0.0)
    assert asked(servers, MAX_PINS + 9)[0] == servers.all[(MAX_PINS + 9) % 3].origin
    assert len(servers._pins) == MAX_PINS


def test_servers_candidates_if_none_is_up_are_the_one_that_is_probed_next() -> None:
    servers = three()
    for server, now in zip(servers.all, (3.0, 1.0, 2.0), strict=True):
        servers.failed(server, now, GONE)
    assert asked(servers, key("x")) == ["http://b:8848"]


def test_servers_candidates_end_with_one_that_was_down_if_the_last_one_up_fails() -> None:
    """It may be up again since its last probe."""
    servers = three()
    a, b, c = servers.all
    servers.failed(a, 1.0, GONE)
    servers.failed(b, 2.0, GONE)
    candidates = servers.candidates((key("x"),), 5.0)
    assert next(candidates) is c
    servers.failed(c, 3.0, GONE)
    assert list(candidates) == [a]


def test_servers_candidates_skip_a_server_that_went_down_during_the_call() -> None:
    servers = three()
    candidates = servers.candidates((key("x"),), 5.0)
    first = next(candidates)
    second, third = [s for s in servers.all if s is not first]
    servers.failed(second, 1.0, GONE)
    assert list(candidates) == [third]


# replace


def test_servers_replace_keeps_the_state_of_known_servers() -> None:
    servers = three()
    a, b, c = servers.all
    servers.failed(b, 1.0, GONE)
    servers.pin("i", c, 0.0)
    servers.replace([parse_server("b"), parse_server("d"), parse_server("a"), parse_server("d")])
    assert servers.all[0] is b
    assert not b.up
    assert servers.all[2] is a
    assert [server.origin for server in servers.all] == ["http://b:8848", "http://d:8848", "http://a:8848"]
    assert c.origin not in asked(servers, "i"), (
        "a server that is not in the list gets no call, whatever was pinned to it"
    )


def test_servers_replace_ignores_an_empty_list() -> None:
    servers = three()
    before = list(servers.all)
    servers.replace([])
    assert servers.all == before


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ok", "gone", "slow", "list"])), max_size=30))
def test_servers_candidates_are_never_empty_whatever_happened(happened: list[tuple[str, str]]) -> None:
    servers = three()
    for now, (name, what) in enumerate(happened):
        server = next((s for s in servers.all if s.origin == f"http://{name}:8848"), servers.all[0])
        match what:
            case "ok":
                servers.succeeded(server, float(now))
            case "list":
                servers.replace([parse_server(name), parse_server("a")])
            case _:
                servers.failed(server, float(now), GONE if what == "gone" else SLOW)
        found = list(servers.candidates((key("x"),), 5.0))
        assert found
        assert {server.url for server in found} <= {server.url for server in servers.all}
        if servers.up and len(servers.all) > 1:
            assert found[0].up


# errors


@pytest.mark.parametrize(
    ("error", "reading", "blamed"),
    [
        (GONE, True, True),
        (SLOW, False, True),
        (Garbled("x"), False, True),
        (Refused(Reason.OTHER, "x", status=502), False, True),
        (Refused(Reason.OTHER, "x", status=503), False, True),
        (Refused(Reason.OTHER, "x", status=504), True, True),
        (Refused(Reason.OTHER, "x", status=500), True, True),
        (Refused(Reason.OTHER, "x", status=500), False, False),
        (Refused(Reason.OTHER, "x", status=400), True, False),
        (Refused(Reason.NO_RIGHT, "x", status=403), True, False),
        (Refused(Reason.GONE, "x", status=410), True, False),
    ],
)
def test_server_failed(error: Unreachable | TooSlow | Garbled | Refused, reading: bool, blamed: bool) -> None:
    assert server_failed(error, reading=reading) is blamed


def test_server_count_counts_outcomes() -> None:
    server = Server("http://a:1", "")
    for outcome in ("ok", "ok", "TooSlow"):
        server.count(outcome)
    assert server.outcomes == {"ok": 2, "TooSlow": 1}


def test_servers_on_list_is_called_when_the_list_has_changed() -> None:
    servers = Servers(ServersPolicy(("a",)))
    told: list[list[str]] = []
    servers.on_list.append(lambda: told.append([server.origin for server in servers.all]))
    for names in (["a"], ["b", "a"], ["a", "b"], [], ["b"]):
        servers.replace([parse_server(name) for name in names])
    assert told == [["http://b:8848", "http://a:8848"], ["http://b:8848"]]


@pytest.mark.parametrize(
    "text", ["http://app:hush@a", "app:hush@a", "http://app:hu/sh@a", "http://app:hu?sh@a", "http://app:hu#sh@a", "@a"]
)
def test_parse_server_refuses_credentials_and_does_not_show_them(text: str) -> None:
    with pytest.raises(ValueError, match="may have a port and a context path, and nothing else") as caught:
        parse_server(text)
    assert "hu" not in str(caught.value)

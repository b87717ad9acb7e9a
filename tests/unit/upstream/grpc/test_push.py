"""gRPC push: with servers in this process and a fake clock, then with r-nacos."""

from __future__ import annotations

import asyncio
import logging
import ssl
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import SystemClock, spawn
from nacos_proxy.upstream.contract import Changed, Watchable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.grpc.push import NAME_KEPT, RETRY_REFUSED, WORKERS, GrpcPush, PushPolicy
from nacos_proxy.upstream.grpc.session import Target
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from nacos_proxy.wire.nacos.grpc.stream import write_notify, write_reset
from tests.helpers.build import instance, key
from tests.helpers.clock import FakeClock, settle
from tests.helpers.grpc_nacos import GrpcNacos, Published
from tests.helpers.live import RNacos, free_port, rnacos_binary
from tests.unit.upstream.grpc.fake_server import DENIED, FakeServer, NoTls

CERTIFICATES = Path(__file__).parents[3] / "certificates"
A, B = instance("10.0.0.1"), instance("10.0.0.2")
FIRST, SECOND = Target("10.0.1.1", 9848, 8848), Target("10.0.1.2", 9849, 8849)
REFUSED = ConnectionRefusedError("connection refused")
NO_RIGHT = Refused(Reason.NO_RIGHT, "authorization failed!", status=403)


class Account:
    """`tokens` are used one after the other, each until a server refuses it."""

    def __init__(self, *tokens: str, targets: Collection[Target] = (FIRST,)) -> None:
        self.targets = list(targets)
        self.tokens = list(tokens)
        self.clusters: dict[ServiceKey, set[str]] = {}
        self.admin = False

    def grpc_targets(self) -> list[Target]:
        return list(self.targets)

    async def grpc_headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        if refused is not None and len(self.tokens) > 1:
            self.tokens.pop(0)
        return {"accessToken": self.tokens[0]} if self.tokens else {}

    def lists_disabled(self, key: ServiceKey) -> bool:
        return self.admin

    def add_clusters(self, key: ServiceKey, clusters: Collection[str]) -> None:
        self.clusters.setdefault(key, set()).update(clusters)


class World:
    """Push from one server, and what it reports, in order."""

    def __init__(self, account: Account, policy: PushPolicy) -> None:
        self.server, self.clock, self.account = FakeServer(), FakeClock(), account
        self.push = GrpcPush(account, policy, self.clock, lambda: 0.5, connect=self.server.connect)
        self.reported: list[Changed] = []

    async def watch(self, *keys: ServiceKey) -> None:
        self.push.watch(keys)
        await settle(100)

    async def wait(self, seconds: float) -> None:
        """Unlike `clock.advance`, leaves time to end a connection before and to subscribe afterwards."""
        await settle(100)
        await self.clock.advance(seconds)
        await settle(100)

    def news(self) -> list[tuple[str, tuple[Instance, ...] | None]]:
        """What was reported since the last look: names and lists."""
        news = [(c.key.name, None if c.pushed is None else c.pushed.instances) for c in self.reported]
        self.reported.clear()
        return news


@asynccontextmanager
async def pushing(account: Account | None = None, **policy: Any) -> AsyncIterator[World]:
    world = World(account or Account(), PushPolicy(**policy))

    async def listen() -> None:
        async for changed in world.push.changes():
            world.reported.append(changed)

    listening = spawn(listen(), name="listening")
    try:
        yield world
    finally:
        await world.push.close()
        await listening  # it ends by itself


# --- what is reported ----------------------------------------------------------------------------------------------


async def test_grpc_push_changes_yields_pushed_lists() -> None:
    async with pushing() as world:
        assert isinstance(world.push, Watchable)
        await world.watch(key("a"), key("b"))
        world.server.happen(key("b"), A, B)
        await settle()
        assert world.news()[-1] == ("b", (A, B))


async def test_grpc_push_changes_yields_the_list_in_the_answer_to_a_subscription() -> None:
    async with pushing() as world:
        world.server.lists[key("a")] = (A,)
        await world.watch(key("a"))
        assert world.news() == [("a", (A,))]


async def test_grpc_push_changes_keeps_only_the_last_list_of_a_service() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        world.news()
        for number in range(5):
            world.server.happen(key("a"), instance(f"10.0.0.{number}"))
        await settle()
        assert world.news() == [("a", (instance("10.0.0.4"),))]


async def test_grpc_push_changes_prefers_a_push_to_the_answer_that_it_overtook() -> None:
    async with pushing() as world:
        world.server.lists[key("a")] = (A,)
        world.server.on_subscribe = lambda line, service: world.server.happen(service, A, B)
        await world.watch(key("a"))
        assert world.news() == [("a", (A, B))]


async def test_grpc_push_changes_lets_others_run_during_a_burst() -> None:
    async with pushing() as world:
        names = [key(f"s{number}") for number in range(50)]
        await world.watch(*names)
        await settle(200)
        world.news()
        for name in names:
            world.server.happen(name, A)
        await settle(10)
        assert 0 < len(world.news()) <= 11


async def test_grpc_push_changes_yields_no_list_that_masks_health() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        world.news()
        world.server.happen(key("a"), A, instance("10.0.0.3", cluster="blue"), masked=True)
        await settle()
        assert world.news() == [("a", None)]
        assert world.account.clusters == {key("a"): {"DEFAULT", "blue"}}


async def test_grpc_push_changes_yields_no_list_with_an_unreadable_host(caplog: pytest.LogCaptureFixture) -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        world.news()
        body = b'{"serviceInfo": {"name": "a", "groupName": "DEFAULT_GROUP", "hosts": %s}}'
        for hosts in (b'[{"ip": "10.0.0.1", "port": 80}, {"ip": "10.0.0.2"}]', b'"none"'):
            world.server.line.push(Payload("NotifySubscriberRequest", body % hosts))
            await settle()
            assert world.news() == [("a", None)]
        assert "cannot be read" in caplog.text


async def test_grpc_push_changes_says_that_a_fetch_shows_disabled_instances() -> None:
    async with pushing() as world:
        world.account.admin = True
        await world.watch(key("a"))
        assert [changed.fetch_shows_more for changed in world.reported] == [True]


async def test_grpc_push_ignores_what_is_not_watched_any_more() -> None:
    async with pushing() as world:
        await world.watch(key("a"), key("b"))
        line = world.server.line
        await world.watch(key("b"))
        assert world.server.subscribed == {key("b")}
        world.news()
        line.push(write_notify("1", world.server.view(key("a")), ""))
        await settle()
        assert world.news() == []
        await world.watch(key("a"), key("b"))
        assert (world.server.subscribed, world.news()) == ({key("a"), key("b")}, [("a", ())])


# --- subscriptions -------------------------------------------------------------------------------------------------


async def test_grpc_push_connects_only_when_something_is_watched() -> None:
    async with pushing() as world:
        await world.wait(100)
        assert (world.server.lines, world.push.alive, world.push.covers(key("a"))) == ([], False, False)
        await world.watch(key("a"))
        assert len(world.server.lines) == 1 and world.push.alive and world.push.covers(key("a"))


async def test_grpc_push_is_alive_as_soon_as_the_subscriptions_are_confirmed() -> None:
    async with pushing() as world:
        names = [key(f"s{number}") for number in range(2 * WORKERS)]
        await world.watch()
        world.server.up.clear()
        world.push.watch(names)
        await settle(100)
        assert not world.push.alive and not world.push.was_alive
        world.server.up.set()
        await settle(200)
        assert world.push.alive and world.push.was_alive and all(world.push.covers(name) for name in names)
        assert world.clock.now() == 1000.0


async def test_grpc_push_sends_at_most_some_subscriptions_at_once() -> None:
    async with pushing() as world:
        await world.watch(*(key(f"s{number}") for number in range(200)))
        await settle(500)
        assert len(world.server.subscribed) == 200
        assert world.server.most_at_once == WORKERS


async def test_grpc_push_covers_a_later_service_once_it_is_confirmed() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        world.server.up.clear()
        await world.watch(key("a"), key("b"))
        assert (world.push.alive, world.push.covers(key("a")), world.push.covers(key("b"))) == (True, True, False)
        world.server.up.set()
        await settle()
        assert world.push.covers(key("b"))


async def test_grpc_push_watch_ends_as_wanted_however_fast_it_changes() -> None:
    async with pushing() as world:
        await world.watch(key("z"))
        world.server.up.clear()
        for wanted in ([key("a")], [], [key("a")], [], [key("a"), key("b")]):
            world.push.watch([key("z"), *wanted])
            await settle(3)
        world.server.up.set()
        await settle(100)
        assert world.server.subscribed == {key("a"), key("b"), key("z")}


async def test_grpc_push_retries_a_refused_subscription_and_does_not_cover_it(caplog: pytest.LogCaptureFixture) -> None:
    async with pushing() as world:
        world.server.refuse = dict.fromkeys([key("a"), key("c")], NO_RIGHT)
        await world.watch(key("a"), key("b"), key("c"))
        assert (world.push.status()["subscriptions"], world.push.status()["refused"]) == (1, 2)
        await world.wait(RETRY_REFUSED)
        assert len([r for r in caplog.records if "no push of" in r.getMessage()]) == 1
        assert world.push.alive and not world.push.covers(key("a")) and world.push.covers(key("b"))
        assert ("a", None) in world.news(), "it is polled from now on"
        await world.watch(key("a"), key("b"))
        world.server.refuse.clear()
        await world.wait(RETRY_REFUSED)
        assert world.push.covers(key("a")) and world.push.status()["refused"] == 0


async def test_grpc_push_gives_up_what_waits_when_the_session_ends() -> None:
    """Each of 2,000 calls would fail at once, in one turn of the loop, and cost a fetch."""
    async with pushing() as world:
        await world.watch(key("z"))
        world.server.up.clear()
        await world.watch(key("z"), *(key(f"s{number}") for number in range(2000)))
        world.news()
        world.server.line.lose()
        world.server.up.set()
        await settle(100)
        assert world.push.status()["refused"] == 0 and all(pushed is not None for _, pushed in world.news())


async def test_grpc_push_repeats_the_end_of_a_subscription_that_failed() -> None:
    async with pushing() as world:
        await world.watch(key("a"), key("b"))
        world.server.refuse[key("a")] = NO_RIGHT
        await world.watch(key("b"))
        assert world.push.status()["refused"] == 0 and world.server.subscribed == {key("a"), key("b")}
        world.server.refuse.clear()
        await world.wait(RETRY_REFUSED)
        assert world.server.subscribed == {key("b")}


async def test_grpc_push_lists_a_service_that_is_watched_again_before_its_subscription_ended() -> None:
    async with pushing() as world:
        others = [key(f"s{number}") for number in range(WORKERS)]
        await world.watch(key("a"), *others)
        world.server.up.clear()
        await world.watch(key("a"))  # from now on, all workers wait for the server
        await world.watch()
        world.server.happen(key("a"), A)
        await world.watch(key("a"))
        assert not world.push.covers(key("a"))
        world.server.up.set()
        await settle(300)
        assert world.push.covers(key("a")) and world.news()[-1] == ("a", (A,))


async def test_grpc_push_confirms_a_subscription_whose_list_cannot_be_read() -> None:
    async with pushing() as world:
        world.server.on_subscribe = lambda line, service: None
        world.server.view = lambda service: FakeServer.view(world.server, key("other"))  # type: ignore[method-assign]
        await world.watch(key("a"))
        assert world.push.covers(key("a")) and world.news() == [("a", None)]


async def test_grpc_push_leaves_services_beyond_the_maximum_to_polling() -> None:
    async with pushing(max_services=2, connections=1) as world:
        await world.watch(key("a"), key("b"), key("c"))
        assert sum(world.push.covers(key(name)) for name in "abc") == 2
        assert world.push.alive


# --- namespaces ----------------------------------------------------------------------------------------------------

DEV_A, DEV_B = key("a", namespace="dev"), key("b", namespace="dev")


async def test_grpc_push_shares_a_connection_between_namespaces_with_different_names() -> None:
    async with pushing() as world:
        await world.watch(key("a"), DEV_B)
        assert len(world.server.lines) == 1 and world.push.covers(DEV_B)


async def test_grpc_push_of_a_name_in_two_namespaces_has_two_connections() -> None:
    """A push does not name its namespace (nacos-grpc.md 6)."""
    async with pushing() as world:
        await world.watch(key("a"), DEV_A)
        assert len(world.server.lines) == 2
        world.news()
        world.server.happen(DEV_A, A)
        world.server.happen(key("a"), B)
        await settle()
        assert {changed.key: changed.pushed and changed.pushed.instances for changed in world.reported} == {
            DEV_A: (A,),
            key("a"): (B,),
        }


async def test_grpc_push_does_not_take_a_late_push_for_one_of_another_namespace() -> None:
    async with pushing() as world:
        await world.watch(key("a"), key("b"))
        late, line = write_notify("9", world.server.view(key("a")), ""), world.server.line
        await world.watch(key("b"))
        await world.watch(key("b"), DEV_A)
        world.news()
        line.push(late)
        await settle()
        assert world.news() == []
        assert world.push.covers(DEV_A) and len(world.server.lines) == 2


@pytest.mark.parametrize("connected", [True, False])
async def test_grpc_push_has_room_again_after_many_services_have_gone(connected: bool) -> None:
    async with pushing(max_services=5, connections=1) as world:
        if not connected:
            world.server.unreachable[FIRST.port] = REFUSED
        for number in range(50):
            await world.watch(key(f"s{number}"))
            if connected:
                await world.wait(NAME_KEPT / 4)
        world.server.unreachable.clear()
        await world.wait(60)
        assert world.push.covers(key("s49")) and world.server.subscribed == {key("s49")}


async def test_grpc_push_gives_a_name_to_another_namespace_once_no_push_can_be_late() -> None:
    async with pushing(connections=1) as world:
        await world.watch(key("a"), key("b"))
        await world.watch(key("b"))
        await world.wait(NAME_KEPT)
        await world.watch(key("b"), DEV_A)
        world.news()
        world.server.happen(DEV_A, A)
        await settle()
        assert world.push.covers(DEV_A) and world.news() == [("a", (A,))]
        await world.wait(NAME_KEPT)
        await world.watch(key("b"), DEV_A, key("c"))
        world.server.happen(DEV_A, B)
        await settle()
        assert ("a", (B,)) in world.news()


async def test_grpc_push_ignores_a_push_that_names_another_namespace() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        world.news()
        body = b'{"namespace": "%s", "serviceInfo": {"name": "a", "groupName": "DEFAULT_GROUP", "hosts": []}}'
        for namespace in (b"dev", b""):
            world.server.line.push(Payload("NotifySubscriberRequest", body % namespace))
            await settle()
        assert world.news() == [("a", ())]


async def test_grpc_push_stays_alive_while_another_connection_is_set_up() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        world.server.unreachable[FIRST.port] = REFUSED
        await world.watch(key("a"), DEV_A)
        assert world.push.alive and world.push.covers(key("a")) and not world.push.covers(DEV_A)


async def test_grpc_push_reports_what_a_connection_covered_that_was_lost_while_it_was_set_up() -> None:
    async with pushing() as world:
        await world.watch(key("a"), key("b"))
        world.server.on_subscribe = lambda line, service: world.server.up.clear()
        await world.watch(key("a"), key("b"), DEV_A, DEV_B)
        covered = [name for name in (DEV_A, DEV_B) if world.push.covers(name)]
        world.news()
        world.server.line.lose()
        await settle()
        assert covered and world.push.alive and world.news() == [(name.name, None) for name in covered]


async def test_grpc_push_is_not_alive_if_one_of_its_connections_was_lost() -> None:
    async with pushing() as world:
        await world.watch(key("a"), DEV_A)
        assert world.push.alive
        world.server.line.lose()
        await settle(50)
        assert not world.push.alive and world.push.was_alive


async def test_grpc_push_stays_alive_if_a_connection_is_lost_that_nothing_needs_any_more() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        await world.watch(key("a"), DEV_A)
        await world.watch(key("a"))
        world.server.unreachable[FIRST.port] = REFUSED
        world.server.line.lose()
        await world.wait(100)
        assert world.push.alive and world.push.covers(key("a"))
        await world.watch(key("a"), DEV_A)
        assert not world.push.alive


# --- losses --------------------------------------------------------------------------------------------------------


async def test_grpc_push_subscribes_to_all_again_after_a_loss() -> None:
    async with pushing() as world:
        await world.watch(key("a"), key("b"))
        await world.wait(60)
        world.news()
        world.server.line.lose()
        await settle()
        assert not world.push.alive and not world.push.covers(key("a"))
        assert world.push.reconnects == 0
        world.server.lists[key("a")] = (A,)
        await world.wait(0.5)
        assert world.push.alive and sorted(world.news()) == [("a", (A,)), ("b", ())]
        assert (len(world.server.lines), world.push.reconnects) == (2, 1)


async def test_grpc_push_on_lost_is_called_before_the_next_server_lists_anything() -> None:
    async with pushing() as world:
        world.push.on_lost.append(lambda: losses.append(len(world.server.lines)))
        losses: list[int] = []
        await world.watch(key("a"))
        assert losses == []
        world.server.line.lose()
        await world.wait(60)
        assert losses == [1] and len(world.server.lines) == 2
    assert losses == [1], "an end from here is no loss"


async def test_grpc_push_subscribes_after_a_loss_only_to_what_is_still_watched() -> None:
    async with pushing() as world:
        await world.watch(key("a"), key("b"))
        await world.wait(60)
        world.server.line.lose()
        await world.watch(key("b"), key("c"))
        await world.wait(1)
        assert world.server.subscribed == {key("b"), key("c")}


async def test_grpc_push_connects_ever_less_often_while_no_server_answers(caplog: pytest.LogCaptureFixture) -> None:
    async with pushing() as world:
        world.server.unreachable[FIRST.port] = REFUSED
        with caplog.at_level(logging.WARNING):
            await world.watch(key("a"))
            await world.wait(600)
        assert 20 < len(world.server.tried) < 40
        assert not world.push.alive and world.push.unavailable == "gRPC port 10.0.1.1:9848: connection refused"
        assert len([r for r in caplog.records if "no gRPC push" in r.getMessage()]) == 1
        world.server.unreachable.clear()
        await world.wait(30)
        assert world.push.alive and world.push.unavailable == ""


async def test_grpc_push_does_not_hurry_if_sessions_end_at_once() -> None:
    async with pushing() as world:
        world.server.on_subscribe = lambda line, service: line.lose()
        await world.watch(key("a"))
        await world.wait(60)
        assert 3 < len(world.server.lines) < 10


async def test_grpc_push_connects_anew_when_the_server_forgets_the_session() -> None:
    async with pushing() as world:
        await world.watch(key("a"))
        await world.wait(20)
        world.server.refuse[key("b")] = NotRegistered()
        await world.watch(key("a"), key("b"))
        assert world.server.lines[0].closed
        world.server.refuse.clear()
        await world.wait(2)
        assert world.push.covers(key("b"))


async def test_grpc_push_moves_to_the_next_server() -> None:
    async with pushing(Account(targets=[FIRST, SECOND])) as world:
        await world.watch(key("a"))
        assert world.server.line.target.port == FIRST.port
        await world.wait(20)
        world.server.line.lose()
        await world.wait(0.5)
        assert world.server.line.target.port == SECOND.port and world.push.alive
        world.server.unreachable[FIRST.port] = REFUSED
        await world.wait(20)
        world.server.line.lose()
        await world.wait(0.5)
        assert world.server.line.target.port == SECOND.port and world.push.alive


@pytest.mark.parametrize(
    ("ip", "port", "to"), [(SECOND.host, 8849, SECOND), (FIRST.host, 8848, FIRST), ("10.99.99.99", 8848, SECOND)]
)
async def test_grpc_push_follows_a_reset_within_the_list(ip: str, port: int, to: Target) -> None:
    async with pushing(Account(targets=[FIRST, SECOND])) as world:
        await world.watch(key("a"))
        await world.wait(20)
        world.server.line.push(write_reset("1", ip, port))
        await world.wait(0.5)
        assert world.server.line.target.port == to.port and world.push.covers(key("a"))


async def test_grpc_push_follow_leaves_a_server_that_is_no_longer_in_the_list() -> None:
    async with pushing(Account(targets=[FIRST, SECOND])) as world:
        await world.watch(key("a"))
        await world.wait(20)
        world.push.follow()
        assert not world.server.line.closed
        world.account.targets = [SECOND]
        world.push.follow()
        await world.wait(0.5)
        assert world.server.line.target.port == SECOND.port and world.push.covers(key("a"))


async def test_grpc_push_without_any_server_goes_on_looking_for_one() -> None:
    async with pushing(Account(targets=[])) as world:
        await world.watch(key("a"))
        assert world.push.unavailable == "no server is known"
        world.account.targets = [FIRST]
        await world.wait(2)
        assert world.push.alive


# --- accounts and TLS ----------------------------------------------------------------------------------------------


async def test_grpc_push_subscribes_with_the_token_and_renews_a_refused_one() -> None:
    async with pushing(Account("old", "new")) as world:
        world.server.token = "new"
        await world.watch(key("a"))
        assert world.push.covers(key("a"))
        sent = [headers for kind, headers in world.server.calls if kind == "SubscribeServiceRequest"]
        assert sent == [{"accessToken": "old"}, {"accessToken": "new"}]
        assert all(not headers for kind, headers in world.server.calls if kind != "SubscribeServiceRequest")


async def test_grpc_push_does_not_repeat_a_call_with_the_same_token() -> None:
    async with pushing(Account("bad")) as world:
        world.server.refuse[key("a")] = DENIED
        await world.watch(key("a"))
        assert world.server.count("SubscribeServiceRequest") == 1


TLS = Target("nacos.example", 9848, 8848, ssl.create_default_context(), "name.example")


async def test_grpc_push_uses_tls_with_the_name_of_the_certificate() -> None:
    async with pushing(Account("token", targets=[TLS])) as world:
        await world.watch(key("a"))
        assert (world.server.tried, world.server.line.target.name) == ([(9848, True)], "name.example")
        assert world.push.alive


async def test_grpc_push_does_without_tls_if_the_port_has_none(caplog: pytest.LogCaptureFixture) -> None:
    async with pushing(Account(targets=[TLS])) as world:
        world.server.unreachable[9848] = NoTls("reset by peer")
        await world.watch(key("a"))
        assert world.push.alive and world.server.tried == [(9848, True), (9848, False)]
        assert "has no TLS" in caplog.text
        world.push.follow()
        assert not world.server.line.closed, "it is still a server of the list"


@pytest.mark.parametrize("error", [NoTls("reset"), ssl.SSLCertVerificationError("self-signed certificate")])
async def test_grpc_push_sends_no_token_without_tls_and_accepts_no_bad_certificate(error: OSError) -> None:
    tokens = ["token"] if isinstance(error, NoTls) else []
    async with pushing(Account(*tokens, targets=[TLS])) as world:
        world.server.unreachable[9848] = error
        await world.watch(key("a"))
        assert not world.push.alive and world.server.lines == []
        assert str(error) in world.push.unavailable


@pytest.mark.parametrize("server_has_tls", [True, False])
async def test_grpc_push_from_a_stand_in_with_and_without_tls(server_has_tls: bool) -> None:
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(CERTIFICATES / "server.pem")
    inside.set_alpn_protocols(["h2"])
    ours, clock = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem")), SystemClock()
    ours.set_alpn_protocols(["h2"])
    server = GrpcNacos("v1+v2", Published(EmbeddedRegistry(clock)), clock, tls=inside if server_has_tls else None)
    await server.start(free_port())
    target = Target("127.0.0.1", server.port, tls=ours, name="localhost")
    push = GrpcPush(Account(targets=[target]), PushPolicy(), clock, lambda: 0.5)
    try:
        push.watch([key("a")])
        for _ in range(1000):
            if push.alive:
                break
            await asyncio.sleep(0.01)
        assert push.alive and push.covers(key("a"))
    finally:
        await push.close()
        await server.stop()
        await server.published.close()


# --- the end -------------------------------------------------------------------------------------------------------


async def test_grpc_push_close_ends_every_task() -> None:
    before = asyncio.all_tasks()
    async with pushing() as world:
        world.server.refuse[key("b")] = NO_RIGHT
        await world.watch(key("a"), key("b"), DEV_A)
        world.server.up.clear()
        await world.watch(key("a"), key("b"), key("c"), DEV_A)
    assert asyncio.all_tasks() == before
    assert all(line.closed for line in world.server.lines)
    assert not world.push.alive
    world.push.watch([key("e")])
    await settle()
    assert asyncio.all_tasks() == before


async def test_grpc_push_close_before_anything_is_watched() -> None:
    async with pushing():
        pass


# --- r-nacos -------------------------------------------------------------------------------------------------------

BINARY = rnacos_binary()


def register(server: RNacos, service: str, ip: str) -> None:
    """Registers directly at the server."""
    query = urllib.parse.urlencode({"serviceName": service, "ip": ip, "port": 80})
    request = urllib.request.Request(f"{server.url}/nacos/v1/ns/instance?{query}", method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.skipif(BINARY is None, reason="no r-nacos")
async def test_grpc_push_from_r_nacos_survives_its_restart_with_every_subscription() -> None:
    assert BINARY is not None
    names = [f"pushed-{n}" for n in range(50)]
    with RNacos(BINARY) as server:
        clock = SystemClock()
        registry = NacosRegistry(NacosPolicy(ServersPolicy((server.url,))), clock)
        push = GrpcPush(registry.own_client, PushPolicy(), clock, lambda: 0.5)
        reported: asyncio.Queue[Changed] = asyncio.Queue()

        async def listen() -> None:
            async for changed in push.changes():
                reported.put_nowait(changed)

        async def until(condition: Callable[[], bool]) -> None:
            for _ in range(600):
                if condition():
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("it did not come to that in 30 s")

        async def lists(services: set[ServiceKey], ip: str) -> None:
            while services:
                changed = await asyncio.wait_for(reported.get(), 30)
                if changed.pushed is not None and changed.pushed.find(ip, 80) is not None:
                    services.discard(changed.key)

        listening = spawn(listen(), name="listening")
        try:
            push.watch([key(name) for name in names])
            await until(lambda: push.alive)
            assert all(push.covers(key(name)) for name in names)
            register(server, names[3], "10.0.0.1")
            await lists({key(names[3])}, "10.0.0.1")

            await asyncio.to_thread(server.terminate)
            await until(lambda: not push.alive)
            await asyncio.to_thread(server.start)
            await until(lambda: push.alive)
            for name in names:
                register(server, name, "10.0.0.2")
            await lists({key(name) for name in names}, "10.0.0.2")
        finally:
            await push.close()
            await registry.close()
            await listening

"""UDP push over real sockets of this host; time stands still but where a test moves it."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvloop

from nacos_proxy.background.udp_push import UdpPolicy, UdpPush, allowed
from nacos_proxy.catalog.udp_subscribers import Subscription, UdpSubscribers, UdpSubscribersPolicy
from nacos_proxy.model.services import Change, Snapshot
from nacos_proxy.wire.nacos.base import PushAddress, ReadService
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import FakeClock

JAVA = "Nacos-Java-Client:v1.4.6"
ONE, TWO = snapshot(instance()), snapshot(instance(), instance("10.0.0.2", weight=3.0))


class Client(asyncio.DatagramProtocol):
    """A legacy client's socket: what came, and from where."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.came.put_nowait((data, addr))

    @property
    def port(self) -> int:
        assert self.transport is not None
        return int(self.transport.get_extra_info("sockname")[1])

    async def packet(self) -> tuple[bytes, Any]:
        return await asyncio.wait_for(self.came.get(), 60)

    async def pushed(self) -> dict[str, Any]:
        data, _ = await self.packet()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)

    def ack(self, push: dict[str, Any], where: Any, reference: Any = None) -> None:
        assert self.transport is not None
        answer = {"type": "push-ack", "lastRefTime": reference or push["lastRefTime"], "data": ""}
        self.transport.sendto(json.dumps(answer).encode(), where)


@dataclass
class World:
    push: UdpPush
    subscribers: UdpSubscribers
    clock: FakeClock
    client: Client
    encoded: list[ReadService] = field(default_factory=list)

    def list(self, shown: Snapshot = ONE, agent: str = JAVA, ip: str = "127.0.0.1", clusters: str = "") -> None:
        wish = PushAddress(ip, self.client.port, agent)
        self.push.listed(ReadService(shown.key, clusters, push=wish), shown)

    async def none_comes(self) -> None:
        """Nothing is on its way: what is sent now comes first."""
        assert self.client.transport is not None
        self.client.transport.sendto(b"marker", ("127.0.0.1", self.client.port))
        assert (await self.client.packet())[0] == b"marker"


@asynccontextmanager
async def udp(encode: Any = None, host: str = "127.0.0.1", **policy: Any) -> AsyncIterator[World]:
    clock, subscribers = FakeClock(), UdpSubscribers(UdpSubscribersPolicy())
    seen: list[ReadService] = []

    def text(call: ReadService, shown: Snapshot) -> bytes:
        seen.append(call)
        return json.dumps([i.ip for i in shown.instances]).encode()

    push = UdpPush(subscribers, encode or text, clock, UdpPolicy(**policy))
    await push.start(host)
    _, client = await asyncio.get_running_loop().create_datagram_endpoint(Client, local_addr=("127.0.0.1", 0))
    try:
        yield World(push, subscribers, clock, client, seen)
    finally:
        assert client.transport is not None
        client.transport.close()
        await push.stop()


async def test_listed_begins_a_subscription_that_gets_each_change() -> None:
    async with udp() as world:
        world.list(clusters="c1,c2")
        first = await world.client.pushed()
        assert (first["type"], json.loads(first["data"])) == ("dom", ["10.0.0.1"])
        world.push.follow(Change(ONE, TWO, "poll"))
        second = await world.client.pushed()
        assert json.loads(second["data"]) == ["10.0.0.1", "10.0.0.2"]
        assert second["lastRefTime"] > first["lastRefTime"]
        assert world.encoded == [ReadService(KEY, "c1,c2")] * 2
        assert [s.service for s in world.push.subscribers] == [KEY]


async def test_restore_keeps_subscriptions_whose_address_is_allowed() -> None:
    async with udp() as world:
        own = Subscription(KEY, ("127.0.0.1", world.client.port), "", JAVA, "", 0.0)
        world.push.restore([own, replace(own, address=("192.0.2.1", 5000)), replace(own, address=("::1", 5000))])
        world.push.follow(Change(ONE, TWO, "poll"))
        assert json.loads((await world.client.pushed())["data"]) == ["10.0.0.1", "10.0.0.2"]
        assert len(world.subscribers) == 1


async def test_listed_again_sends_nothing_and_other_services_neither() -> None:
    async with udp() as world:
        world.list()
        await world.client.pushed()
        world.list()
        other = Snapshot.of(key("other"), [instance()])
        world.push.follow(Change(Snapshot(other.key), other, "poll"))
        await world.none_comes()


async def test_follow_sends_a_change_to_thousands_in_pieces_and_only_the_last_state() -> None:
    """3,000 of one client held the loop for as long as it takes to compress 3,000 lists."""
    async with udp() as world:
        for port in range(1, 3001):
            world.push.listed(ReadService(KEY, push=PushAddress("127.0.0.1", port, JAVA)), ONE)
        world.list()
        await world.client.pushed()
        sent = world.push.sent
        world.push.follow(Change(ONE, TWO, "poll"))
        world.push.follow(Change(TWO, ONE, "poll"))
        assert world.push.sent - sent <= 50
        await world.clock.advance(0.01)
        assert world.push.sent - sent <= 100
        await world.clock.advance(1.0)
        assert 3001 <= world.push.sent - sent <= 3051, "those that heard of the first change hear of the second, too"
        assert json.loads((await world.client.pushed())["data"]) == ["10.0.0.1"]


async def test_follow_goes_on_after_a_push_that_fails() -> None:
    def text(call: ReadService, shown: Snapshot) -> bytes:
        if call.clusters == "bad":
            raise ValueError("a bug of ours")
        return b"[]"

    async with udp(text) as world:
        with pytest.raises(ValueError, match="a bug"):
            world.list(clusters="bad")
        world.list(clusters="good")
        await world.client.pushed()
        with pytest.raises(ValueError, match="a bug"):
            world.push.follow(Change(ONE, TWO, "poll"))
        await world.clock.advance(0.1)
        await world.client.pushed()


async def test_follow_compresses_only_a_large_text() -> None:
    text = json.dumps(["x" * 5000]).encode()
    async with udp(lambda call, shown: text) as world:
        world.list()
        data, _ = await world.client.packet()
        assert data[:2] == b"\x1f\x8b"
        assert json.loads(gzip.decompress(data))["data"] == text.decode()
    async with udp() as world:
        world.list()
        assert (await world.client.packet())[0][:1] == b"{"


async def test_follow_counts_what_is_too_large_for_a_datagram() -> None:
    noise = "".join(chr(0x4E00 + (n * 7919) % 20_000) for n in range(100_000))
    async with udp(lambda call, shown: json.dumps(noise, ensure_ascii=False).encode()) as world:
        world.list()
        assert (world.push.too_large, world.push.sent) == (1, 0)
        await world.none_comes()


async def test_push_without_an_ack_is_repeated_after_10_s_and_then_given_up() -> None:
    async with udp() as world:
        world.list()
        first, _ = await world.client.packet()
        await world.clock.advance(9.0)
        await world.none_comes()
        await world.clock.advance(2.0)
        assert (await world.client.packet())[0] == first
        await world.clock.advance(30.0)
        await world.none_comes()
        given = {"sent": 2, "acknowledged": 0, "given_up": 1, "refused": 0, "too_large": 0}
        assert world.push.tallies() == given


async def acked(world: World, times: int) -> None:
    while world.subscribers.acknowledged < times:
        await asyncio.sleep(0)


@pytest.mark.parametrize("as_text", [False, True])
async def test_push_with_an_ack_is_not_repeated(as_text: bool) -> None:
    async with udp() as world:
        world.list()
        data, where = await world.client.packet()
        push = json.loads(data)
        world.client.ack(push, where, str(push["lastRefTime"]) if as_text else None)
        await asyncio.wait_for(acked(world, 1), 60)
        await world.clock.advance(30.0)
        await world.none_comes()
        assert (world.push.tallies()["acknowledged"], world.push.tallies()["given_up"]) == (1, 0)


async def test_ack_counts_from_a_client_whose_numbers_are_all_doubles() -> None:
    """The Node SDK's are, and it sends the number back as it has read it."""
    async with udp() as world:
        world.list()
        for number in range(1, 4):
            data, where = await world.client.packet()
            world.client.ack({"lastRefTime": int(float(json.loads(data)["lastRefTime"]))}, where)
            await asyncio.wait_for(acked(world, number), 60)
            world.push.follow(Change(ONE, TWO, "poll"))


async def test_datagram_received_ignores_nonsense() -> None:
    async with udp() as world:
        world.list()
        data, where = await world.client.packet()
        assert world.client.transport is not None
        for nonsense in (b"", b"\xff", b"[]", b"{}", b'{"type":"push-ack"}', b'{"type":"push-ack","lastRefTime":"x"}'):
            world.client.transport.sendto(nonsense, where)
        world.client.ack(json.loads(data), where, 1)
        world.client.ack(json.loads(data), where)
        await asyncio.wait_for(acked(world, 1), 60)
        assert world.subscribers.acknowledged == 1


async def test_subscription_expires_60_s_after_the_last_list() -> None:
    async with udp() as world:
        world.list()
        await world.client.pushed()
        await world.clock.advance(59.0)
        world.list()  # goes on
        await world.client.pushed()  # the one sent again meanwhile
        await world.clock.advance(59.0)
        world.push.follow(Change(ONE, TWO, "poll"))
        assert json.loads((await world.client.pushed())["data"]) == ["10.0.0.1", "10.0.0.2"]
        await world.clock.advance(2.0)
        world.push.follow(Change(TWO, ONE, "poll"))
        await world.none_comes()
        assert [s.service for s in world.push.subscribers] == []


async def test_listed_by_an_agent_that_takes_no_push_is_ignored() -> None:
    async with udp() as world:
        world.list(agent="Nacos-Python-Client:v0.1.16")
        world.list(agent="")
        world.push.listed(ReadService(KEY), ONE)
        await world.none_comes()
        assert [s.service for s in world.push.subscribers] == []


ODD_SCOPES = ["::1%a\0b", "fe80::1%a\0b", "::1%é", "fe80::1%\ud800", "::1%" + "9" * 5000]
FOREIGN = [
    *ODD_SCOPES,
    "192.0.2.1",
    "224.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "::ffff:192.0.2.1",
    "2001:db8::1",
    "localhost",
    "x",
]


@pytest.mark.parametrize("ip", FOREIGN)
async def test_allowed_refuses_an_address_of_another_host(ip: str) -> None:
    async with udp() as world:
        world.list(ip=ip)
        assert (world.push.refused, world.push.sent, [s.service for s in world.push.subscribers]) == (1, 0, [])


@pytest.mark.parametrize("ip", ODD_SCOPES)
def test_allowed_refuses_a_scope_that_no_socket_accepts(ip: str) -> None:
    """asyncio closes its socket for good over a NUL, uvloop raises over what is not ASCII."""
    everywhere = (ipaddress.ip_network("::/0"),)
    assert not allowed(ip, ()) and not allowed(ip, everywhere)
    assert allowed("fe80::5%eth0", everywhere)


def test_allowed_accepts_networks_of_the_operator() -> None:
    networks = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32"))
    assert allowed("192.0.2.7", networks) and allowed("2001:db8::1", networks)
    assert not allowed("192.0.3.7", networks)
    assert allowed("127.0.0.1", ()) and allowed("::1", ())


def test_listed_with_an_address_of_the_other_family_fails_on_no_loop() -> None:
    """uvloop raises where asyncio only tells `error_received`, and neither a list nor a follower may fail of it."""

    async def play() -> None:
        async with udp() as world:
            world.list(ip="::1")
            assert world.push.refused == 1
            world.list(ip="::ffff:127.0.0.1")
            data, where = await world.client.packet()
            world.client.ack(json.loads(data), where)
            await asyncio.wait_for(acked(world, 1), 60)
        async with udp(host="::") as world:
            world.list()
            world.push.follow(Change(ONE, TWO, "poll"))
            await world.client.packet()
            data, where = await world.client.packet()
            world.client.ack(json.loads(data), where)
            await asyncio.wait_for(acked(world, 1), 60)
            world.list(ip="::1")
            assert (world.push.refused, world.push.sent) == (0, 3)

    asyncio.run(play())
    uvloop.run(play())


async def test_follow_after_stop_sends_nothing() -> None:
    async with udp() as world:
        world.list()
        await world.client.pushed()
        await world.push.stop()
        world.push.follow(Change(ONE, TWO, "poll"))
        await world.none_comes()

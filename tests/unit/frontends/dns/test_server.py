from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import dns.message
import pytest
import uvloop

from nacos_proxy.app.listening import dns_sockets
from nacos_proxy.frontends.dns.server import COST, IDLE, MAX_TURN, PIPELINED, TURN, DnsPolicy, DnsServer, TcpConnection
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.unit.frontends.dns.conftest import World, make_world


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@asynccontextmanager
async def serving(policy: DnsPolicy | None = None) -> AsyncIterator[tuple[World, DnsServer, int]]:
    world = make_world()
    world.shelf.services[KEY] = snapshot(instance("10.0.0.1"), instance("10.0.0.2"))
    server = DnsServer(world.responder, policy or DnsPolicy(), world.clock, world.agent.supervisor)
    await server.start(dns_sockets([("127.0.0.1", 0)]))
    try:
        yield world, server, int(server.addresses[0].rpartition(":")[2])
    finally:
        await server.stop()
        await world.agent.close()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def query(name: str = "orders.nacos.") -> dns.message.Message:
    return dns.message.make_query(name, "A")


async def udp(port: int, *packets: bytes) -> list[bytes]:
    """Sends datagrams and returns as many answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(("127.0.0.1", port))
        for packet in packets:
            client.send(packet)
        found: list[bytes] = []
        while len(found) < len(packets):
            try:
                found.append(client.recv(65536))
            except BlockingIOError:
                await asyncio.sleep(0.001)
        return found


async def test_server_answers_by_udp_and_repeats_with_the_id_of_each_query() -> None:
    async with serving() as (world, server, port):
        first = query()
        (answer,) = await udp(port, first.to_wire())
        assert first.is_response(dns.message.from_wire(answer))
        orders = set()
        for number in range(8):
            again = query()
            again.id = number
            (answer,) = await udp(port, again.to_wire())
            message = dns.message.from_wire(answer)
            assert again.is_response(message)
            orders.add(tuple(str(rdata) for rdata in message.answer[0]))
        assert orders == {("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")}
        assert world.responder.counts.repeated == 8
        assert server.status()["answers"] == {"NOERROR": 9}


async def test_server_echoes_the_case_of_each_question() -> None:
    async with serving() as (_, _, port):
        for name in ("ORDERS.nacos.", "orders.NACOS.", "OrDeRs.nAcOs."):
            for _ in range(2):
                (answer,) = await udp(port, query(name).to_wire())
                assert dns.message.from_wire(answer).question[0].name.to_text() == name


async def test_server_answers_a_burst_in_several_turns() -> None:
    async with serving() as (world, _, port):
        names = [query(f"{n:08x}.addr.nacos.").to_wire() for n in range(3 * TURN // COST)]
        assert len(await udp(port, *names)) == len(names)
        assert len(await udp(port, *names, *names)) == 2 * len(names)
        assert world.responder.counts.repeated >= len(names)


async def test_server_survives_hostile_datagrams() -> None:
    generator = random.Random(1)
    async with serving() as (_, _, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(300):
                packet = bytearray(query().to_wire() + generator.randbytes(generator.randrange(40)))
                for _ in range(generator.randrange(6)):
                    packet[generator.randrange(len(packet))] = generator.randrange(256)
                client.sendto(bytes(packet), ("127.0.0.1", port))
            client.sendto(b"", ("127.0.0.1", port))
            client.sendto(bytes(60_000), ("127.0.0.1", port))
            await settle(100)
            (answer,) = await udp(port, query().to_wire())
            assert len(dns.message.from_wire(answer).answer[0]) == 2


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


def framed(*packets: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(packet)) + packet for packet in packets)


async def read(reader: asyncio.StreamReader) -> dns.message.Message:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    return dns.message.from_wire(await reader.readexactly(length))


async def test_server_answers_pipelined_queries_by_tcp_in_pieces() -> None:
    async with serving() as (_, server, port):
        reader, writer = await connected(port)
        queries = [query(name) for name in ("orders.nacos.", "0a000001.addr.nacos.", "example.com.") * PIPELINED]
        data = framed(*(q.to_wire() for q in queries))
        for start in range(0, len(data), 700):
            writer.write(data[start : start + 700])
            await writer.drain()
        answers = [await read(reader) for _ in queries]
        assert sorted(a.id for a in answers) == sorted(q.id for q in queries)
        assert len(server.connections) == 1
        writer.write(framed(query().to_wire()))
        writer.write_eof()
        assert (await read(reader)).answer
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not server.connections)
        assert server.shares.total == 0


async def test_server_finishes_a_waiting_answer_after_the_client_has_sent_all() -> None:
    async with serving() as (_, _, port):
        reader, writer = await connected(port)
        writer.write(framed(query("slow.nacos.").to_wire()))
        writer.write_eof()
        assert (await read(reader)).rcode().name == "NXDOMAIN"
        assert await reader.read() == b""
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("data", [framed(bytes(3000)), framed(b""), framed(b"\0\1\x80\0" + bytes(8))])
async def test_server_ends_a_tcp_connection_without_queries(data: bytes) -> None:
    async with serving() as (_, _, port):
        reader, writer = await connected(port)
        writer.write(data)
        assert await ended(reader)
        writer.close()


async def test_server_ends_idle_tcp_connections_and_those_that_send_slowly() -> None:
    async with serving() as (world, server, port):
        reader, writer = await connected(port)
        writer.write(b"\0")
        await until(lambda: len(server.connections) == 1)
        await world.clock.advance(IDLE)
        assert len(server.connections) == 1
        await world.clock.advance(2)
        assert await ended(reader)
        writer.close()


async def test_server_does_not_read_on_while_a_client_reads_no_answers() -> None:
    async with serving() as (world, server, port):
        world.shelf.services[KEY] = snapshot(*(instance(f"10.0.{n // 200}.{n % 200}") for n in range(900)))
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(BlockingIOError):
            client.connect(("127.0.0.1", port))
        await until(lambda: len(server.connections) == 1)
        data = framed(*(query().to_wire() for _ in range(500)))
        sent = 0
        for _ in range(2000):
            try:
                sent += client.send(data)
            except BlockingIOError:
                await asyncio.sleep(0.001)
        answered = world.responder.counts.answers["NOERROR"]
        assert answered < sent / len(query().to_wire()) / 10
        await world.clock.advance(IDLE + 2)
        await until(lambda: not server.connections)
        client.close()


async def test_server_bounds_the_tcp_connections_of_a_client() -> None:
    async with serving(DnsPolicy(max_connections=4)) as (_, server, port):
        pairs = [await connected(port) for _ in range(3)]
        await until(lambda: server.responder.counts.dropped["connection refused"] == 1)
        assert len(server.connections) == 2
        for _, writer in pairs:
            writer.close()


def test_server_allows_this_host_and_named_networks() -> None:
    world = make_world()

    def allows(policy: DnsPolicy, client: str) -> bool:
        return DnsServer(world.responder, policy, world.clock, world.agent.supervisor).allows(client)

    named = DnsPolicy((ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/10")))
    assert [allows(named, client) for client in ("127.0.0.1", "::1", "10.1.1.1", "fe80::1%eth0", "11.1.1.1")] == [
        *([True] * 4),
        False,
    ]
    assert allows(DnsPolicy(None), "11.1.1.1")
    assert not allows(DnsPolicy(), "11.1.1.1")


async def test_server_says_whether_it_serves() -> None:
    async with serving() as (_, server, port):
        assert server.status()["addresses"] == [f"127.0.0.1:{port}"]
        await server.stop()
        assert server.status() == {"state": "off", "reason": "it is stopped"}


class ScriptedSocket:
    """A socket that receives what a test puts in: datagrams, or errors to raise. `refuses`: what `sendto` raises."""

    def __init__(self, *received: bytes | OSError, client: str = "127.0.0.1") -> None:
        self.received = list(received)
        self.sent: list[bytes] = []
        self.refuses: OSError | None = None
        self._client = client

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        if not self.received:
            raise BlockingIOError
        if isinstance(first := self.received.pop(0), OSError):
            raise first
        return first[:size], (self._client, 53_000)

    def sendto(self, data: bytes, client: tuple[str, int]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(data)


class SlowClock(FakeClock):
    """Whatever is done takes long."""

    def now(self) -> float:
        self.jump(2 * MAX_TURN)
        return super().now()


def made(policy: DnsPolicy | None = None, clock: FakeClock | None = None) -> tuple[World, DnsServer]:
    world = make_world()
    return world, DnsServer(world.responder, policy or DnsPolicy(), clock or world.clock, world.agent.supervisor)


SOA = dns.message.make_query("nacos.", "SOA").to_wire()


def test_server_read_udp_goes_on_after_errors_of_the_socket() -> None:
    world, server = made()
    udp: Any = ScriptedSocket(ConnectionRefusedError(), SOA)
    server.read_udp(udp, world.table, True)
    udp.refuses = PermissionError()
    udp.received.append(SOA)
    server.read_udp(udp, world.table, True)
    assert len(udp.sent) == 1
    assert world.responder.counts.dropped["not sent"] == 2


def test_server_read_udp_drops_what_strangers_ask() -> None:
    world, server = made(DnsPolicy((ipaddress.ip_network("10.0.0.0/8"),)))
    stranger: Any = ScriptedSocket(SOA, SOA, client="192.0.2.1")
    server.read_udp(stranger, world.table, False)
    assert (stranger.sent, world.responder.counts.dropped["not allowed"]) == ([], 2)
    friend: Any = ScriptedSocket(SOA, SOA, client="10.0.0.1")
    server.read_udp(friend, world.table, False)
    assert len(friend.sent) == 2


def test_server_read_udp_ends_its_turn_after_so_many_answers_or_so_long() -> None:
    world, server = made()
    udp: Any = ScriptedSocket(*[SOA] * 200)
    server.read_udp(udp, world.table, True)  # the first one is parsed
    assert len(udp.sent) == 1 + TURN - COST
    different = [dns.message.make_query(f"{n}.example.com.", "A").to_wire() for n in range(200)]
    udp = ScriptedSocket(*different)
    server.read_udp(udp, world.table, True)
    assert len(udp.sent) == TURN // COST
    world, server = made(clock=SlowClock())
    udp = ScriptedSocket(*different)
    server.read_udp(udp, world.table, True)
    assert len(udp.sent) == 1


class ScriptedTransport:
    """What a `TcpConnection` asks of its transport."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.ended = False

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return "127.0.0.1", 53_000

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.ended

    def abort(self) -> None:
        self.ended = True

    close = abort


async def test_tcp_connection_answers_no_more_until_its_answers_are_read() -> None:
    _, server = made()
    transport: Any = ScriptedTransport()
    connection = TcpConnection(server)
    connection.connection_made(transport)
    connection.pause_writing()
    connection.data_received(framed(*[SOA] * 100))
    assert (transport.written, transport.reading) == ([], False)
    connection.resume_writing()
    await settle(50)
    assert (len(transport.written), transport.reading) == (100, True)
    connection.connection_lost(None)


async def test_tcp_connection_ends_its_turn_after_some_time() -> None:
    _, server = made(clock=SlowClock())
    transport: Any = ScriptedTransport()
    connection = TcpConnection(server)
    connection.connection_made(transport)
    connection.data_received(framed(*[SOA] * 5))
    assert len(transport.written) == 1
    await settle()
    assert len(transport.written) == 5


async def test_tcp_connection_drops_an_answer_that_comes_too_late() -> None:
    world, server = made()
    transport: Any = ScriptedTransport()
    connection = TcpConnection(server)
    connection.connection_made(transport)
    connection.data_received(framed(query().to_wire()))
    connection.connection_lost(None)
    connection.abort()
    await settle()
    assert (transport.written, world.responder.waiting.total) == ([], 0)


async def test_server_stop_ends_open_connections() -> None:
    async with serving() as (_, server, port):
        reader, writer = await connected(port)
        await until(lambda: len(server.connections) == 1)
        await server.stop()
        assert await ended(reader)
        writer.close()

"""UDP push from the upstream: which servers are asked for it, and what a datagram does."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.nacos.servers import Server
from nacos_proxy.upstream.nacos.udp_receiver import MAX_NAMESPACES, PushReceiver
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.udp import read_ack, write_push
from nacos_proxy.wire.nacos.v1 import write_list
from tests.helpers.build import KEY, key


def server(version: str, host: str = "127.0.0.1") -> Server:
    made = Server(f"http://{host}:8848", "/nacos")
    made.capabilities.set_version({"version": version})
    return made


def asked(receiver: PushReceiver, of: Server, about: ServiceKey = KEY) -> HttpRequest:
    return receiver.with_push_address(of, about, write_list(about))


@pytest.fixture
async def receiver() -> AsyncIterator[PushReceiver]:
    made = PushReceiver(("1.",))
    yield made
    made.stop()


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        yield made


async def exchange(upstream: socket.socket, receiver: PushReceiver, *packets: bytes) -> bytes:
    """The answer to the last of them."""
    port = int(dict(asked(receiver, server("1.4.8")).query)["udpPort"])
    loop = asyncio.get_running_loop()
    for packet in packets:
        upstream.sendto(packet, ("127.0.0.1", port))
    return await loop.sock_recv(upstream, 4096)


async def test_push_receiver_subscribes_servers_of_its_versions_with_the_address_that_faces_them(
    receiver: PushReceiver,
) -> None:
    old, new = server("1.4.8"), server("2.5.1", "127.0.0.2")
    await receiver.subscribe(old)
    await receiver.subscribe(new)
    assert not receiver.covers([old]), "not asked yet"
    request = asked(receiver, old)
    query = dict(request.query)
    assert (query["clientIP"], query["app"], query["serviceName"]) == ("127.0.0.1", "nacos-proxy", KEY.grouped)
    assert int(query["udpPort"]) > 0
    assert request.headers["user-agent"].startswith("Nacos-Go-Client:")
    assert asked(receiver, new) == write_list(KEY)
    assert receiver.covers([old]) and not receiver.covers([old, new]) and not receiver.covers([])
    old.capabilities.forget()
    assert asked(receiver, old) == write_list(KEY)
    assert not receiver.covers([old])


async def test_push_receiver_acknowledges_a_push_and_hints_each_namespace_that_was_listed(
    receiver: PushReceiver, upstream: socket.socket
) -> None:
    hinted: list[ServiceKey] = []
    receiver.hint = hinted.append
    old = server("1.4.8")
    await receiver.subscribe(old)
    both = {KEY, key(namespace="dev")}
    for about in (*both, key("another")):
        asked(receiver, old, about)
    packet = write_push(json.dumps({"name": KEY.grouped, "hosts": ["x" * 99] * 99}).encode(), 77)
    assert packet is not None
    assert read_ack(await exchange(upstream, receiver, packet)) == 77
    assert (set(hinted), len(hinted), receiver.received) == (both, 2, 1)


@pytest.mark.parametrize(
    "noise", [b"", b"\x1f\x8b", b"[]", b'{"type":"dom"}', b'{"type":"dom","data":"7","lastRefTime":1}']
)
async def test_push_receiver_survives_datagrams_that_are_no_push(
    receiver: PushReceiver, upstream: socket.socket, noise: bytes
) -> None:
    await receiver.subscribe(server("1.4.8"))
    packet = write_push(json.dumps({"name": "DEFAULT_GROUP@@nobody-asked", "hosts": []}).encode(), 5)
    assert packet is not None
    assert read_ack(await exchange(upstream, receiver, noise, packet)) == 5
    assert receiver.received == 1


async def test_push_receiver_ignores_strangers_and_logs_each_once(
    receiver: PushReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    await receiver.subscribe(server("1.4.8"))
    packet = write_push(b'{"name":"DEFAULT_GROUP@@orders"}', 5)
    assert packet is not None
    assert receiver.receive(packet, "127.0.0.2") is receiver.receive(packet, "127.0.0.2") is None
    assert receiver.receive(packet, "127.0.0.1") is not None
    assert receiver.tallies() == {"received": 1, "ignored": 2}
    assert caplog.text.count("ignored UDP push from 127.0.0.2") == 1


async def test_push_receiver_opens_one_socket_for_the_nodes_of_a_cluster() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver = PushReceiver(("1.",), port)
    nodes = [Server(f"http://127.0.0.1:{8848 + number}", "/nacos") for number in range(3)]
    for node in nodes:
        node.capabilities.set_version({"version": "1.4.8"})
    await asyncio.gather(*map(receiver.subscribe, nodes))
    assert [dict(asked(receiver, node).query)["udpPort"] for node in nodes] == [str(port)] * 3
    assert receiver.covers(nodes)
    receiver.retain(nodes[:1])
    assert asked(receiver, nodes[2]) == write_list(KEY)
    receiver.stop()
    await receiver.subscribe(nodes[2])
    assert asked(receiver, nodes[2]) == write_list(KEY), "a closed receiver opens no socket"


async def test_push_receiver_hints_a_name_in_its_last_namespaces(receiver: PushReceiver) -> None:
    hinted: list[ServiceKey] = []
    receiver.hint = hinted.append
    old = server("1.4.8")
    await receiver.subscribe(old)
    for number in range(1000):
        asked(receiver, old, key(namespace=f"n{number}"))
    packet = write_push(json.dumps({"name": KEY.grouped}).encode(), 5)
    assert packet is not None and receiver.receive(packet, "127.0.0.1") is not None
    assert [k.namespace for k in hinted] == [f"n{number}" for number in range(1000 - MAX_NAMESPACES, 1000)]


async def test_push_receiver_subscribe_raises_if_no_socket_can_be_opened() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        receiver = PushReceiver(("1.",), taken.getsockname()[1])
        old = server("1.4.8")
        with pytest.raises(OSError, match="in use"):
            await receiver.subscribe(old)
        assert asked(receiver, old) == write_list(KEY)


async def test_push_receiver_subscribe_raises_if_the_name_does_not_resolve(receiver: PushReceiver) -> None:
    lost = server("1.4.8", "no..name")
    with pytest.raises(OSError):
        await receiver.subscribe(lost)
    assert asked(receiver, lost) == write_list(KEY)

"""The process around the app: listening sockets, TLS, the service manager, reload and stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from nacos_proxy.app.failures import CannotStart
from nacos_proxy.app.listening import (
    acceptors,
    address_of,
    beyond_loopback,
    dns_sockets,
    grpc_socket,
    listen,
    plain_socket,
    sockets,
    tls_context,
    unlink_own,
    url_of,
)
from nacos_proxy.app.process import Server, notify_systemd
from nacos_proxy.app.settings import Settings
from nacos_proxy.runtime import Supervisor, SystemClock
from tests.helpers.live import free_port

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """What a test leaves open is closed."""
    found: list[socket.socket] = []
    yield found
    for listener in found:
        listener.close()


# listening


def test_sockets_listen_at_once_without_nagle(opened: list[socket.socket]) -> None:
    opened += sockets(*LOOPBACK)
    (listener,) = opened
    assert listener.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    socket.create_connection(listener.getsockname(), timeout=5).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_sockets_name_a_port_in_use_even_by_a_process_that_is_starting(opened: list[socket.socket], host: str) -> None:
    opened += sockets(host, 0)
    port = opened[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    with pytest.raises(CannotStart, match=re.escape(f"{shown}:{port} is in use by another nacos-proxy or")):
        sockets(host, port)


def test_sockets_share_a_port_with_processes_that_do_the_same(opened: list[socket.socket]) -> None:
    opened += sockets(*LOOPBACK, reuse_port=True)
    port = opened[0].getsockname()[1]
    opened += sockets("127.0.0.1", port, reuse_port=True)
    assert [listener.getsockname()[1] for listener in opened] == [port, port]
    with pytest.raises(CannotStart, match="in use"):
        sockets("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_sockets_name_an_address_of_another_host(host: str) -> None:
    with pytest.raises(CannotStart, match=f"cannot listen on {host}:0: [A-Z]"):
        sockets(host, 0)


# on a Unix socket


def test_sockets_make_a_unix_socket_for_its_owner_and_group(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = tmp_path / "proxy.sock"
    opened += sockets("", 0, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert url_of(opened[0], tls=False) == f"unix:{path}"


@pytest.mark.parametrize("umask", [0, 0o077])
def test_sockets_make_a_unix_socket_with_its_mode_whatever_the_umask(
    tmp_path: Path, opened: list[socket.socket], umask: int
) -> None:
    before = os.umask(umask)
    try:
        opened += sockets("", 0, tmp_path / "proxy.sock")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "proxy.sock").stat().st_mode) == 0o660


@pytest.mark.parametrize("to", ["file", "proxy.sock", "nothing"])
def test_sockets_refuse_a_symlink_for_a_unix_socket(tmp_path: Path, opened: list[socket.socket], to: str) -> None:
    (tmp_path / "file").touch(0o640)
    opened += sockets("", 0, tmp_path / "proxy.sock")
    (tmp_path / "link").symlink_to(tmp_path / to)
    with pytest.raises(CannotStart, match="exists and is not a socket"):
        sockets("", 0, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_sockets_replace_a_unix_socket_that_nobody_listens_on(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = tmp_path / "proxy.sock"
    for dead in sockets("", 0, path):
        dead.close()
    opened += sockets("", 0, path)


def test_sockets_refuse_a_unix_socket_in_use(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = tmp_path / "proxy.sock"
    opened += sockets("", 0, path)
    with pytest.raises(CannotStart, match="is in use by another nacos-proxy; choose another --uds"):
        sockets("", 0, path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_sockets_refuse_a_unix_socket_whose_listener_is_busy(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = tmp_path / "proxy.sock"
    listener = socket.socket(socket.AF_UNIX)
    opened.append(listener)
    listener.bind(str(path))
    listener.listen(0)
    for _ in range(2):  # one more than it queues
        client = socket.socket(socket.AF_UNIX)
        opened.append(client)
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.connect(str(path))
    with pytest.raises(CannotStart, match="is in use"):
        sockets("", 0, path)


def test_sockets_refuse_a_file_for_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotStart, match="exists and is not a socket"):
        sockets("", 0, path)
    assert path.read_text() == "data"


@pytest.mark.parametrize("name", ["x" * 200, "no/such/directory"])
def test_sockets_name_an_impossible_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotStart, match=r"cannot listen on .*: [A-Z].+") as refused:
        sockets("", 0, tmp_path / name)
    assert "None" not in str(refused.value)


# what the address says


def test_grpc_socket_listens_on_the_http_port_plus_1000(opened: list[socket.socket]) -> None:
    opened += sockets(*LOOPBACK)
    port = opened[0].getsockname()[1]
    if port + 1000 > 65535:
        with pytest.raises(CannotStart, match=f"{port + 1000} is no port; set grpc_port"):
            grpc_socket("", 0, opened)
        return
    opened.append(grpc_socket("elsewhere", 0, opened))
    assert address_of(opened[1]) == f"127.0.0.1:{port + 1000}"
    with pytest.raises(CannotStart, match=f"127.0.0.1:{port + 1000} is in use .* choose another grpc_port"):
        grpc_socket("", 0, opened[:1])


def test_plain_socket_names_the_setting_whose_port_is_taken() -> None:
    with plain_socket("127.0.0.1:0", "agent_check") as first:
        taken = address_of(first)
        with pytest.raises(CannotStart, match=f"{re.escape(taken)} is in use .* choose another agent_check"):
            plain_socket(taken, "agent_check")
    with plain_socket("[::1]:0", "agent_check") as other:
        assert address_of(other).startswith("[::1]:")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_dns_sockets_have_one_port_for_udp_and_tcp(opened: list[socket.socket], host: str) -> None:
    ((udp, tcp),) = dns_sockets([(host, 0)])
    opened += [udp, tcp]
    assert udp.getsockname() == tcp.getsockname()
    assert (udp.type, tcp.type) == (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    port = udp.getsockname()[1]
    with pytest.raises(CannotStart, match="in use"):
        dns_sockets([(host, 0), (host, port)])


def test_dns_sockets_name_a_port_that_is_taken_for_udp_only(opened: list[socket.socket]) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.append(udp)
    udp.bind(("127.0.0.1", free_port()))  # a port that is free for TCP
    with pytest.raises(CannotStart, match="by UDP: Address already in use"):
        dns_sockets([udp.getsockname()])


def test_grpc_socket_needs_a_port_beside_a_unix_socket(tmp_path: Path, opened: list[socket.socket]) -> None:
    opened += sockets("", 0, tmp_path / "proxy.sock")
    with pytest.raises(CannotStart, match="no HTTP port to count from; set grpc_port"):
        grpc_socket("127.0.0.1", 0, opened)
    free = sockets(*LOOPBACK)[0]
    port = free.getsockname()[1]
    free.close()
    opened.append(grpc_socket("127.0.0.1", port, opened))
    assert opened[1].getsockname() == ("127.0.0.1", port)


def test_url_of_is_the_url_of_a_listener(opened: list[socket.socket]) -> None:
    opened += [*sockets(*LOOPBACK), *sockets("::1", 0)]
    first, second = (listener.getsockname()[1] for listener in opened)
    assert url_of(opened[0], tls=False) == f"http://127.0.0.1:{first}"
    assert url_of(opened[1], tls=True) == f"https://[::1]:{second}"


def test_beyond_loopback_lists_addresses_of_the_sockets(tmp_path: Path, opened: list[socket.socket]) -> None:
    opened += [*sockets(*LOOPBACK), *sockets("::1", 0), *sockets("", 0, tmp_path / "s")]
    assert beyond_loopback(opened) == []
    opened += [*sockets("0.0.0.0", 0), *sockets("::", 0)]
    assert beyond_loopback(opened) == ["0.0.0.0", "::"]


# the server itself


class Notified:
    """A service manager's end of NOTIFY_SOCKET. `said` are the words since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def said(self) -> list[str]:
        words: list[str] = []
        while True:
            try:
                words.append(self.socket.recv(1024).decode())
            except BlockingIOError:
                return words

    async def reloaded(self) -> list[str]:
        """What is said of a reload, once it is over."""
        words: list[str] = []
        while "READY=1" not in words:
            await asyncio.sleep(0.001)
            words += self.said()
        return words


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    manager = Notified(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def served(
    listener: socket.socket, told: list[str], reload: Callable[[], None] | None = None
) -> AsyncIterator[Server]:
    def note() -> None:
        told.append("reloaded")

    config = uvicorn.Config(_app, lifespan="off", log_config=None)
    config.load()
    supervisor = Supervisor(SystemClock())
    server = Server(
        config, lambda: told.append("ready"), lambda: told.append("streams end"), reload or note, supervisor
    )
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    try:
        yield server
    finally:
        await server.shutdown([listener])


async def test_server_notifies_the_service_manager_of_every_step(manager: Notified) -> None:
    told: list[str] = []
    async with served(sockets(*LOOPBACK)[0], told):
        assert (told, manager.said()) == (["ready"], ["READY=1"])
        os.kill(os.getpid(), signal.SIGHUP)
        assert (await manager.reloaded(), told[1:]) == (["RELOADING=1", "READY=1"], ["reloaded"])
    assert (told[2:], manager.said()) == (["streams end"], ["STOPPING=1"])


def test_notify_systemd_reaches_a_name_in_the_abstract_namespace_and_survives_its_absence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"nacos-proxy-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify_systemd("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        notify_systemd("STOPPING=1")
        assert manager.recv(1024) == b"STOPPING=1"


async def test_server_runs_without_a_service_manager() -> None:
    told: list[str] = []
    async with served(sockets(*LOOPBACK)[0], told):
        pass
    assert told == ["ready", "streams end"]


async def test_server_reload_notifies_ready_after_a_failure(
    manager: Notified, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise ValueError("no such file")

    async with served(sockets(*LOOPBACK)[0], [], fails):
        assert manager.said() == ["READY=1"]
        os.kill(os.getpid(), signal.SIGHUP)
        assert await manager.reloaded() == ["RELOADING=1", "READY=1"]
    assert "no such file" in caplog.text


async def test_server_notifies_the_watchdog_twice_in_each_interval(
    manager: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    async with served(sockets(*LOOPBACK)[0], []):
        while manager.said().count("WATCHDOG=1") == 0:
            await asyncio.sleep(0.001)


async def test_server_ignores_a_watchdog_for_another_process(
    manager: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    async with served(sockets(*LOOPBACK)[0], []):
        await asyncio.sleep(0.01)
        assert "WATCHDOG=1" not in manager.said()


@pytest.mark.parametrize(
    "upstream", ["http://127.0.0.1:{}", "localhost:{}", "http://[::1]:{}/nacos", "proxy+http://127.0.0.1:{}"]
)
def test_listen_refuses_the_proxy_itself_as_upstream(upstream: str) -> None:
    """It would wait for itself, and every error would quote another one."""
    port = free_port()
    with pytest.raises(CannotStart, match="is the address on which this proxy listens"):
        listen(Settings(port=port, upstream=(upstream.format(port),), grpc=False))


def test_listen_refuses_its_own_unix_socket_as_upstream(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with pytest.raises(CannotStart, match="is the Unix socket on which this proxy listens"):
        listen(Settings(uds=path, upstream=(f"proxy+unix://{path}",), grpc=False))


def test_listen_shares_both_ports_with_other_processes(opened: list[socket.socket]) -> None:
    port = free_port(and_offset=1000)
    for _ in range(2):
        found = listen(Settings(port=port, reuse_port=True))
        opened += found.reachable
        assert found.no_grpc == ""
    assert sorted(one.getsockname()[1] for one in opened) == [port, port, port + 1000, port + 1000]


def test_listen_knows_the_port_of_an_upstream_without_one() -> None:
    with pytest.raises(CannotStart, match="is the address on which this proxy listens"):
        listen(Settings(host="127.0.0.77", port=8848, upstream=("127.0.0.77",), grpc=False))


def test_sockets_refuse_a_datagram_socket_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        monkeypatch.setattr("nacos_proxy.app.listening.SYSTEMD_FIRST", os.dup(datagrams.fileno()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        with pytest.raises(CannotStart, match="ListenStream"):
            sockets(*LOOPBACK)


def test_unlink_own_removes_our_unix_socket_only(
    tmp_path: Path, opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "proxy.sock"
    opened += [*sockets("", 0, path), *sockets(*LOOPBACK)]
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    unlink_own(opened)
    assert path.exists()  # the service manager's, which listens on
    monkeypatch.delenv("LISTEN_PID")
    unlink_own(opened)
    assert not path.exists()
    unlink_own(opened)


# TLS


def test_tls_context_names_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=f"{tmp_path}/none.pem: No such file"):
        tls_context(tmp_path / "none.pem", None, None)
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(CannotStart, match=f"{tmp_path}/bad.pem with {tmp_path}/key.pem"):
        tls_context(tmp_path / "bad.pem", tmp_path / "key.pem", None)


def test_tls_context_names_an_authority_that_cannot_be_used(tmp_path: Path, certificate: Path) -> None:
    assert tls_context(certificate, None, None).verify_mode == ssl.CERT_NONE
    assert tls_context(certificate, None, certificate).verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(CannotStart, match=f"{tmp_path}/none.pem"):
        tls_context(certificate, None, tmp_path / "none.pem")


def test_tls_context_offers_protocols(certificate: Path) -> None:
    server, client = tls_context(certificate, None, None, ["h2"]), ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_alpn_protocols(["h2"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one, other = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for side in (one, other, one, other):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert one.selected_alpn_protocol() == "h2"


@pytest.fixture
def certificate() -> Path:
    return Path(__file__).parents[2] / "certificates" / "server.pem"


def test_acceptors_let_many_clients_in_within_few_turns_of_the_loop() -> None:
    turns, accepted, open_ones = 0, list[int](), set[asyncio.BaseTransport]()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(turns)
            open_ones.add(transport)
            self.transport = transport

        def connection_lost(self, exc: Exception | None) -> None:
            open_ones.discard(self.transport)

    async def accept_all() -> None:
        nonlocal turns
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Accepted, sock=one) for one in acceptors([listener])]
        while len(accepted) < len(clients):
            turns += 1
            await asyncio.sleep(0)
        for transport in tuple(open_ones):
            transport.close()
        while open_ones:
            await asyncio.sleep(0)
        for server in servers:
            server.close()
            await server.wait_closed()

    with sockets("127.0.0.1", 0)[0] as listener, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(64)]
        uvloop.run(accept_all())
    assert accepted[-1] - accepted[0] < 64 / 4

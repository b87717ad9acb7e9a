"""The process around the app: listening sockets, TLS, signals, systemd, uvicorn.

A graceful stop ends the event streams with a `retry`, stops accepting connections, waits up to `drain_timeout` for
requests under way, then shuts the app down.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
import ssl
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import sdnotify  # pyright: ignore[reportMissingTypeStubs]
import uvicorn

from nacos_proxy.app.setting_types import split_address
from nacos_proxy.frontends.dns.server import Listeners
from nacos_proxy.runtime import Supervisor, SystemClock, stop
from nacos_proxy.wire.nacos.grpc.payload import GRPC_OFFSET

log = logging.getLogger("nacos_proxy.process")

SYSTEMD_FIRST = 3  # sd_listen_fds(3): the first file descriptor that systemd passes
BACKLOG = 2048
UDP_BUFFER = 1 << 20  # bytes of queries that may wait; the system may allow less
MAX_PORT = 65535


class CannotStart(Exception):
    """Its text tells the operator what is wrong and what to do."""


def sockets(host: str, port: int, uds: Path | None = None) -> list[socket.socket]:
    """The listening sockets that systemd passes; else one on `uds`, or on host and port (0: any free port).

    Raises `CannotStart`.
    """
    if inherited := _inherited():
        return inherited
    return [_listen_unix(uds) if uds is not None else _listen_tcp(host, port)]


def grpc_socket(host: str, port: int, listeners: Sequence[socket.socket]) -> socket.socket:
    """The listening socket for gRPC: one that systemd passes as `grpc`, else on `port` (0: that of HTTP + 1000).

    `host` counts only if no other socket has an address. Raises `CannotStart`.
    """
    if inherited := _inherited("grpc"):
        return inherited[0]
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            name: Any = listener.getsockname()
            host, port = str(name[0]), port or int(name[1]) + GRPC_OFFSET
            break
    if not port:
        raise CannotStart("there is no HTTP port to count from; set grpc_port")
    if port > MAX_PORT:
        raise CannotStart(f"{port} is no port; set grpc_port")
    return _listen_tcp(host, port, setting="grpc_port")


def plain_socket(address: str, setting: str) -> socket.socket:
    """A listening TCP socket at `host:port`, which a setting names. Raises `CannotStart`."""
    return _listen_tcp(*split_address(address), setting=setting)


def dns_sockets(addresses: Iterable[tuple[str, int]]) -> list[Listeners]:
    """The pairs of sockets that systemd passes as `dns`; else one for each address (port 0: a free one).

    Raises `CannotStart`.
    """
    by_address: dict[Any, dict[int, socket.socket]] = {}
    for inherited in _inherited("dns"):
        by_address.setdefault(inherited.getsockname()[:2], {})[inherited.type] = inherited
    found: list[Listeners] = []
    for address, kinds in by_address.items():
        if kinds.keys() != {socket.SOCK_DGRAM, socket.SOCK_STREAM}:
            raise CannotStart(
                f"systemd passes only one socket for DNS on {address}: set ListenStream and ListenDatagram"
            )
        found.append(Listeners(kinds[socket.SOCK_DGRAM], kinds[socket.SOCK_STREAM]))
    try:
        for address in () if found else addresses:
            found.append(_listen_dns(*address))
    except CannotStart:
        for udp, tcp in found:
            udp.close()
            tcp.close()
        raise
    return found


def _listen_dns(host: str, port: int) -> Listeners:
    for left in reversed(range(1 if port else 20)):  # a port that is free for TCP need not be so for UDP
        tcp = _listen_tcp(host, port, setting="address for dns")
        udp = socket.socket(tcp.family, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
        try:
            udp.bind(tcp.getsockname())
            return Listeners(udp, tcp)
        except OSError as error:
            udp.close()
            tcp.close()
            if not left:
                where = f"{_bracketed(host)}:{port}"
                raise CannotStart(f"cannot listen on {where} by UDP: {error.strerror or error}") from error
    raise AssertionError


_NAMED = ("grpc", "dns")  # as in FileDescriptorName=


def _inherited(name: str = "") -> list[socket.socket]:
    """The sockets that systemd passes under a name in `_NAMED`; without a name, those for HTTP."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(_inherited_count())
    given = [(n, names[n] if n < len(names) and names[n] in _NAMED else "") for n in numbers]
    return [socket.socket(fileno=SYSTEMD_FIRST + n) for n, given_name in given if given_name == name]


def _inherited_count() -> int:
    for_us = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(os.environ.get("LISTEN_FDS", "0")) if for_us else 0


def _listen_tcp(host: str, port: int, *, setting: str = "--port") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without IPPROTO_TCP, asyncio would leave Nagle's algorithm on, which delays each answer by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # with SO_REUSEADDR, only a second `listen` fails, not a second `bind`
    except OSError as error:
        listener.close()
        where = f"{_bracketed(host)}:{port}"
        text = f"cannot listen on {where}: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another nacos-proxy or another program; choose another {setting}"
        raise CannotStart(text) from error
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen_unix(path: Path) -> socket.socket:
    exists = os.path.lexists(path)
    if exists and not stat.S_ISSOCK(path.lstat().st_mode):
        raise CannotStart(f"{path} exists and is not a socket; choose another --uds")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if exists:
            _unlink_if_dead(path)
        before = os.umask(0o117)  # not chmod after bind: by then the path may be a symlink to another file
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except (OSError, CannotStart) as error:
        listener.close()
        if isinstance(error, CannotStart):
            raise
        raise CannotStart(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _unlink_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full, so the listener lives
            pass
    raise CannotStart(f"{path} is in use by another nacos-proxy; choose another --uds")


def address_of(listener: socket.socket) -> str:
    """Host and port of a listening TCP socket."""
    name: Any = listener.getsockname()
    return f"{_bracketed(name[0])}:{name[1]}"


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """The URL of a listening socket; `unix:PATH` for a Unix socket."""
    name: Any = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"{'https' if tls else 'http'}://{address_of(listener)}"


def beyond_loopback(listeners: Sequence[socket.socket]) -> list[str]:
    """The addresses that other hosts can reach. Sockets from systemd may differ from the settings."""
    addresses = [listener.getsockname()[0] for listener in listeners if listener.family != socket.AF_UNIX]
    return [address for address in addresses if not ipaddress.ip_address(address).is_loopback]


def max_open_files() -> float:
    """The system's limit for this process, infinity for none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


class Server(uvicorn.Server):
    """uvicorn's server with callbacks: `ready`, `before_drain` when a stop begins, `reload` on SIGHUP.

    It reports its state to systemd, if systemd wants that (Type=notify, WatchdogSec).
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        before_drain: Callable[[], None],
        reload: Callable[[], None],
        supervisor: Supervisor,
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._before_drain = before_drain
        self._reload = reload
        self._supervisor = supervisor
        self._notifier: Any = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._watchdog: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        self._ready()
        self._notify("READY=1")
        self._watchdog = self._supervisor.keep(self._keep_alive, name="watchdog")
        with suppress(NotImplementedError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def _notify(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)

    def reload(self) -> None:
        self._notify("RELOADING=1")
        self._supervisor.call("reload", self._reload)
        self._notify("READY=1")  # after a failure, too, or systemd waits for ever

    async def _keep_alive(self) -> None:
        """Reports to systemd, twice in each of its watchdog intervals, that the event loop is alive."""
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000 if for_us else 0.0
        clock = SystemClock()
        while interval:
            self._notify("WATCHDOG=1")
            await clock.sleep_until(clock.now() + interval)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            log.info("stopping: %s", signal.Signals(sig).name)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._notify("STOPPING=1")
        await stop(self._watchdog)
        self._before_drain()
        await super().shutdown(sockets)
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()


def unlink_own(listeners: Sequence[socket.socket]) -> None:
    """Removes the Unix sockets that we created. Call it while we listen: later, another proxy may own the path."""
    if _inherited_count():
        return
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            with suppress(OSError):
                os.unlink(listener.getsockname())


def tls_context(
    certificate: Path, key: Path | None, client_ca: Path | None, protocols: Sequence[str] = ()
) -> ssl.SSLContext:
    """The context for serving TLS. With `client_ca`, clients must show a certificate. Raises `CannotStart`.

    `protocols` are offered by ALPN; clients without ALPN are served, too.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = f"{certificate} with {key}" if key else str(certificate)
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            files = str(client_ca)
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # an SSLError is one
        raise CannotStart(f"cannot use the TLS certificate {files}: {error.strerror or error}") from error
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context

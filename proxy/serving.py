"""The process around the app: sockets, signals, the service manager, uvicorn. Not for: wiring parts (`server`).

Order of a graceful stop: stop accepting, end the event streams with a `retry`, drain requests for as long as the
settings allow, then the app's own shutdown (poller, disk, registry).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import sdnotify  # pyright: ignore[reportMissingTypeStubs]
import uvicorn

from proxy.runtime import SystemClock, spawn, stop

log = logging.getLogger("nacos_proxy.serving")

SYSTEMD_FIRST = 3
BACKLOG = 2048


class CannotStart(Exception):
    """Said to the operator as it stands: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a Unix socket where `uds` is given, else host and port (0: any)."""

    host: str
    port: int
    uds: Path | None = None
    reuse_port: bool = False


def sockets(address: Address) -> list[socket.socket]:
    """The listening sockets: those that systemd hands over, else new ones. Raises `CannotStart`."""
    inherited = _inherited()
    if inherited:
        return inherited
    return [_unix(address.uds) if address.uds is not None else _tcp(address)]


def _inherited() -> list[socket.socket]:
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    number = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=descriptor) for descriptor in range(SYSTEMD_FIRST, SYSTEMD_FIRST + number)]


def _tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # A socket that does not say TCP keeps Nagle's algorithm under plain asyncio: 40 ms for each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        where = f"{address.host}:{address.port}"
        if error.errno == errno.EADDRINUSE:
            text = f"{where} is taken: another nacos-proxy, or another program; choose another --port"
            raise CannotStart(text) from error
        raise CannotStart(f"cannot listen on {where}: {error.strerror}") from error
    return listener


def _unix(path: Path) -> socket.socket:
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise CannotStart(f"{path} exists and is no socket; choose another --uds")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            _unlink_if_dead(path)
        listener.bind(str(path))
        path.chmod(0o660)
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _unlink_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise CannotStart(f"{path} is taken: another nacos-proxy listens there; choose another --uds")


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """As a person would type it."""
    name: Any = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


class Server(uvicorn.Server):
    """uvicorn's server that tells when it is ready, ends streams before it drains, and reloads on SIGHUP."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        before_drain: Callable[[], None],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._before_drain = before_drain
        self._reload = reload
        self._notifier: Any = sdnotify.SystemdNotifier()
        self._watchdog: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        self._ready()
        self._notifier.notify("READY=1")
        self._watchdog = spawn(self._keep_alive(), name="watchdog")
        with suppress(NotImplementedError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hup)

    def _hup(self) -> None:
        async def reload() -> None:
            self._notifier.notify("RELOADING=1")
            await self._reload()
            self._notifier.notify("READY=1")

        spawn(reload(), name="reload")

    async def _keep_alive(self) -> None:
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000
        clock = SystemClock()
        while interval:
            self._notifier.notify("WATCHDOG=1")
            await clock.sleep_until(clock.now() + interval)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            log.info("stopping: %s", signal.Signals(sig).name)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._notifier.notify("STOPPING=1")
        await stop(self._watchdog)
        self._before_drain()
        await super().shutdown(sockets)


def tls_context(certificate: Path, key: Path | None, client_ca: Path | None) -> ssl.SSLContext:
    """For our own side; `client_ca` makes a client certificate necessary. Raises `CannotStart`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"the TLS certificate cannot be used: {error}") from error
    return context

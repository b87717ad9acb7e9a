"""The process around the app: sockets, signals, the service manager, uvicorn. Not for: wiring parts (`server`).

Order of a graceful stop: stop accepting, end the event streams with a `retry`, drain requests for as long as the
settings allow, then the app's own shutdown (poller, disk, registry).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import sdnotify  # pyright: ignore[reportMissingTypeStubs]
import uvicorn

from nacos_proxy.runtime import Supervisor, SystemClock, stop

log = logging.getLogger("nacos_proxy.serving")

SYSTEMD_FIRST = 3
BACKLOG = 2048


class CannotStart(Exception):
    """Said to the operator as it stands: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: a Unix socket where `uds` is given, else host and port (0: any)."""

    host: str
    port: int
    uds: Path | None = None


def sockets(address: ListenAddress) -> list[socket.socket]:
    """The listening sockets: those that systemd hands over, else new ones. Raises `CannotStart`."""
    inherited = _inherited()
    if inherited:
        return inherited
    return [_unix(address.uds) if address.uds is not None else _tcp(address)]


def _inherited() -> list[socket.socket]:
    descriptors = range(SYSTEMD_FIRST, SYSTEMD_FIRST + _inherited_number())
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def _inherited_number() -> int:
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(os.environ.get("LISTEN_FDS", "0")) if ours else 0


def _tcp(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # A socket that does not say TCP keeps Nagle's algorithm under plain asyncio: 40 ms for each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)  # two that only bind do not notice each other
    except OSError as error:
        listener.close()
        where = f"{_bracketed(address.host)}:{address.port}"
        if error.errno == errno.EADDRINUSE:
            text = f"{where} is taken: another nacos-proxy, or another program; choose another --port"
            raise CannotStart(text) from error
        raise CannotStart(f"cannot listen on {where}: {error.strerror or error}") from error
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unix(path: Path) -> socket.socket:
    there = os.path.lexists(path)
    if there and not stat.S_ISSOCK(path.lstat().st_mode):
        raise CannotStart(f"{path} exists and is no socket; choose another --uds")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if there:
            _unlink_if_dead(path)
        before = os.umask(0o117)  # the mode from the first moment: a later chmod could be led elsewhere by a link
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {path}: {error.strerror or error}") from error
    except CannotStart:
        listener.close()
        raise
    return listener


def _unlink_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # somebody listens and has no time
            pass
    raise CannotStart(f"{path} is taken: another nacos-proxy listens there; choose another --uds")


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """As a person would type it."""
    name: Any = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"{'https' if tls else 'http'}://{_bracketed(name[0])}:{name[1]}"


def beyond_loopback(listeners: Sequence[socket.socket]) -> list[str]:
    """Addresses that other hosts can reach. What systemd hands over is not what the settings say."""
    names = [listener.getsockname()[0] for listener in listeners if listener.family != socket.AF_UNIX]
    return [name for name in names if not ipaddress.ip_address(name).is_loopback]


class Server(uvicorn.Server):
    """uvicorn's server that tells when it is ready, ends streams before it drains, and reloads on SIGHUP."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        before_drain: Callable[[], None],
        reload: Callable[[], Awaitable[None]],
        supervisor: Supervisor | None = None,
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._before_drain = before_drain
        self._reload = reload
        self._supervisor = supervisor or Supervisor(SystemClock())
        self._notifier: Any = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._watchdog: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        self._ready()
        self._tell("READY=1")
        self._watchdog = self._supervisor.keep(self._keep_alive, name="watchdog")
        with suppress(NotImplementedError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def _tell(self, state: str) -> None:
        """To the service manager, where there is one."""
        if self._notifier is not None:
            self._notifier.notify(state)

    def reload(self) -> None:
        """As SIGHUP does."""

        async def reload() -> None:
            self._tell("RELOADING=1")
            try:
                await self._reload()
            finally:  # systemd would wait for ever for one that failed
                self._tell("READY=1")

        self._supervisor.once(reload(), name="reload")

    async def _keep_alive(self) -> None:
        meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000 if meant else 0.0
        clock = SystemClock()
        while interval:
            self._tell("WATCHDOG=1")
            await clock.sleep_until(clock.now() + interval)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            log.info("stopping: %s", signal.Signals(sig).name)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._tell("STOPPING=1")
        await stop(self._watchdog)
        self._before_drain()
        await super().shutdown(sockets)
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()


def unlink_own(listeners: Sequence[socket.socket]) -> None:
    """Unix sockets that we made; to be called while we still listen, or the next one may lose its own."""
    if _inherited_number():
        return
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            with suppress(OSError):
                os.unlink(listener.getsockname())


def tls_context(certificate: Path, key: Path | None, client_ca: Path | None) -> ssl.SSLContext:
    """For our own side; `client_ca` makes a client certificate necessary. Raises `CannotStart`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = f"{certificate} with {key}" if key else str(certificate)
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            files = str(client_ca)
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # an SSLError is one
        raise CannotStart(f"the TLS certificate cannot be used: {files}: {error.strerror or error}") from error
    return context

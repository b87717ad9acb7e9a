"""The process around the app: listening sockets, TLS, signals, the service manager, uvicorn.

A graceful stop ends the event streams with a `retry`, stops accepting connections, waits for requests under way for as
long as `drain_timeout` says, then shuts the app down (poller, disk, registry).
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

log = logging.getLogger("nacos_proxy.process")

SYSTEMD_FIRST = 3  # sd_listen_fds(3): the first file descriptor that systemd passes
BACKLOG = 2048


class CannotStart(Exception):
    """Its text tells the operator what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: on the Unix socket `uds` if given, else on host and port (0: any free port)."""

    host: str
    port: int
    uds: Path | None = None


def sockets(address: ListenAddress) -> list[socket.socket]:
    """The listening sockets: those that systemd passes, else new ones. Raises `CannotStart`."""
    if inherited := _inherited_count():
        return [socket.socket(fileno=SYSTEMD_FIRST + number) for number in range(inherited)]
    return [_unix(address.uds) if address.uds is not None else _tcp(address)]


def _inherited_count() -> int:
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(os.environ.get("LISTEN_FDS", "0")) if ours else 0


def _tcp(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only for sockets whose protocol is TCP; else each answer takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)  # with SO_REUSEADDR, only a second `listen` fails, not a second `bind`
    except OSError as error:
        listener.close()
        where = f"{_bracketed(address.host)}:{address.port}"
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                f"{where} is in use by another nacos-proxy or another program; choose another --port"
            ) from error
        raise CannotStart(f"cannot listen on {where}: {error.strerror or error}") from error
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unix(path: Path) -> socket.socket:
    exists = os.path.lexists(path)
    if exists and not stat.S_ISSOCK(path.lstat().st_mode):
        raise CannotStart(f"{path} exists and is not a socket; choose another --uds")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if exists:
            _unlink_if_dead(path)
        before = os.umask(0o117)  # not chmod afterwards: by then the path may be a symlink to another file
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
        except BlockingIOError:  # the listener is busy
            pass
    raise CannotStart(f"{path} is in use by another nacos-proxy; choose another --uds")


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """The URL of a listening socket; `unix:PATH` for a Unix socket."""
    name: Any = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"{'https' if tls else 'http'}://{_bracketed(name[0])}:{name[1]}"


def beyond_loopback(listeners: Sequence[socket.socket]) -> list[str]:
    """Addresses that other hosts can reach. The sockets that systemd passes need not match the settings."""
    names = [listener.getsockname()[0] for listener in listeners if listener.family != socket.AF_UNIX]
    return [name for name in names if not ipaddress.ip_address(name).is_loopback]


class Server(uvicorn.Server):
    """uvicorn's server, which also calls `ready`, calls `before_drain` when a stop begins, and reloads on SIGHUP.

    It tells systemd its state, where systemd asks for it (Type=notify, WatchdogSec).
    """

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
        self._notify("READY=1")
        self._watchdog = self._supervisor.keep(self._keep_alive, name="watchdog")
        with suppress(NotImplementedError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def _notify(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)

    def reload(self) -> None:
        """Starts a reload, as SIGHUP does."""

        async def reload() -> None:
            self._notify("RELOADING=1")
            try:
                await self._reload()
            finally:  # after a failure, too, or systemd waits for ever
                self._notify("READY=1")

        self._supervisor.once(reload(), name="reload")

    async def _keep_alive(self) -> None:
        """Tells systemd twice in each of its intervals that the event loop is alive."""
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000 if ours else 0.0
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
    """Removes the Unix sockets that we created. Call it while we listen: later, the path may be another proxy's."""
    if _inherited_count():
        return
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            with suppress(OSError):
                os.unlink(listener.getsockname())


def tls_context(certificate: Path, key: Path | None, client_ca: Path | None) -> ssl.SSLContext:
    """For serving TLS; with `client_ca`, clients must show a certificate. Raises `CannotStart`."""
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
    return context

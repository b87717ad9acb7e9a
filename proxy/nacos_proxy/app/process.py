"""The process around the app: signals, systemd, uvicorn.

A graceful stop ends the event streams with a `retry`, stops accepting connections, waits up to `drain_timeout` for
requests under way, then shuts the app down.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from nacos_proxy.runtime import Supervisor, SystemClock, stop

log = logging.getLogger("nacos_proxy.process")


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
        self._watchdog: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        self._ready()
        notify_systemd("READY=1")
        self._watchdog = self._supervisor.keep(self._keep_alive, name="watchdog")
        with suppress(NotImplementedError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> None:
        notify_systemd("RELOADING=1")
        self._supervisor.call("reload", self._reload)
        notify_systemd("READY=1")  # after a failure, too, or systemd waits for ever

    async def _keep_alive(self) -> None:
        """Reports to systemd, twice in each of its watchdog intervals, that the event loop is alive."""
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000 if for_us else 0.0
        clock = SystemClock()
        while interval:
            notify_systemd("WATCHDOG=1")
            await clock.sleep_until(clock.now() + interval)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            log.info("stopping: %s", signal.Signals(sig).name)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify_systemd("STOPPING=1")
        await stop(self._watchdog)
        self._before_drain()
        await super().shutdown(sockets)


def notify_systemd(state: str) -> None:
    """Reports a state to systemd, if it wants to know: sd_notify(3). A failure must not stop the proxy."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)

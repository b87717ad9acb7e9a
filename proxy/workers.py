"""The other processes of `workers` > 1: started, told what to do, started again when one dies, ended with this one.

Not for: what they do (`worker`, `mirror`), what they are told of services (`feed`), how they share a port (`serving`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.feed import Feed
from proxy.link import packed
from proxy.runtime import Clock, spawn, stop

log = logging.getLogger("nacos_proxy.workers")

# What the service manager says to this process alone.
_OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class WorkersPolicy:
    """Seconds: the first and the longest pause before one is started again; how long one may take to end."""

    pause: float = 0.5
    longest: float = 30.0
    drain: float = 10.0


@dataclass(slots=True)
class _Place:
    """One worker, and the process that it is now."""

    number: int
    process: asyncio.subprocess.Process | None = None
    failures: int = 0
    task: asyncio.Task[None] | None = field(default=None)


class Workers:
    """`start`, then `terminate` and `stop`. `listeners` opens the sockets of one life of a worker.

    `orders` is the first message to each: what `worker` is started with.
    """

    def __init__(
        self,
        number: int,
        listeners: Callable[[], Sequence[socket.socket]],
        orders: Any,
        feed: Feed,
        clock: Clock,
        policy: WorkersPolicy,
    ) -> None:
        self._places = [_Place(place) for place in range(1, number + 1)]
        self._listeners = listeners
        self._orders = packed(orders)
        self._feed = feed
        self._clock = clock
        self._policy = policy
        self._ending = False

    @property
    def wanted(self) -> int:
        return len(self._places)

    async def start(self) -> None:
        self._feed.start()
        for place in self._places:
            place.task = spawn(self._keep(place), name=f"worker {place.number}")

    async def _keep(self, place: _Place) -> None:
        while not self._ending:
            begun = self._clock.now()
            code = await self._run(place)
            if self._ending:
                return
            place.failures = 0 if self._clock.now() - begun > self._policy.longest else place.failures + 1
            pause = min(self._policy.longest, self._policy.pause * 2.0 ** min(place.failures, 16))
            log.error("worker %d ended (%s) and is started again in %g s", place.number, code, pause)
            await self._clock.sleep_until(self._clock.now() + pause)

    async def _run(self, place: _Place) -> int:
        """One life of a worker; its exit code."""
        ours, theirs = socket.socketpair()
        fed, protocol = self._feed.join()
        with contextlib.ExitStack() as held:
            given = [held.enter_context(one) for one in (theirs, *self._listeners())]
            descriptors = [one.fileno() for one in given]
            place.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "proxy.worker", *(str(number) for number in descriptors),
                pass_fds=descriptors, env=environment(os.environ), stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
        protocol.tell_packed(self._orders)
        self._feed.welcome(fed)
        try:
            return await place.process.wait()
        finally:
            protocol.close()

    def terminate(self) -> None:
        """A stop begins: they drain as this process does."""
        self._ending = True
        for place in self._places:
            if place.process is not None and place.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    place.process.terminate()

    async def stop(self) -> None:
        """Returns when all have ended; one that takes too long is killed."""
        self.terminate()
        running = [place.process for place in self._places if place.process is not None]
        waits = [spawn(process.wait(), name="end of a worker") for process in running]
        timer = spawn(self._clock.sleep_until(self._clock.now() + self._policy.drain), name="end of workers")
        while not timer.done() and not all(wait.done() for wait in waits):
            await asyncio.wait([timer, *(wait for wait in waits if not wait.done())], return_when="FIRST_COMPLETED")
        timer.cancel()
        for process in running:
            if process.returncode is None:
                log.error("a worker did not end in time and is killed")
                process.kill()
        for place in self._places:
            await stop(place.task)
        await self._feed.stop()

    def reload(self) -> None:
        """They read again what can be read again."""
        self._feed.tell("reload")

    @property
    def streams(self) -> int:
        """Event streams of the other processes."""
        return self._feed.streams

    def status(self) -> Mapping[str, Any]:
        """For operators: how many there should be, and are."""
        pids = [p.process.pid for p in self._places if p.process is not None and p.process.returncode is None]
        return {"wanted": self.wanted, "joined": len(self._feed.workers), "pids": pids, "streams": self._feed.streams}


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a worker inherits."""
    return {name: value for name, value in ours.items() if name not in _OWN}

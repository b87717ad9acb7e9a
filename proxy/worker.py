"""`python -m proxy.worker LINK LISTENER…`: a process of `workers` > 1, started by `workers` with open descriptors.

Not for: people. It answers from a mirror of the catalog; what it does not know it asks the process that started it, and
it ends with that one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.api.events import EventsApi
from proxy.api.reads import ReadPolicy, Reads
from proxy.api.rest import json_reply
from proxy.api.routes import Endpoint
from proxy.fastpath.table import Answers, AnswersPolicy
from proxy.feed import Tallies
from proxy.front import Faces, Front, guarded, obey
from proxy.link import Link, receive
from proxy.logs import set_up
from proxy.mirror import FarKeeper, Mirror
from proxy.model import Change
from proxy.parts import make_catalog
from proxy.policies import events_policy, guard_policy, nacos_policy
from proxy.registry.nacos import NacosRegistry
from proxy.runtime import Clock, SystemClock
from proxy.server import own_tls, uvicorn_config
from proxy.serving import Server
from proxy.settings import Loaded, Settings
from proxy.wire.base import HttpReply

log = logging.getLogger("nacos_proxy.workers")


@dataclass(slots=True)
class _Counted:
    """What was told to the other process already."""

    reads: dict[str, int] = field(default_factory=lambda: {})
    repeated: dict[tuple[str, int], tuple[int, int]] = field(default_factory=lambda: {})
    refused: int = 0


class WorkerApp:
    """As `server.App`, of a process that asks another one. Its lifespan lasts as long as the link."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.clock = clock
        self.answers = Answers(AnswersPolicy())
        self.mirror = Mirror(make_catalog(settings, "", grace=0.0), clock, [self._changed])
        self.mirror.on_push_lost.append(self.answers.clear)
        self.events = EventsApi(
            self.mirror, events_policy(settings), discover=self.mirror.discover, forget=self.mirror.forget
        )
        self._passing = None if settings.embedded else NacosRegistry(nacos_policy(settings), clock)
        faces = Faces(
            settings,
            self.mirror,
            Reads(self.mirror, ReadPolicy()),
            self.events,
            FarKeeper(self.mirror),
            self._operations(),
            lambda: self.mirror.checks,
            self._passing,
            self.mirror.listed,
        )
        self.front = Front(faces, self._lifespan)
        self.guard, self._entry = guarded(self.front, self.front, guard_policy(settings), self.answers, clock, settings)
        self.link: socket.socket | None = None
        self.on_lost: list[Callable[[], None]] = []
        self._counted = _Counted()

    def _changed(self, change: Change) -> None:
        self.answers.forget(change.key)
        self.mirror.catalog.hub.publish(change)

    def _operations(self) -> Mapping[str, Endpoint]:
        async def health(request: Request) -> HttpReply:
            return json_reply({"status": "ok"}, headers=(("cache-control", "no-store"),))

        far = {path: self.mirror.operations for path in ("/readyz", "/status", "/metrics", "/")}
        return {"/healthz": health, **far}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._entry if scope["type"] == "http" else self.front.rest
        await app(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncGenerator[None]:
        self.mirror.link = link = Link(self.mirror.hear, _nothing, self._lost)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=self.link)
        self.mirror.start(self.count)
        await self.mirror.begun.wait()
        try:
            yield
        finally:
            self.events.close()
            await self.mirror.close()
            if self._passing is not None:
                await self._passing.close()

    def _lost(self) -> None:
        self.mirror.begun.set()  # nothing will begin any more
        for listener in self.on_lost:
            listener()

    def count(self) -> Tallies:
        """What was counted since the last time."""
        before, reads = self._counted, dict(self.mirror.counts.reads)
        repeated = {kind: (tally.head, tally.target) for kind, tally in self.answers.tallies.items()}
        self._counted = _Counted(reads, repeated, self.events.seats.refused)
        new = [
            (*kind, head - before.repeated.get(kind, (0, 0))[0], target - before.repeated.get(kind, (0, 0))[1])
            for kind, (head, target) in repeated.items()
        ]
        grown = {outcome: number - before.reads.get(outcome, 0) for outcome, number in reads.items()}
        return Tallies(grown, new, self.events.seats.refused - before.refused, self.events.readers)


async def _nothing(name: str, args: tuple[Any, ...]) -> Any:
    raise LookupError(f"a worker is asked nothing, not {name!r}")


def main() -> None:
    """Serve the given sockets until told to stop, or until the other process is gone."""
    link, *listeners = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    loaded: Loaded = receive(link)
    link.setblocking(False)
    settings = loaded.settings
    set_up(settings.log_level, settings.log_format)
    app = WorkerApp(settings, SystemClock())
    app.link = link

    async def reload() -> None:
        obey(app.guard, app.answers, loaded.again().settings)

    server = Server(uvicorn_config(app, settings, own_tls(settings)), lambda: None, app.events.close, reload)

    def lost() -> None:
        if not server.should_exit:
            log.error("the process that asks the upstream is gone: this one ends, too")
        server.should_exit = True

    app.on_lost.append(lost)
    app.mirror.on_reload.append(server.reload)
    server.run(sockets=listeners)


if __name__ == "__main__":
    main()

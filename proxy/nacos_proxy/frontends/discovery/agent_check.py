"""The port that HAProxy's agent checks ask. The words are in `wire.discovery.agent_check`.

It has no access control: it says what the proxy's own account sees, of instances that the client names. It says nothing
(HAProxy then keeps the state) whenever it is not sure: the line cannot be read, nothing is known of the service, or no
instance of it was ever seen.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

from cachetools import LRUCache

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.addresses import address_of
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import stop, ticks
from nacos_proxy.wire.discovery.agent_check import (
    GONE,
    MAX_LINE,
    Answer,
    Question,
    answers_of,
    read_question,
    write_answer,
)

MAX_CONNECTIONS = 2000  # one client gets at most half
MAX_SECONDS = 5.0  # for the question, the read and the answer
BACKLOG = 1024
_MAX_PREPARED = 200_000  # instances whose answers are kept
_SILENT = "silent"


class AgentCheck:
    """Serves one listening socket, from `start` to `stop`. `rules()`: which names are accepted.

    `answers` counts by state (`up`, `drain`, `down`, `maint`), and connections without an answer: `silent`, `refused`.
    """

    def __init__(self, agent: Agent, rules: Callable[[], Rules]) -> None:
        self.answers: Counter[str] = Counter()
        self.address = ""
        self._agent = agent
        self._rules = rules
        self._open: dict[_Connection, float] = {}  # when each was made, the oldest first
        self._shares: Shares[str] = Shares(MAX_CONNECTIONS)
        self._prepared: LRUCache[ServiceKey, tuple[Snapshot, Mapping[str, Answer]]] = LRUCache(
            _MAX_PREPARED, getsizeof=lambda kept: 1 + len(kept[1])
        )
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accepts connections on a socket that listens."""
        loop = asyncio.get_running_loop()
        self.address = address_of(*listener.getsockname()[:2])
        self._server = await loop.create_server(lambda: _Connection(self), sock=listener, backlog=BACKLOG)
        self._ticker = self._agent.supervisor.keep(self._close_late, name="agent checks")

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await stop(self._ticker)
        for connection in list(self._open):
            connection.close()

    async def answer(self, line: bytes) -> bytes:
        """The answer to a question, b"" for none. Waits at most as long as a read."""
        question = read_question(line, self._rules())
        found = None if question is None else await self._find(question)
        self.answers[_SILENT if found is None else found.words.state] += 1
        return b"" if question is None or found is None else write_answer(found, question.weight)

    async def _find(self, question: Question) -> Answer | None:
        try:
            snapshot = (await self._agent.read(question.service)).snapshot
        except ProxyError:
            return None
        assert snapshot is not None
        if not snapshot.instances and not self._was_known(question.service):
            return None  # the name may be misspelt
        kept = self._prepared.get(question.service)
        if kept is None or kept[0] is not snapshot:
            kept = (snapshot, answers_of(snapshot))
            self._prepared.pop(question.service, None)
            if len(kept[1]) < self._prepared.maxsize:
                self._prepared[question.service] = kept
        return kept[1].get(question.address, Answer(GONE))

    def _was_known(self, key: ServiceKey) -> bool:
        entry = self._agent.catalog.cache.get(key)
        return entry is not None and entry.ever_nonempty

    async def _close_late(self) -> None:
        async for now, _ in ticks(self._agent.clock, MAX_SECONDS / 5):
            late = [connection for connection, made in self._open.items() if now - made > MAX_SECONDS]
            for connection in late:
                connection.close()

    # what connections call

    def admit(self, connection: _Connection, client: str) -> bool:
        if not self._shares.room(client):
            self.answers["refused"] += 1
            return False
        self._shares.take(client)
        self._open[connection] = self._agent.clock.now()
        return True

    def left(self, connection: _Connection, client: str) -> None:
        if self._open.pop(connection, None) is not None:
            self._shares.give_back(client)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._agent.supervisor.once(work, name="agent check")

    # for operators

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        return {"address": self.address, "connections": len(self._open), "answers": dict(self.answers)}


class _Connection(asyncio.Protocol):
    """One question and its answer; then it is closed."""

    def __init__(self, server: AgentCheck) -> None:
        self._server = server
        self._client = ""
        self._line: bytearray | None = bytearray()  # None: the question is complete, or refused
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._client = (transport.get_extra_info("peername") or ("",))[0]
        if not self._server.admit(self, self._client):
            self._line = None
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._line is None:
            return
        self._line += data[: MAX_LINE + 1]
        line, end, _ = self._line.partition(b"\n")
        if end or len(self._line) > MAX_LINE:
            self._line = None
            self._server.spawn(self._answer(bytes(line) if len(line) < MAX_LINE else b""))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self, self._client)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, line: bytes) -> None:
        try:
            answer = await self._server.answer(line)
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write(answer)
        finally:
            if self._transport is not None:
                self._transport.close()

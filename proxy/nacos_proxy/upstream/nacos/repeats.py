"""Calls that clients send again and again: each is written once, and from then on begun without a task.

A call is known by its object, because the front ends give the same object for the same call. When it comes for the
second time, its request is written, in the dialect in which such calls have worked. From then on these bytes are sent
at once. If the answer is not the usual one, which is complete, 200 and a success, `Begun.finish` goes on as `send`
does: it waits for this answer, and then may ask again, log in again or take another server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from nacos_proxy.model.calls import BEAT_OK, Beat, BeatResult, Call, Register
from nacos_proxy.upstream.contract import Sent
from nacos_proxy.upstream.http.connection import Connection
from nacos_proxy.upstream.http.exchange import Headers, HttpClient, whole_reply
from nacos_proxy.upstream.http.transport import RepeatedRequest
from nacos_proxy.upstream.nacos.dialect_client import DialectClient
from nacos_proxy.upstream.nacos.server_monitor import ServerMonitor
from nacos_proxy.upstream.nacos.servers import Server
from nacos_proxy.wire.http import HttpRequest

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger("nacos_proxy.registry")

REPEATED = (Beat, Register)
MAX_REPEATED = 4096  # calls; the oldest goes first
MAX_REPEATED_LENGTH = 2048  # bytes of a request, and characters of metadata; longer ones are not kept

Keys = tuple[Hashable, ...]
"""The instance and the service of a call, by which it finds its server."""


class Client(Protocol):
    """The servers, for one credential."""

    async def send(self, call: Call[R], begun: Begun | None = None) -> R:
        """As `Registry.send`. If it sends what was `begun` already, it waits for that answer instead."""
        ...

    def first_server(self, keys: Keys) -> Server | None:
        """The server to try first; None if that has to be asked for."""
        ...

    def token_headers(self) -> Headers | None:
        """None if the token has to be asked for. May raise `Refused`."""
        ...

    def worked_dialect(self, server: Server, call: Call[Any]) -> DialectClient | None:
        """The dialect to try first, if such calls have worked in it."""
        ...

    def note_result(self, call: Call[Any], result: Any, server: Server, keys: Keys) -> None:
        """Notes what a success says about the service of the call and its server."""
        ...


class _Ready(NamedTuple):
    """How to send a call. `repeated` is None if it cannot be repeated."""

    server: Server
    dialect: DialectClient
    headers: Headers
    request: HttpRequest
    repeated: RepeatedRequest | None


class _Known:
    """A call that came twice, and how it was last sent."""

    __slots__ = ("call", "keys", "ready")

    def __init__(self, call: Call[Any], keys: Keys) -> None:
        self.call = call
        self.keys = keys
        self.ready: _Ready | None = None


class Begun:
    """A call that was sent to `server` at the time `at`. Implements `Sent`."""

    __slots__ = ("_answered", "_client", "_connection", "_known", "_ready", "_repeats", "at", "result", "usual")

    def __init__(
        self, repeats: Repeats, client: Client, known: _Known, ready: _Ready, answered: Callable[[Sent], object]
    ) -> None:
        self.at = repeats.now()
        self.usual = False
        self.result: Any = None
        self._repeats = repeats
        self._client = client
        self._known = known
        self._ready = ready
        self._answered = answered
        self._connection: Connection | None = None

    @property
    def server(self) -> Server:
        return self._ready.server

    def take(self, request: HttpRequest, headers: Headers) -> Connection | None:
        """The connection over which it was sent, once. None if what was sent is not this request with these headers.

        The dialect or the token may be another one by now, so the answer would be read wrongly.
        """
        if (self._ready.request, self._ready.headers) != (request, headers):
            return None
        connection, self._connection = self._connection, None
        return connection

    async def finish(self) -> Any:
        try:
            return await self._client.send(self._known.call, self)
        finally:
            if self._connection is not None:  # another server or request was sent instead
                self._connection.abort()

    def on_head(self, connection: Connection) -> None:
        """The head of the answer is there, or will never be."""
        self._connection = connection
        try:
            self.usual = self._succeeds(connection)
        except Exception:  # `finish` will raise it to whoever waits
            log.debug("an answer was not usual", exc_info=True)
        self._answered(self)

    def _succeeds(self, connection: Connection) -> bool:
        """Takes the answer if it is the usual one."""
        known, ready, repeats = self._known, self._ready, self._repeats
        if (reply := whole_reply(connection)) is None or ready.repeated is None:
            return False
        self.result = ready.dialect.read_reply(known.call, reply)
        if isinstance(self.result, BeatResult) and self.result.code != BEAT_OK:
            return False
        connection.take_body()
        self._connection = None
        ready.repeated.pool.give(connection)
        repeats.monitor.succeeded(ready.server, repeats.now() - self.at)
        self._client.note_result(known.call, self.result, ready.server, known.keys)
        return True


class Repeats:
    """The calls of one client that came before. `_seen` are those that came once: they push out only each other."""

    def __init__(
        self, http: HttpClient, monitor: ServerMonitor, now: Callable[[], float], keys_of: Callable[[Call[Any]], Keys]
    ) -> None:
        self.monitor = monitor
        self.now = now
        self._http = http
        self._keys_of = keys_of
        self._seen: dict[int, Call[Any]] = {}  # by the identity of the call, as are those:
        self._known: dict[int, _Known] = {}

    def begin(self, client: Client, call: Call[Any], answered: Callable[[Sent], object]) -> bool:
        """As `Beginner.begin`, with the token of this client."""
        known = self._find(call)
        if known is None:
            return False
        try:
            ready = self._ready(client, known)
        except Exception:  # `send` will raise it
            return False
        if ready is None or ready.repeated is None:
            return False
        begun = Begun(self, client, known, ready, answered)
        # The connection's callbacks run in the context of the request that opened it.
        return self._http.begin(ready.repeated, partial(copy_context().run, begun.on_head))

    def _find(self, call: Call[Any]) -> _Known | None:
        known = self._known.get(id(call))
        if known is not None and known.call is call:
            return known
        if self._seen.pop(id(call), None) is call:
            known = _put(self._known, call, _Known(call, self._keys_of(call)))
        elif isinstance(call, REPEATED) and _length(call) <= MAX_REPEATED_LENGTH:
            _put(self._seen, call, call)
        return known

    def _ready(self, client: Client, known: _Known) -> _Ready | None:
        """How to send it now; None if that has to be found out."""
        server, headers = client.first_server(known.keys), client.token_headers()
        if server is None or headers is None or (dialect := client.worked_dialect(server, known.call)) is None:
            return None
        ready = known.ready
        if ready is None or ready.server is not server or ready.dialect is not dialect or ready.headers != headers:
            request = dialect.dialect.write_request(known.call)
            short = len(request.target) + len(request.body) <= MAX_REPEATED_LENGTH
            repeated = self._http.repeated(server.origin, server.context, request, headers) if short else None
            known.ready = ready = _Ready(server, dialect, headers, request, repeated)
        return ready


def _put(calls: dict[int, T], call: Call[Any], value: T) -> T:
    while len(calls) >= MAX_REPEATED:
        del calls[next(iter(calls))]
    calls[id(call)] = value
    return value


def _length(call: Beat | Register) -> int:
    """The characters of its metadata; what else it has is short."""
    instance = call.instance if isinstance(call, Register) else call.full
    return 0 if instance is None else sum(len(name) + len(value or "") for name, value in instance.metadata.items())

"""Calls that clients send again and again: each is written once, and from then on begun without a task.

A call is known by its object, because the front ends give the same object for the same call. When it comes for the
second time, its request is written, in the dialect in which such calls have worked. From then on these bytes are sent
at once. If the answer is not the usual one, which is complete, 200 and a success, `Begun.finish` goes on as `send`
does: it asks again, logs in again or takes another server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol, TypeVar

from nacos_proxy.model.calls import BEAT_OK, Beat, BeatResult, Call, Register
from nacos_proxy.upstream.contract import Sent
from nacos_proxy.upstream.http.connection import Connection
from nacos_proxy.upstream.http.exchange import Headers, HttpClient, whole_reply
from nacos_proxy.upstream.http.transport import RepeatedRequest
from nacos_proxy.upstream.nacos.dialect_client import DialectClient
from nacos_proxy.upstream.nacos.servers import Server

R = TypeVar("R")

REPEATED = (Beat, Register)
MAX_REPEATED = 4096  # calls; the oldest goes first
MAX_REPEATED_LENGTH = 2048  # bytes of a request; longer ones are not kept
NOTE_EVERY = 10.0  # seconds; what the results of a call say does not change while it succeeds

Keys = tuple[Hashable, ...]
"""The instance and the service of a call, by which it finds its server."""


class Client(Protocol):
    """The servers, for one credential."""

    async def send(self, call: Call[R], begun: Begun | None = None) -> R:
        """As `Registry.send`, from the answer to a call that was sent already."""
        ...

    def first_server(self, keys: Keys) -> Server | None:
        """The server to try first; None if that has to be asked for."""
        ...

    def token_headers(self) -> Headers | None:
        """None if the token has to be asked for."""
        ...

    def worked_dialect(self, server: Server, call: Call[Any]) -> DialectClient | None:
        """The dialect to try first, if such calls have worked in it."""
        ...

    def succeeded(self, server: Server, seconds: float) -> None:
        """A call that did not go through `send` has succeeded."""
        ...

    def note_result(self, call: Call[Any], result: Any, server: Server, keys: Keys) -> None:
        """Notes what a success says about the service of the call and its server."""
        ...


class _Ready(NamedTuple):
    """How to send a call. `request` is None if it cannot be repeated."""

    server: Server
    dialect: DialectClient
    headers: Headers
    request: RepeatedRequest | None


class _Known:
    """A call that came before, and how it was last sent again."""

    __slots__ = ("call", "keys", "note_at", "ready")

    def __init__(self, call: Call[Any], keys: Keys) -> None:
        self.call = call
        self.keys = keys
        self.ready: _Ready | None = None
        self.note_at = -math.inf


class Begun:
    """A call that was sent to `server` at the time `at`. Implements `Sent`."""

    __slots__ = (
        "_answered",
        "_connection",
        "_dialect",
        "_known",
        "_repeats",
        "_request",
        "at",
        "result",
        "server",
        "usual",
    )

    def __init__(
        self,
        repeats: Repeats,
        known: _Known,
        ready: _Ready,
        request: RepeatedRequest,
        answered: Callable[[Sent], object],
    ) -> None:
        self.server = ready.server
        self.at = repeats.now()
        self.usual = False
        self.result: Any = None
        self._repeats = repeats
        self._known = known
        self._dialect = ready.dialect
        self._request = request
        self._answered = answered
        self._connection: Connection | None = None

    def take(self) -> Connection | None:
        """The connection over which it was sent, once."""
        connection, self._connection = self._connection, None
        return connection

    async def finish(self) -> Any:
        try:
            return await self._repeats.client.send(self._known.call, self)
        finally:
            if (unused := self.take()) is not None:
                unused.abort()

    def on_head(self, connection: Connection) -> None:
        """The head of the answer is there, or will never be."""
        if self._read(connection):
            known, repeats = self._known, self._repeats
            connection.take_body()
            self._request.give_back(connection)
            now = repeats.now()
            repeats.client.succeeded(self.server, now - self.at)
            if now >= known.note_at:
                known.note_at = now + NOTE_EVERY
                repeats.client.note_result(known.call, self.result, self.server, known.keys)
            self.usual = True
        else:
            self._connection = connection
        self._answered(self)

    def _read(self, connection: Connection) -> bool:
        """Whether the answer is the usual one."""
        if (reply := whole_reply(connection)) is None:
            return False
        try:
            self.result = self._dialect.read_reply(self._known.call, reply)
        except Exception:  # `finish` will raise it
            return False
        return not isinstance(self.result, BeatResult) or self.result.code == BEAT_OK


class Repeats:
    """The calls of one client that came before."""

    def __init__(
        self, client: Client, http: HttpClient, now: Callable[[], float], keys_of: Callable[[Call[Any]], Keys]
    ) -> None:
        self.client = client
        self.now = now
        self._http = http
        self._keys_of = keys_of
        self._known: dict[int, _Known] = {}  # by the identity of the call

    def begin(self, call: Call[Any], answered: Callable[[Sent], object]) -> bool:
        """As `Beginner.begin`."""
        known = self._known.get(id(call))
        if known is None or known.call is not call:
            self._remember(call)
            return False
        client = self.client
        server, headers = client.first_server(known.keys), client.token_headers()
        if server is None or headers is None:
            return False
        dialect = client.worked_dialect(server, call)
        if dialect is None:
            return False
        ready = known.ready
        if ready is None or ready.server is not server or ready.dialect is not dialect or ready.headers != headers:
            known.ready = ready = self._write(call, server, dialect, headers)
        if ready.request is None:
            return False
        return self._http.begin(ready.request, Begun(self, known, ready, ready.request, answered).on_head)

    def _remember(self, call: Call[Any]) -> None:
        if isinstance(call, REPEATED):
            while len(self._known) >= MAX_REPEATED:
                del self._known[next(iter(self._known))]
            self._known[id(call)] = _Known(call, self._keys_of(call))

    def _write(self, call: Call[Any], server: Server, dialect: DialectClient, headers: Headers) -> _Ready:
        request = dialect.dialect.write_request(call)
        short = len(request.target) + len(request.body) <= MAX_REPEATED_LENGTH
        repeated = self._http.repeated(server.origin, server.context, request, headers) if short else None
        return _Ready(server, dialect, headers, repeated)

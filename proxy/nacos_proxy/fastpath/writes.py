"""Writes that came before: a client's beat differs from its last one only in the ids of the request.

Without the lines of these ids, the same bytes are the same request, which has passed access control and the parse. The
app then gave its `Repeatable`, and the protocol begins that again, without a parse and without an ASGI cycle. The
answer, its id, the metrics and the access log are the same.

A key is admitted the second time that it is seen. Requests are not repeated if they have a header in `_UNREPEATED`, if
their connection does not stay open, or if they came in several chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from nacos_proxy.fastpath.heads import id_field, without_field, without_ids
from nacos_proxy.fastpath.limits import LimitedProtocol
from nacos_proxy.fastpath.table import Headers, SeenKeys
from nacos_proxy.model.limits import Rules
from nacos_proxy.request_context import (
    HOPS_HEADER,
    ID_HEADER,
    Answered,
    RequestContext,
    hops_of,
    new_id,
    sane_id,
    work_for,
)
from nacos_proxy.wire.http import REMEMBER, HttpReply, Repeatable, RouteName

MAX_WRITES = 4096  # as many as the Nacos API keeps calls
MAX_LENGTH = 2048  # bytes of a request, and of what is kept of it
LEFT = 499  # the status in the metrics if the client has left

_HOPS_HEADER, _ID_HEADER = HOPS_HEADER.lower().encode(), ID_HEADER.lower().encode()
_UNREPEATED = frozenset({b"expect", b"origin"})
_NOBODY = asyncio.Event()  # nobody waits for the body of a repeated write

_DIGEST_KEY = token_bytes(32)

WriteKey = bytes
"""A digest of a request without ids, which may hold a token or a password, and of the kind of socket."""


def key_and_id(data: bytes, socket_kind: bytes) -> tuple[WriteKey, bytes]:
    """The key of a request, and its `X-Request-Id`, b"" if it has none."""
    head, body = _split(data)
    head, id = without_ids(head)
    return _digest(head + body, socket_kind), id


def key_without(field: bytes, data: bytes, socket_kind: bytes) -> WriteKey:
    """The key of a request whose only id is in this field (`heads.id_field`); any other has a key that is unknown."""
    head, body = _split(data)
    return _digest(without_field(head, field) + body, socket_kind)


def _split(data: bytes) -> tuple[bytes, bytes]:
    end = data.find(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def _digest(data: bytes, socket_kind: bytes) -> WriteKey:
    return blake2b(data, key=_DIGEST_KEY, digest_size=16, person=socket_kind).digest()


class KnownWrite:
    """A `Repeatable`, and the bytes of its last reply without the status line, default headers and id.

    `hops`: the proxies that its request has passed.
    """

    __slots__ = ("_reply", "_tail", "hops", "write")

    def __init__(self, write: Repeatable, hops: Sequence[str]) -> None:
        self.write = write
        self.hops = hops
        self._reply: HttpReply | None = None
        self._tail = b""

    def tail(self, reply: HttpReply) -> bytes:
        if reply is not self._reply:
            lines = b"".join([b"%b: %b\r\n" % header for header in reply.raw_headers])
            self._reply, self._tail = reply, b"%b\r\n%b" % (lines, reply.body)
        return self._tail


class KnownWrites:
    """At most `MAX_WRITES`; the oldest goes first. `count` gets the route, status and seconds of each repetition."""

    def __init__(
        self, rules: Callable[[], Rules], count: Callable[[RouteName, int, float], object], now: Callable[[], float]
    ) -> None:
        self.count = count
        self.now = now
        self.serial = 0  # grows each time that access rights change
        self._rules = rules
        self._writes: dict[WriteKey, KnownWrite] = {}
        self._seen = SeenKeys(MAX_WRITES)
        self._defaults: tuple[Headers, bytes] = ((), b"")

    def find(self, key: WriteKey) -> KnownWrite | None:
        """The write of a request, unless other rules apply now than when it was read."""
        known = self._writes.get(key)
        return known if known is None or known.write.rules is self._rules() else None

    def admits(self, key: WriteKey) -> bool:
        return self._seen.check_and_add(key)

    def offer(self, key: WriteKey, since: int, hops: Sequence[str], write: Repeatable) -> None:
        """`since`: the `serial` before the request passed access control."""
        if since != self.serial:
            return
        if key not in self._writes and len(self._writes) >= MAX_WRITES:
            del self._writes[next(iter(self._writes))]
        self._writes[key] = KnownWrite(write, hops)

    def clear(self) -> None:
        """Access rights have changed, so each request has to pass access control again."""
        self.serial += 1
        self._writes.clear()

    def default_lines(self, headers: Headers) -> bytes:
        """The lines of the server's default headers. The server makes a new list when one changes, such as Date."""
        if self._defaults[0] is not headers:
            self._defaults = headers, b"".join([b"%b: %b\r\n" % (name.lower(), value) for name, value in headers])
        return self._defaults[1]

    def __len__(self) -> int:
        return len(self._writes)


class WriteCycle(RequestResponseCycle):
    """A repeated write on its way. To uvicorn it is a request whose answer has not begun, and its task."""

    def __init__(self, known: KnownWrite, id: str, began: float) -> None:
        self.known = known
        self.id = id
        self.began = began
        self.message_event = _NOBODY
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = True
        self.expected_content_length = 0

    def cancel(self, msg: object = None) -> None:
        """The server stops, and has waited long enough. A write goes on without it."""


class WriteProtocol(LimitedProtocol):
    """One connection that begins known writes again. `writes`: None if no write may be repeated."""

    writes: ClassVar[KnownWrites | None] = None

    __slots__ = ("_id_field",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._id_field = b""  # as the last head with an id had it, because a client writes each id like its last one

    def _repeat_write(self, data: bytes, socket_kind: bytes) -> bool:
        """Begins the write in these bytes, which follow a whole request, if it is known."""
        writes = self.writes
        if writes is None or len(data) > MAX_LENGTH or self.flow.write_paused or self.transport.is_closing():
            return False
        known, id = writes.find(key_without(self._id_field, data, socket_kind)) if self._id_field else None, b""
        if known is None:
            key, id = key_and_id(data, socket_kind)
            if (known := writes.find(key)) is None:
                return False
            if not id:
                self._id_field = id_field(_split(data)[0])
        cycle, context = WriteCycle(known, sane_id(id) or new_id(), writes.now()), copy_context()
        if not context.run(self._begin_write, writes, cycle):
            return False
        self._unset_keepalive_if_required()
        self.cycle = self._answering = cycle
        self.tasks.add(cast("asyncio.Task[None]", cycle))  # a server that stops waits for it, even if its client leaves
        return True

    def _begin_write(self, writes: KnownWrites, cycle: WriteCycle) -> bool:
        request = RequestContext(cycle.id)
        request.hops = cycle.known.hops
        work_for(request)
        return cycle.known.write.begin(lambda reply: self._answer_write(writes, cycle, reply))

    def _answer_write(self, writes: KnownWrites, cycle: WriteCycle, reply: HttpReply) -> None:
        write, seconds = cycle.known.write, writes.now() - cycle.began
        self.tasks.discard(cast("asyncio.Task[None]", cycle))
        cycle.response_started = cycle.response_complete = True
        status = LEFT if cycle.disconnected else reply.status
        writes.count(write.route, status, seconds)
        if self.log is not None:
            client, size = self.client[0] if self.client else "", len(reply.body)
            about = write.method, write.path, write.query, write.route.path
            self.log(Answered(*about, status, seconds, size, client, cycle.id))
        if cycle.disconnected:
            return
        self.transport.write(
            b"%b%bx-request-id: %b\r\n%b%b"
            % (
                STATUS_LINE[reply.status],
                writes.default_lines(self.server_state.default_headers),
                cycle.id.encode("ascii"),
                b"" if cycle.keep_alive else b"connection: close\r\n",
                cycle.known.tail(reply),
            )
        )
        if not cycle.keep_alive:
            self.close()
        self.on_response_complete()

    def _note_write(self, data: bytes, socket_kind: bytes) -> None:
        """The request in these bytes goes to the app. If it came before, the app may say how to repeat it."""
        writes, scope = self.writes, self.scope
        if writes is None or scope["method"] in ("GET", "HEAD") or scope["http_version"] != "1.1":
            return
        if len(data) > MAX_LENGTH:
            return
        names = [name for name, _ in scope["headers"]]
        key, id = key_and_id(data, socket_kind)
        if not self.cycle.keep_alive or names.count(_ID_HEADER) != bool(id) or not _UNREPEATED.isdisjoint(names):
            return
        if writes.admits(key):
            hops = hops_of(dict(scope["headers"]).get(_HOPS_HEADER, b""))
            scope[REMEMBER] = partial(writes.offer, key, writes.serial, hops)  # type: ignore[typeddict-unknown-key]

"""Server-Sent Events. `catalog.hub` makes and orders the events, `wire.rest` encodes them.

- A reader gets its snapshots, then every later change. Only the last snapshot has an id, so a reader that disconnects
  before it gets all snapshots again.
- Nothing waits for a slow reader: its mailbox keeps at most one change per service, and events are encoded as it reads,
  about `_CHUNK` bytes at a time.
- An event is encoded once for all readers with the same view.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nacos_proxy.catalog.freshness import via_of
from nacos_proxy.catalog.hub import Event, Filter, Mailbox, Notice
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import client_of, send_reply
from nacos_proxy.frontends.channel import AsgiChannel
from nacos_proxy.frontends.events.long_polls import LongPolls
from nacos_proxy.frontends.events.stream_quota import StreamQuota, StreamQuotaPolicy
from nacos_proxy.frontends.open_streams import end_on_revocation
from nacos_proxy.frontends.rest import examples
from nacos_proxy.frontends.rest.examples import READ_ERRORS
from nacos_proxy.frontends.rest.reads import Bodies
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, documented, provided
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Change, ServiceKey, Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.wire.http import STREAM, Channel
from nacos_proxy.wire.rest.bodies import change_json, snapshot_json
from nacos_proxy.wire.rest.problem import plain_problem, problem
from nacos_proxy.wire.rest.query import SHORT, Query, ServicesQuery
from nacos_proxy.wire.rest.sse import CONTENT_TYPE, HEARTBEAT, encode, encode_retry
from nacos_proxy.wire.rest.tiers import via_json, whole_json

_HEADERS = [
    (b"content-type", CONTENT_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # else nginx would buffer events
]
_SLOTS = 15  # groups of streams, which get their heartbeats at different times
_CHUNK = 16 << 10  # bytes
_RETRY_SPREAD = 5_000  # ms over which readers reconnect after a stop
_PREPARED_SNAPSHOTS = 8 << 20  # bytes


class _Whole(View):
    """Not a filter: what a lower proxy gets, which is all that is known. It equals no other view."""


WHOLE = _Whole()


@dataclass(frozen=True, slots=True)
class EventsPolicy:
    """`heartbeat` in seconds, `retry` in ms. `services_per_stream` is the most services that one stream may name."""

    heartbeat: float = 15.0
    retry: int = 2_000
    services_per_stream: int = 500
    quota: StreamQuotaPolicy = field(default_factory=StreamQuotaPolicy)


class ResumeQuery(Query):
    lastEventId: Annotated[
        str, Field(description="Resumes after this event, for readers that cannot send the `Last-Event-ID` header.")
    ] = ""


class EventsQuery(ResumeQuery, ServicesQuery):
    """The services, and where to resume."""


class EventsApi:
    """All streams. A stream of a whole group calls `discover(namespace, group)` when it begins, `forget` at its end."""

    def __init__(
        self,
        agent: Agent,
        policy: EventsPolicy,
        *,
        discover: Callable[[str, str], None],
        forget: Callable[[str, str], None],
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.closed = False
        self.agent = agent
        self.policy = policy
        self.discover = discover
        self.forget = forget
        self._rng = rng
        self._slots: tuple[dict[Stream, None], ...] = tuple({} for _ in range(_SLOTS))
        self._next_slot = 0
        self.quota = StreamQuota(policy.quota)
        self.polls = LongPolls(agent, self.quota)
        self._snapshots = Bodies(_PREPARED_SNAPSHOTS)
        self._ticker: asyncio.Task[None] | None = None
        self.last_encoded: tuple[Event | None, View, Callable[[bytes], bytes], bytes] = (None, View(), bytes, b"")
        """One event goes to thousands of readers in a row; this is faster than a look-up for each."""

    def stream(self, request: ApiRequest, query: EventsQuery) -> Stream:
        """A stream that has not begun yet. Raises `BadCall`."""
        view, keys = query.view(request.rules), query.keys(self.policy.services_per_stream, request.rules)
        interest = Filter(frozenset(keys or ()))
        if keys is None:
            group = query.list_call(request.rules)
            interest = replace(interest, everything=(group.namespace, group.group))
        after = request.headers.get("last-event-id") or query.lastEventId
        client = client_of(request.scope)
        self.quota.take(client, interest.keys)
        return Stream(self, request.scope, interest, view, after[:100], client)

    def add(self, reader: Stream) -> int:
        """Adds a stream that has begun, and returns its slot."""
        self._next_slot = (self._next_slot + 1) % _SLOTS
        self._slots[self._next_slot][reader] = None
        if self._ticker is None or self._ticker.done():
            self._ticker = self.agent.supervisor.keep(self._tick, name="heartbeats")
        return self._next_slot

    def drop(self, reader: Stream, slot: int) -> None:
        self._slots[slot].pop(reader, None)

    async def _tick(self) -> None:
        clock, turn = self.agent.clock, 0
        while any(self._slots):
            await clock.sleep_until(clock.now() + self.policy.heartbeat / _SLOTS)
            turn = (turn + 1) % _SLOTS
            for reader in tuple(self._slots[turn]):
                self.agent.supervisor.call("event stream", reader.beat)

    def encoded(self, event: Event, view: View, frame: Callable[[bytes], bytes]) -> bytes:
        """The framed event for a view; b"" if the view does not show it."""
        if view.size > SHORT:
            return frame(self._encode(event, view))
        hub = self.agent.catalog.hub
        data = hub.encoded(event, (view, frame), lambda given: frame(self._encode(given, view)))
        self.last_encoded = (event, view, frame, data)
        return data

    def _encode(self, event: Event, view: View) -> bytes:
        number = self.agent.catalog.hub.id_of(event)
        if isinstance(event.body, Notice):
            return encode("upstream", _notice_json(event.body), number)
        shown = self.shown_change(event.body, view)
        return b"" if shown is None else encode("change", orjson.dumps(shown), number)

    def shown_change(self, change: Change, view: View) -> dict[str, Any] | None:
        """As `change_json`; for a lower proxy all that is known, and through which caches."""
        if view is not WHOLE:
            return change_json(change, view)
        result = self.agent.catalog.cache.lookup(change.key, self.agent.clock.now())
        return {**whole_json(change.after), **via_json(via_of(result))}

    def snapshot(self, snapshot: Snapshot, view: View, reset: bool, number: str) -> bytes:
        stale = self.agent.catalog.cache.lookup(snapshot.key, self.agent.clock.now()).stale
        more = {"reset": True} if reset else {}
        variant = (*view.variant, stale, reset)
        data = self._snapshots.of(
            snapshot,
            variant,
            lambda: orjson.dumps({**snapshot_json(snapshot, view, stale=stale), **more}),
        )
        return encode("snapshot", data, number)

    @property
    def readers(self) -> int:
        """The number of open streams."""
        return sum(len(slot) for slot in self._slots)

    def retry_after_stop(self) -> bytes:
        return encode_retry(self.policy.retry + int(self._rng() * _RETRY_SPREAD))

    def close(self) -> None:
        """Ends all streams, each with a time after which to reconnect, and answers all long polls."""
        self.closed = True
        for reader in self._readers():
            reader.end()
        self.polls.close()
        if self._ticker is not None:
            self._ticker.cancel()

    def refuse(self, why: ProxyError, key: ServiceKey | None = None) -> None:
        """Access to a service (or all) was lost: its readers lose it, and its long polls are answered with `why`."""
        for reader in self._readers():
            if key is None:
                reader.end()
            elif reader.interest.wants(key):
                reader.lose(key)
        self.polls.refuse(why, key)

    def _readers(self) -> list[Stream]:
        return [reader for slot in self._slots for reader in slot]

    def __repr__(self) -> str:
        return f"<EventsApi {self.readers} readers, {len(self.polls)} polls, {len(self.quota.clients)} clients>"


def _notice_json(notice: Notice) -> bytes:
    return orjson.dumps({"state": notice.state, "reason": notice.reason})


def no_wake_up() -> None:
    """A stream gets events directly, or when its connection takes more."""


class Stream:
    """One stream: first the ASGI app that begins it, then the sink for its events."""

    __slots__ = (
        "_after", "_api", "_channel", "_client", "_mailbox", "_refused", "_release", "_slot", "_view", "_waiting",
        "interest",
    )  # fmt: skip

    def __init__(self, api: EventsApi, scope: Scope, interest: Filter, view: View, after: str, client: str) -> None:
        self._api = api
        self.interest = interest
        self._view = view
        self._after = after
        self._client: str | None = client
        self._mailbox: Mailbox | None = None
        self._channel: Channel | None = None
        self._waiting: Iterator[bytes] = iter(())  # framed events to write before those in the mailbox
        self._slot = -1
        self._refused: ProxyError | None = None
        self._release = end_on_revocation(scope, self.refuse)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            self._clean_up()
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            try:
                first = await self._begin()
                if self._refused is not None:
                    raise self._refused.with_traceback(None)
            except ProxyError as error:
                self._clean_up()
                await send_reply(send, problem(error, scope["path"]))
                return
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            take: Callable[[], Channel | None] | None = scope.get("extensions", {}).get(STREAM)
            channel = take() if take is not None else None
            if channel is not None:
                self._open(channel, first)
                return
            plain = AsgiChannel()
            self._open(plain, first)
            await plain.run(receive, send)
        except BaseException:
            self._clean_up()
            raise

    async def _begin(self) -> Callable[[Channel], Iterator[bytes]]:
        """Subscribes, and returns the function that makes the first events for a channel."""
        api, agent = self._api, self._api.agent
        self._mailbox, known = await agent.watch(self.interest, no_wake_up, self._after, self._client or "")
        if self.interest.everything is not None:
            api.discover(*self.interest.everything)
        hub, breaker = agent.catalog.hub, agent.catalog.breaker
        last, reset = "" if len(self._mailbox) else hub.last_id, self._mailbox.reset  # waiting events have later ids
        why = breaker.outage
        down = encode("upstream", _notice_json(Notice("down", why))) if why else b""
        return lambda channel: self._first(channel.frame, known, last, reset, down)

    def _first(
        self, frame: Callable[[bytes], bytes], known: Sequence[Snapshot], last: str, reset: bool, down: bytes
    ) -> Iterator[bytes]:
        lead = encode_retry(self._api.policy.retry)
        for snapshot in known:
            yield frame(lead + self._api.snapshot(snapshot, self._view, reset, last if snapshot is known[-1] else ""))
            lead = b""
        yield frame(lead + down)

    def _open(self, channel: Channel, first: Callable[[Channel], Iterator[bytes]]) -> None:
        self._channel = channel
        self._waiting = first(channel)
        self._slot = self._api.add(self)
        channel.on_drain(self._flush)
        channel.farewell(channel.frame(self._api.retry_after_stop()))
        self._flush()
        channel.on_close(self._clean_up)
        if self._api.closed:
            self.end()

    def _flush(self) -> None:
        """Writes waiting events while the reader takes them. When none is left, `_send` gets later events directly."""
        assert self._channel is not None and self._mailbox is not None
        while data := self._next_chunk(self._channel, self._mailbox):
            if not self._channel.write(data):
                return
        self._mailbox.attach(self._send)

    def _next_chunk(self, channel: Channel, mailbox: Mailbox) -> bytes:
        """Whole waiting events, about `_CHUNK` bytes; b"" if there are none."""
        pieces: list[bytes] = []
        size = 0
        while size < _CHUNK:
            piece = next(self._waiting, None)
            if piece is not None:
                pieces.append(piece)
                size += len(piece)
            elif events := mailbox.take():
                self._waiting = self._framed(events, channel.frame)
            else:
                break
        return b"".join(pieces)

    def _framed(self, events: Collection[Event], frame: Callable[[bytes], bytes]) -> Iterator[bytes]:
        return (self._api.encoded(event, self._view, frame) for event in events)

    def _send(self, event: Event) -> None:
        """Writes an event. An exception ends only this stream, so that the other readers get the event."""
        try:
            channel, view = self._channel, self._view
            assert channel is not None
            for_event, for_view, frame, data = self._api.last_encoded
            if for_event is not event or for_view is not view or frame is not channel.frame:
                data = self._api.encoded(event, view, channel.frame)
            if data and not channel.write(data) and self._mailbox is not None:
                self._mailbox.detach()
        except Exception as error:
            self._api.agent.supervisor.failed("event stream", error)
            self.end()
            self._clean_up()

    def beat(self) -> None:
        """Sends a heartbeat, unless the reader is slow."""
        channel, mailbox = self._channel, self._mailbox
        if channel is not None and mailbox is not None and mailbox.sink is not None:
            if not channel.write(channel.frame(HEARTBEAT)):
                mailbox.detach()

    def end(self) -> None:
        """Ends the stream because the proxy stops or its client lost access. An exception does not reach the caller."""
        self._api.agent.supervisor.call("event stream", self._close)

    def lose(self, key: ServiceKey) -> None:
        """The upstream no longer shows a service of this stream."""
        self.end()

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.write(self._channel.frame(self._api.retry_after_stop()))
            self._channel.close()

    def refuse(self, why: ProxyError) -> None:
        """Ends the stream because its client lost access. If it has not begun, the answer is `why`."""
        self._refused = why
        self.end()

    def _clean_up(self) -> None:
        """Releases everything after the stream has ended. A second call does nothing."""
        self._release()
        if self._client is None:
            return
        self._api.quota.leave(self._client, self.interest.keys)
        self._client = None
        self._waiting = iter(())
        if self._slot >= 0:
            self._api.drop(self, self._slot)
        if self._mailbox is not None:
            self._mailbox.detach()
            self._api.agent.unwatch(self._mailbox)
            if self.interest.everything is not None:
                self._api.forget(*self.interest.everything)


router = APIRouter(route_class=ApiRoute, tags=["events"], default_response_class=Response)
_EXAMPLE = (
    'retry: 2000\n\nid: 1f0c9ab2-17\nevent: snapshot\ndata: {"name":"DEFAULT_GROUP@@orders","hosts":[],…}\n\n'
    'id: 1f0c9ab2-18\nevent: change\ndata: {…,"added":[…],"modified":[],"removed":[],"source":"push"}\n\n'
    'id: 1f0c9ab2-19\nevent: upstream\ndata: {"state":"down","reason":"connection refused"}\n\n:\n\n'
)


@router.get(
    "/api/v1/events",
    summary="Server-Sent Events of one or many services",
    description="First a `snapshot` of each service, then a `change` for each change (the new snapshot with `added`, "
    "`modified`, `removed` and `source`), and `upstream` when the upstream goes down or comes back. A comment every "
    "15 s keeps the stream alive. `Last-Event-ID` resumes without a gap; if that is no longer possible, new snapshots "
    'have `"reset": true`. A slow reader may miss intermediate states, but never the last one. Repeat `service` for '
    "several services; `service=*` is every service of the group.",
    responses=documented(
        _EXAMPLE, None, *READ_ERRORS, examples.TOO_MANY, description="The stream", media="text/event-stream"
    ),
)
async def events(
    request: ApiRequest,
    query: Annotated[EventsQuery, InQuery()],
    api: Annotated[EventsApi, Depends(provided(EventsApi))],
) -> Response:
    """Not one of FastAPI's event streams, which cost a task and a queue per reader."""
    if api.closed:
        path = request.scope["path"]
        return Reply(plain_problem(503, "the proxy is stopping", path, (("retry-after", "2"),)))
    return Reply(api.stream(request, query))

"""Follows the event stream of an upper proxy: one connection for all services that are watched.

    the watched services change | a new stream names all of them; the old one goes on until the new one answers
    the stream is lost          | the next one begins after the time that the upper proxy gave, with a random part
    it cannot be opened         | the next upper proxy is tried, after a pause that grows
    it names too many services  | the old one goes on; if there is none, fewer are named, and the rest is polled
    it has lost its upstream    | another upper proxy is asked from time to time, and followed if it has not
    it is silent                | it counts as lost after `silence` seconds; the upper proxy sends heartbeats

Each stream names the revisions that were received before, so the upper proxy sends what changed meanwhile and no more.
The last event id tells whether the upper proxy still is the same run: if not, it may have lost its data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import Malformed, Refused, UpstreamError
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, Supervisor, at_most, stood_still, stop, ticks
from nacos_proxy.upstream.contract import Changed, Confirmed, Doubted, Report
from nacos_proxy.upstream.http.exchange import HttpClient
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.upstream.proxy.opening import Headers, Opener, Stream, no_headers
from nacos_proxy.wire.rest.sse import Decoder, Event
from nacos_proxy.wire.rest.tiers import (
    BEGIN,
    CHANGE,
    CURRENT,
    SNAPSHOT,
    UPSTREAM,
    read_begin,
    read_current,
    read_data,
    read_whole,
)

log = logging.getLogger("nacos_proxy.push")

BACKOFF = Backoff(initial=1.0, maximum=30.0, jitter=0.5)  # of attempts to open a stream
ELSEWHERE = Backoff(initial=10.0, maximum=60.0, jitter=0.5)  # until another upper proxy is asked during an outage
TOO_MANY = (413, 429)  # statuses: the request is too long for the upper proxy, or it has a limit for each client
FULL = 60.0  # seconds, with a random part, until a stream for all services is tried again after that
AT_ONCE = 500  # lists that are confirmed in one turn of the loop
TICK = 1.0  # seconds; a shorter stop of this process is not noticed
RETURN = 2.0  # seconds, times a random number, until a stream is opened after the upper proxy has come back
GATHER, GATHER_EACH = 0.1, 0.0002  # seconds for which changes of the watched services are gathered, and more for each


@dataclass(frozen=True, slots=True)
class ProxyEventsPolicy:
    """`origins`: scheme, host and port of each upper proxy.

    A stream without a byte for `silence` seconds is lost. After a loss, `alive` stays true for `grace` seconds, so that
    a restart of the upper proxy does not make all lower ones poll it. `retry`: seconds before a reconnect, if the upper
    proxy gives no other time.
    """

    origins: tuple[str, ...]
    silence: float = 40.0
    grace: float = 15.0
    retry: float = 2.0


class ProxyEvents:
    """Implements `Watchable`. It connects when the first service is watched; `close` ends it.

    `unavailable`: why the last stream could not be opened; '' if it could, or none was tried yet. `resumed`, `resets`:
    streams that followed another one of the same run of the upper proxy, and of an earlier run. `reconnects`: both,
    after a loss. `limit`: why the stream is not for all watched services; '' if it is.
    `on_lost`: called when the upper proxy may have lost its data.
    """

    def __init__(
        self,
        policy: ProxyEventsPolicy,
        http: HttpClient,
        clock: Clock,
        rng: Callable[[], float],
        supervisor: Supervisor | None = None,
        headers: Headers = no_headers,
    ) -> None:
        self.unavailable = self.limit = ""
        self.was_alive = False
        self.resumed = self.resets = self.reconnects = 0
        self.on_lost: list[Callable[[], None]] = []
        self._policy = policy
        self._opener = Opener(http, policy.silence, headers)
        self._clock = clock
        self._rng = rng
        self._supervisor = supervisor or Supervisor(clock)
        self._turn = int(rng() * len(policy.origins))
        self._watched: frozenset[ServiceKey] = frozenset()
        self._followed: frozenset[ServiceKey] = frozenset()  # by the current stream
        self._held: dict[ServiceKey, tuple[str, Snapshot]] = {}  # as last received, and the upper proxy's revision
        self._last_id = ""
        self._retry = policy.retry
        self._retry_at = 0.0
        self._moved: asyncio.Future[None] | None = None  # `_retry_at` is another than before
        self._failures = 0
        self._max_named: int | None = None  # services in the next request
        self._lost_at: float | None = None
        self._doubt: str | None = None
        self._news: dict[ServiceKey | type[Report], Report] = {}
        self._wake = asyncio.Event()  # for `changes`
        self._needed = asyncio.Event()  # for `_run`: another stream may be needed
        self._running: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tick_due = 0.0
        self._ticking: asyncio.Task[None] | None = None
        self._seeking: asyncio.Task[None] | None = None
        self._moving = False  # to the upper proxy whose turn it is
        self._closed = False
        self._takers: dict[str, Callable[[Stream, Any], None]] = {
            BEGIN: self._take_begin,
            SNAPSHOT: self._take_list,
            CHANGE: self._take_list,
            CURRENT: self._take_current,
            UPSTREAM: self._take_upstream,
        }

    @property
    def open(self) -> bool:
        """Whether a stream is being read."""
        return self._reading is not None and not self._reading.done()

    @property
    def alive(self) -> bool:
        if not self.was_alive or self._closed:
            return False
        return self._lost_at is None or self._clock.now() < self._lost_at + self._policy.grace

    @property
    def origin(self) -> str:
        """The upper proxy whose turn it is."""
        return self._policy.origins[self._turn % len(self._policy.origins)]

    def covers(self, key: ServiceKey) -> bool:
        return key in self._followed and key in self._held

    def status(self) -> dict[str, Any]:
        """The stream and its history, ready for JSON."""
        return {
            "kind": "proxy",
            "servers": [self._stream.origin] if self._stream is not None and self.open else [],
            "subscriptions": sum(map(self.covers, self._watched)),
            "resumed": self.resumed,
            "resets": self.resets,
            "reconnects": self.reconnects,
            **({"limit": self.limit} if self.limit else {}),
        }

    def watch(self, services: Collection[ServiceKey]) -> None:
        watched = frozenset(services)
        if watched == self._watched or self._closed:
            return
        for key in self._watched - watched:
            self._held.pop(key, None)
            self._news.pop(key, None)
        self._watched = watched
        if self._running is None:
            self._running = self._supervisor.keep(self._run, name="upper proxy")
            self._tick_due = self._clock.now() + TICK
            self._ticking = self._supervisor.keep(self._tick, name="upper proxy")
        if not watched <= self._followed:  # services that nobody watches any more can wait for the next heartbeat
            self._needed.set()

    def upstream_is_back(self) -> None:
        """The upper proxy answers again after an outage: no need to wait as long as for one that is away."""
        if not self.open:
            self._failures = 0
            self._retry_after(min(RETURN * self._rng(), max(0.0, self._retry_at - self._clock.now())))

    async def changes(self) -> AsyncIterator[Report]:
        while not self._closed:
            if not self._news:
                self._wake.clear()
                await self._wake.wait()
                continue
            report = self._news.pop(next(iter(self._news)))
            for part in _parts(report):
                yield part
                await asyncio.sleep(0)  # others must run during a burst

    def _report(self, about: ServiceKey | type[Report], report: Report) -> None:
        """Only the last report about something is kept until `changes` yields it, after the earlier ones."""
        self._news.pop(about, None)
        self._news[about] = report
        self._wake.set()

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        await stop(self._running)
        await stop(self._seeking)
        await stop(self._ticking)
        await self._stop_reading()

    async def _stop_reading(self) -> None:
        await stop(self._reading)
        if self._stream is not None:
            await self._stream.response.aclose()  # a task that had not begun to read has not closed it

    async def _tick(self) -> None:
        async for now, gap in ticks(self._clock, TICK):
            if not gap:  # else this process needs a tick to read what has waited
                self._tick_due = now + TICK

    async def _run(self) -> None:
        self._needed.set()  # an exception may have ended the last attempt
        while True:
            await self._needed.wait()
            self._needed.clear()
            await self._pause()
            wanted = self._wanted()
            if self.open and wanted == self._followed and not self._moving:
                continue
            if not wanted:
                await self._stop_reading()
                self._followed = wanted
                continue
            try:
                named = {key: self._held[key][0] if key in self._held else "" for key in wanted}
                stream = await self._opener.open(self.origin, named, self._last_id)
            except UpstreamError as error:
                self._not_opened(error, len(wanted))
                continue
            try:
                await self._stop_reading()
            except asyncio.CancelledError:
                await stream.response.aclose()
                raise
            self._stream, self._followed, self._moving = stream, wanted, False
            self._reading = self._supervisor.once(self._read(stream), name="upper proxy")
            if self._max_named is not None:
                self._retry_after(FULL * (0.5 + self._rng()))

    async def _pause(self) -> None:
        """Returns when the next request may be sent."""
        gathered = self._clock.now() + GATHER + GATHER_EACH * len(self._watched)
        while (left := max(self._retry_at, gathered) - self._clock.now()) > 0:
            self._moved = asyncio.get_running_loop().create_future()
            await at_most(self._clock, left, self._moved)

    def _retry_after(self, delay: float) -> None:
        self._retry_at = self._clock.now() + delay
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    def _wanted(self) -> frozenset[ServiceKey]:
        """The services to name, as many as are allowed. Those come first that were followed before."""
        if self._max_named is None or len(self._watched) <= self._max_named:
            return self._watched
        followed = self._followed
        return frozenset(sorted(self._watched, key=lambda key: (key not in followed, key))[: self._max_named])

    def _not_opened(self, error: UpstreamError, named: int) -> None:
        if not self.unavailable and self.open:
            log.warning("the event stream cannot be opened for other services: %s; it goes on for those before", error)
        elif not self.unavailable:
            log.warning("no event stream of the upper proxy: %s; changes are found by polling", error)
        self.unavailable = str(error)
        self._failures += 1
        self._turn += 1
        self._retry_after(BACKOFF.delay(self._failures - 1, self._rng))
        if isinstance(error, Refused) and error.status in TOO_MANY:
            self.limit = str(error)
            if self.open:
                self._retry_after(FULL * (0.5 + self._rng()))
            else:
                kept = len(self._followed & self._watched)
                self._max_named = kept if 0 < kept < named else max(1, named // 2)
        if not self.open and self._lost_at is None:
            self._lost_at = self._clock.now()
        self._needed.set()

    async def _read(self, stream: Stream) -> None:
        """Reads a stream to its end. That a new one takes its place cancels it, and is no loss."""
        decoder, origin, response, error = Decoder(), stream.origin, stream.response, "the stream ended"
        try:
            async for chunk in response.aiter_raw():
                for event in decoder.feed(chunk):
                    self._take(stream, event)
        except CAUGHT as failure:
            error = str(upstream_error(failure, origin))
        except Malformed as failure:
            error = f"{origin}: {failure}"
        except Exception as failure:  # a bug here must not make a dead stream look alive
            self._supervisor.failed("upper proxy", failure)
            error = f"{type(failure).__name__} in the proxy"
        finally:
            await response.aclose()
        self._lost(stream, error)

    def _take(self, stream: Stream, event: Event) -> None:
        """Raises `Malformed`."""
        if event.retry is not None:
            self._retry = event.retry / 1000
        if ".part-" not in event.id:  # such an event is not one to resume after
            self._last_id = event.id or self._last_id
        if not event.data:
            return
        if (take := self._takers.get(event.kind)) is not None:  # else it is of a later version
            take(stream, read_data(event.data))

    def _take_begin(self, stream: Stream, data: Any) -> None:
        begin = read_begin(data)
        if self._lost_at is not None:
            self.reconnects += 1
        if self._last_id:
            self.resumed += not begin.reset
            self.resets += begin.reset
        if begin.reset:
            log.warning("the upper proxy %s is another run than before", stream.origin)
            for listener in self.on_lost:
                self._supervisor.call("upper proxy", listener)
        self._doubted(begin.outage)

    def _take_list(self, stream: Stream, data: Any) -> None:
        snapshot, revision = read_whole(data)
        if (key := snapshot.key) in self._watched:
            if snapshot.via is not None and self._waited:
                snapshot = snapshot.heard(replace(snapshot.via, age=snapshot.via.age + self._waited))
            stream.revisions[key] = revision
            self._held[key] = revision, snapshot
            self._report(key, Changed(key, snapshot, whole=True))

    @property
    def _waited(self) -> float:
        """Seconds for which an event may have waited to be read, because this process stood still."""
        return stood_still(self._tick_due, self._clock.now())

    def _take_upstream(self, _: Stream, data: Any) -> None:
        down = isinstance(data, dict) and data.get("state") == "down"  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        self._doubted(str(data.get("reason") or "it does not say why") if down else "")  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

    def _doubted(self, reason: str) -> None:
        if reason != self._doubt:
            self._doubt = reason
            self._report(Doubted, Doubted(reason))
        if reason and len(self._policy.origins) > 1 and (self._seeking is None or self._seeking.done()):
            self._seeking = self._supervisor.once(self._seek(), name="upper proxy")

    async def _seek(self) -> None:
        """Until the outage is over: moves to another upper proxy if that one has none."""
        origins, failures = self._policy.origins, 0
        while True:
            await self._clock.sleep_until(self._clock.now() + ELSEWHERE.delay(failures, self._rng))
            failures += 1
            if not self._doubt or self._stream is None or not self._followed:
                return
            there = origins.index(self._stream.origin) + 1 + int(self._rng() * (len(origins) - 1))
            origin = origins[there % len(origins)]
            if await self._opener.is_well(origin, next(iter(self._followed))):
                log.info("the upper proxy %s has not lost its upstream: moving there", origin)
                self._turn, self._moving = there, True
                self._needed.set()
                return

    def _take_current(self, stream: Stream, data: Any) -> None:
        via, unconfirmed = read_current(data)
        if not stream.is_current:
            stream.is_current = True
            self._became_current(stream)
        self._retry = self._policy.retry
        if via is not None:
            held = {key: list for key, (_, list) in self._held.items() if key not in unconfirmed}
            self._report(Confirmed, Confirmed(held, replace(via, age=via.age + self._waited)))
        if self._watched != self._followed:
            self._needed.set()

    def _became_current(self, stream: Stream) -> None:
        if self._lost_at is not None or not self.was_alive:
            log.info("following the event stream of the upper proxy %s", stream.origin)
        self._lost_at, self.was_alive, self.unavailable, self._failures = None, True, "", 0
        if self._max_named is None:
            self.limit = ""
        self._max_named = None  # for the next stream, which may be for all again
        # A change that the stream before brought after this one's request may have been undone before the upper proxy
        # compared: then the list is again the one that was named, and nothing was sent.
        for key, revision in stream.revisions.items():
            if key in self._held and self._held[key][0] != revision:
                del self._held[key]
                self._report(key, Changed(key))

    def _lost(self, stream: Stream, error: str) -> None:
        log.warning("the event stream of the upper proxy %s is lost: %s", stream.origin, error)
        self._lost_at, self._doubt = self._clock.now(), None
        self._retry_after(self._retry * (0.5 + self._rng()))
        self._turn += 1
        self._needed.set()


def _parts(report: Report) -> Iterator[Report]:
    """A report in parts that do not block the loop for long."""
    if not isinstance(report, Confirmed) or len(report.lists) <= AT_ONCE:
        yield report
        return
    lists = iter(report.lists.items())
    while part := dict(islice(lists, AT_ONCE)):
        yield Confirmed(part, report.via)

"""Long polls: a request for one service that is answered when the service changes, or when the time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from nacos_proxy.catalog.freshness import cache_headers
from nacos_proxy.catalog.hub import Event, Filter, Mailbox
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import client_of
from nacos_proxy.frontends.channel import wait_for_disconnect
from nacos_proxy.frontends.events.stream_quota import StreamQuota
from nacos_proxy.frontends.open_streams import end_on_revocation
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import READ_ERRORS
from nacos_proxy.frontends.rest.routing import (
    ApiRequest,
    ApiRoute,
    Reply,
    ServiceName,
    documented,
    json_reply,
    provided,
)
from nacos_proxy.frontends.rest.services import SERVICE
from nacos_proxy.model.errors import BadCall, NothingKnown, ProxyError, Violation
from nacos_proxy.model.services import Change, ServiceKey, Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.wire.rest.bodies import change_json, etag, snapshot_json
from nacos_proxy.wire.rest.query import ViewQuery, read_wait

INDEX_HEADER = "nacos-proxy-index"


@dataclass(eq=False, slots=True)
class _Poll:
    """A long poll in progress. If `error` is set, it is the response."""

    interest: Filter
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    error: ProxyError | None = None

    def end(self, why: ProxyError) -> None:
        self.error = why
        self.woken.set()


class LongPolls:
    """All long polls in progress."""

    def __init__(self, agent: Agent, quota: StreamQuota) -> None:
        self.closed = False
        self.agent = agent
        self.quota = quota
        self._polls: set[_Poll] = set()

    async def watch(self, request: ApiRequest, key: ServiceKey, view: View, index: str, wait: float) -> Reply:
        """Answers at once if the revision is not `index`, else after a change that `view` shows, or `wait` seconds."""
        await self.agent.read(key)  # raises if there is nothing to watch
        await self.hold(
            request,
            Filter(frozenset({key})),
            wait,
            unchanged=lambda known: bool(known) and known[0].revision == index,
            ends=lambda event: isinstance(event.body, Change) and change_json(event.body, view) is not None,
        )
        cached = self.agent.catalog.cache.lookup(key, self.agent.clock.now())
        if cached.snapshot is None:
            raise cached.error or NothingKnown("the proxy dropped this service in the meantime")
        tag = etag(cached.snapshot.revision, *view.variant, "stale" if cached.stale else "")
        headers = (*cache_headers(cached), ("etag", tag), (INDEX_HEADER, cached.snapshot.revision))
        shown = snapshot_json(cached.snapshot, view, stale=cached.stale)
        return json_reply(shown, headers=(*headers, ("cache-control", "no-store")))

    async def hold(
        self,
        request: Request,
        interest: Filter,
        wait: float,
        *,
        unchanged: Callable[[Sequence[Snapshot]], bool],
        ends: Callable[[Event], bool],
    ) -> None:
        """Returns at an event for which `ends` is true, after `wait` seconds, or when the client has left.

        Does not wait if `unchanged` is false of the snapshots of the services at the start. Raises `BadCall` (429)
        beyond the quota, and the error with which the poll is refused.
        """
        client = client_of(request.scope)
        poll = _Poll(interest)
        self.quota.take(client, interest.keys)
        self._polls.add(poll)
        release = end_on_revocation(request.scope, poll.end)
        try:
            mailbox, known = await self.agent.watch(interest, poll.woken.set, client=client)
            try:
                if unchanged(known) and not self.closed:
                    await self._first(request.receive, mailbox, poll, ends, wait)
            finally:
                self.agent.unwatch(mailbox)
        finally:
            release()
            self._polls.discard(poll)
            self.quota.leave(client, interest.keys)
        if poll.error is not None:
            raise poll.error.with_traceback(None)

    async def _first(
        self, receive: Receive, mailbox: Mailbox, poll: _Poll, ends: Callable[[Event], bool], wait: float
    ) -> None:
        clock, woken = self.agent.clock, poll.woken
        others = [
            spawn(clock.sleep_until(clock.now() + wait), name="long poll"),
            spawn(wait_for_disconnect(receive), name="long poll"),
        ]
        for other in others:
            other.add_done_callback(lambda _: woken.set())
        try:
            while not self.closed and poll.error is None and not any(other.done() for other in others):
                await woken.wait()
                woken.clear()
                if any(ends(event) for event in mailbox.take()):
                    return
        finally:
            for other in others:
                await stop(other)

    def close(self) -> None:
        """Answers all long polls at once, now and from now on."""
        self.closed = True
        for poll in self._polls:
            poll.woken.set()

    def refuse(self, why: ProxyError, key: ServiceKey | None = None) -> None:
        """Answers the long polls of a service, or all, with `why`."""
        for poll in self._polls:
            if key is None or poll.interest.wants(key):
                poll.end(why)

    def __len__(self) -> int:
        return len(self._polls)


router = APIRouter(route_class=ApiRoute, tags=["events"], default_response_class=Response)


class WatchQuery(ViewQuery):
    index: Annotated[str, Field(description="The `revision` that the caller has; empty if it has none.")] = ""
    wait: Annotated[
        str,
        Field(description="How long to wait at most: `30s`, `1500ms`, `2m`; at most five minutes.", examples=["30s"]),
    ] = "30s"


@router.get(
    SERVICE + "/watch",
    summary="Wait for a change of a service",
    description="Answers at once if the service's revision is not `index`; otherwise at the first change that passes "
    "the filters, or unchanged after `wait`. The header `Nacos-Proxy-Index` is the next `index`.",
    responses=documented(
        *(examples.SNAPSHOT_JSON, models.Snapshot, *READ_ERRORS),
        BadCall("wait", Violation.ILLEGAL, "Param 'wait' is illegal, it must be a time like 30s, 1500ms or 2m."),
        examples.TOO_MANY,
    ),
)
async def watch(
    request: ApiRequest,
    service: ServiceName,
    query: Annotated[WatchQuery, Query()],
    polls: Annotated[LongPolls, Depends(provided(LongPolls))],
) -> Response:
    key, view = query.service_key(service, request.rules), query.view(request.rules)
    return await polls.watch(request, key, view, query.index.strip('"'), read_wait(query.wait))

"""Long polls: a service is returned when it changes, or when the time is up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from nacos_proxy.catalog.freshness import cache_headers
from nacos_proxy.catalog.hub import Filter, Mailbox
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.answers import client_of
from nacos_proxy.frontends.channel import wait_for_disconnect
from nacos_proxy.frontends.events.stream_quota import StreamQuota
from nacos_proxy.frontends.open_streams import end_on_revocation
from nacos_proxy.frontends.rest.services import json_reply, target
from nacos_proxy.model.errors import NothingKnown, ProxyError
from nacos_proxy.model.services import Change, ServiceKey
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.rest.bodies import change_json, etag, snapshot_json
from nacos_proxy.wire.rest.query import View, read_view, read_wait

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
    """The endpoint and all long polls in progress."""

    def __init__(self, agent: Agent, quota: StreamQuota) -> None:
        self.closed = False
        self.agent = agent
        self.quota = quota
        self._polls: set[_Poll] = set()

    async def watch(self, request: Request) -> HttpReply:
        key, query = target(request)
        view, index, wait = read_view(query), query.text("index").strip('"'), read_wait(query)
        await self.agent.read(key)  # raises if there is no such service
        client = client_of(request.scope)
        poll = _Poll(Filter(frozenset({key}), clusters=view.cluster_set, healthy_only=view.healthy_only))
        self.quota.take(client, poll.interest.keys)
        self._polls.add(poll)
        release = end_on_revocation(request.scope, poll.end)
        try:
            mailbox, known = await self.agent.watch(poll.interest, poll.woken.set, client=client)
            try:
                if known and known[0].revision == index and not self.closed:
                    await self._first_change(request, mailbox, poll, view, wait)
            finally:
                self.agent.unwatch(mailbox)
        finally:
            release()
            self._polls.discard(poll)
            self.quota.leave(client, poll.interest.keys)
        if poll.error is not None:
            raise poll.error.with_traceback(None)
        return self._watched(key, view)

    async def _first_change(self, request: Request, mailbox: Mailbox, poll: _Poll, view: View, wait: float) -> None:
        clock, woken = self.agent.clock, poll.woken
        ends = [
            spawn(clock.sleep_until(clock.now() + wait), name="long poll"),
            spawn(wait_for_disconnect(request.receive), name="long poll"),
        ]
        for end in ends:
            end.add_done_callback(lambda _: woken.set())
        try:
            while not self.closed and poll.error is None and not any(end.done() for end in ends):
                await woken.wait()
                woken.clear()
                if any(isinstance(e.body, Change) and change_json(e.body, view) for e in mailbox.take()):
                    return
        finally:
            for end in ends:
                await stop(end)

    def _watched(self, key: ServiceKey, view: View) -> HttpReply:
        result = self.agent.catalog.cache.lookup(key, self.agent.clock.now())
        if result.snapshot is None:  # refused during the poll
            raise result.error or NothingKnown("this service was forgotten during the poll")
        tag = etag(result.snapshot.revision, view.clusters, view.healthy_only, "stale" if result.stale else "")
        headers = (*cache_headers(result), ("etag", tag), (INDEX_HEADER, result.snapshot.revision))
        shown = snapshot_json(result.snapshot, view, stale=result.stale)
        return json_reply(shown, headers=(*headers, ("cache-control", "no-store")))

    def close(self) -> None:
        """Answers all long polls, and later ones at once."""
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

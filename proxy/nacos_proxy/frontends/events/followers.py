"""What lower proxies ask this one for: whole snapshots, one at a time, or as they change (`wire.rest.tiers`).

A lower proxy names all services that it watches, with the revision that it has of each. It gets the snapshots of those
that have another one now, then each change. So it misses nothing, also after an outage or a restart, and a restart of
this proxy does not send everything to everyone. Each heartbeat says how old the lists are at most.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Depends, Query
from fastapi.openapi.models import Example
from starlette.responses import Response
from starlette.types import Scope

from nacos_proxy.catalog.freshness import via_of
from nacos_proxy.catalog.hub import Event, Filter
from nacos_proxy.frontends.answers import client_of
from nacos_proxy.frontends.events.streams import WHOLE as WHOLE_VIEW
from nacos_proxy.frontends.events.streams import EventsApi, ResumeQuery, Stream, no_wake_up
from nacos_proxy.frontends.rest import examples, models
from nacos_proxy.frontends.rest.examples import BODY_ERRORS, FRESHNESS, READ_ERRORS
from nacos_proxy.frontends.rest.routing import ApiRequest, ApiRoute, Reply, ServiceName, documented, provided
from nacos_proxy.frontends.rest.services import Api
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import Change, ServiceKey, Snapshot, Via
from nacos_proxy.wire.http import Channel
from nacos_proxy.wire.rest.problem import plain_problem
from nacos_proxy.wire.rest.query import ServiceQuery
from nacos_proxy.wire.rest.sse import encode, encode_retry
from nacos_proxy.wire.rest.tiers import (
    BEGIN,
    CURRENT,
    EVENTS,
    SNAPSHOT,
    WHOLE,
    Begin,
    FollowBody,
    services_in,
    via_json,
    whole_json,
    write_begin,
    write_current,
)


class FollowStream(Stream):
    """The stream of one lower proxy. `named`: all services in its request. `revisions`: those that are watched.

    The others are never confirmed.
    """

    __slots__ = ("_revisions", "_unsent")

    def __init__(
        self,
        api: EventsApi,
        scope: Scope,
        named: Collection[ServiceKey],
        revisions: Mapping[ServiceKey, str],
        after: str,
        client: str,
    ) -> None:
        super().__init__(api, scope, Filter(frozenset(named)), WHOLE_VIEW, after, client)
        self._revisions: Mapping[ServiceKey, str] = revisions
        self._unsent: set[ServiceKey] = set()  # services of which nothing is known

    async def _begin(self) -> Callable[[Channel], Iterator[bytes]]:
        agent = self._api.agent
        self._mailbox, changed = await agent.watch_from(self._revisions, no_wake_up, self._after, self._client or "")
        cache, begin = agent.catalog.cache, self._state(self._mailbox.reset)
        entries = ((key, cache.get(key)) for key in self._revisions)
        self._unsent = {key for key, entry in entries if entry is None or entry.visible is None}
        self._revisions = {}
        return lambda channel: self._first_events(channel.frame, begin, [snapshot.key for snapshot in changed])

    def _state(self, reset: bool) -> bytes:
        return encode(BEGIN, write_begin(Begin(reset, self._api.agent.catalog.breaker.outage)))

    def _first_events(
        self, frame: Callable[[bytes], bytes], begin: bytes, changed: Iterable[ServiceKey]
    ) -> Iterator[bytes]:
        yield frame(encode_retry(self._api.policy.retry) + begin)
        yield from self._lists_and_current(frame, changed)

    def _lists_and_current(self, frame: Callable[[bytes], bytes], keys: Iterable[ServiceKey]) -> Iterator[bytes]:
        """The lists as they are when they are written, then what changed meanwhile, then that this is all."""
        mailbox, cache = self._mailbox, self._api.agent.catalog.cache
        assert mailbox is not None
        for key in keys:
            entry = cache.get(key)
            if entry is not None and entry.visible is not None:
                mailbox.drop(key)  # it is in the list
                self._unsent.discard(key)
                yield frame(self._snapshot(entry.visible))
        while events := mailbox.take():
            yield from self._framed(events, frame)
        yield frame(self._current())

    def _framed(self, events: Collection[Event], frame: Callable[[bytes], bytes]) -> Iterator[bytes]:
        self._unsent.difference_update(event.body.key for event in events if isinstance(event.body, Change))
        return super()._framed(events, frame)

    def _send(self, event: Event) -> None:
        if isinstance(event.body, Change):
            self._unsent.discard(event.body.key)
        super()._send(event)

    def _snapshot(self, snapshot: Snapshot) -> bytes:
        agent = self._api.agent
        via = via_of(agent.catalog.cache.lookup(snapshot.key, agent.clock.now()))
        return encode(SNAPSHOT, orjson.dumps({**whole_json(snapshot), **via_json(via)}))

    def _current(self) -> bytes:
        """That all lists were sent, and how old they are at most. During an outage nothing is confirmed."""
        catalog, now = self._api.agent.catalog, self._api.agent.clock.now()
        oldest, unconfirmed = catalog.cache.confirmations(self.interest.keys, now)
        known = oldest is not None and not catalog.breaker.outage
        via: Via | None = via_of(oldest) if known and oldest is not None else None
        return encode(CURRENT, write_current(via, unconfirmed if via is not None else ()), catalog.hub.last_id)

    def lose(self, key: ServiceKey) -> None:
        """The stream of all others goes on. As the cache has lost the list, it is no longer confirmed."""
        if self._mailbox is not None:
            self._mailbox.drop(key)
        self._unsent.add(key)

    def beat(self) -> None:
        """Sends what became known without a change, and how old all lists are; nothing to a slow reader."""
        channel, mailbox = self._channel, self._mailbox
        if self._api.agent.catalog.breaker.outage:
            super().beat()
        elif channel is not None and mailbox is not None and mailbox.sink is not None:
            mailbox.detach()
            self._waiting = self._lists_and_current(channel.frame, sorted(self._unsent))
            self._flush()


def _legal(key: ServiceKey, rules: Rules) -> bool:
    try:
        rules.service(key)
    except BadCall:
        return False
    return True


router = APIRouter(route_class=ApiRoute, tags=["tiers"], default_response_class=Response)
_EXAMPLE = (
    'retry: 2000\n\nevent: begin\ndata: {"reset":false,"outage":""}\n\n'
    'event: snapshot\ndata: {"name":"DEFAULT_GROUP@@orders",…,"age":1.5,"stale":false,"cacheStatus":"…"}\n\n'
    'id: 1f0c9ab2-17\nevent: current\ndata: {"confirmed":{"age":12.1,…},"unconfirmed":{}}\n\n'
)
_BODIES: dict[str, Example] = {
    "follow": {
        "summary": "Nothing is known of orders, and one revision of stock",
        "value": {"services": {"public": {"DEFAULT_GROUP": {"orders": "", "stock": "8f14e45fceea167a"}}}},
    }
}


@router.get(
    WHOLE,
    summary="A service as a lower proxy needs it",
    description="All that this proxy knows: every instance with its true health, disabled ones if the upstream shows "
    "them, and the protection threshold. Clients use `/api/v1/services/{service}`." + FRESHNESS,
    responses=examples.of_a_read(whole_json(examples.AFTER), models.Whole),
)
async def whole(
    request: ApiRequest, service: ServiceName, query: Annotated[ServiceQuery, Query()], api: Api
) -> Response:
    key = query.service_key(service, request.rules)
    return await api.reads.answer(request, key, "whole", (), lambda found, _: whole_json(found))


@router.post(
    EVENTS,
    summary="Server-Sent Events for a lower proxy",
    description="For a proxy whose upstream is this one; other readers use GET. The body names the services, with the "
    "revision that the reader has of each. First `begin`, then a `snapshot` of each service that has another revision "
    "now, then `current`: all were sent. Then a `change` for each change, `upstream` as with GET, and with each "
    "heartbeat `current`, which says how old the lists are at most.",
    responses=documented(
        _EXAMPLE,
        None,
        *READ_ERRORS,
        *BODY_ERRORS,
        examples.TOO_MANY,
        description="The stream",
        media="text/event-stream",
    ),
)
async def follow(
    request: ApiRequest,
    query: Annotated[ResumeQuery, Query()],
    body: Annotated[FollowBody, Body(openapi_examples=_BODIES)],
    api: Annotated[EventsApi, Depends(provided(EventsApi))],
) -> Response:
    if api.closed:
        return Reply(plain_problem(503, "the proxy is stopping", request.scope["path"], (("retry-after", "2"),)))
    client, named = client_of(request.scope), services_in(body.services)
    after = request.headers.get("last-event-id") or query.lastEventId
    api.quota.take(client, named.keys())  # first, as it costs less than to check the names
    # A name that the rules here forbid must not end the stream of all others. It is not confirmed, so the lower proxy
    # polls it, and learns why.
    revisions = {key: revision for key, revision in named.items() if _legal(key, request.rules)}
    return Reply(FollowStream(api, request.scope, named.keys(), revisions, after[:100], client))

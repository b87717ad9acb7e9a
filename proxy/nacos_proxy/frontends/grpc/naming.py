"""The naming requests of one session: queries, subscriptions, published instances."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from nacos_proxy.catalog.hub import Filter, Mailbox
from nacos_proxy.catalog.publications import Owner
from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.grpc.access import Admit, Publishing, Served
from nacos_proxy.frontends.grpc.pushes import Pushes
from nacos_proxy.frontends.open_streams import End
from nacos_proxy.model.calls import Deregister, ListServices, Register, ServicePage
from nacos_proxy.model.errors import NothingKnown, ProxyError, UpstreamError, is_unavailable
from nacos_proxy.model.limits import BLANK
from nacos_proxy.model.services import Change, ServiceKey, Snapshot
from nacos_proxy.wire.nacos.base import ReadService, ServiceView
from nacos_proxy.wire.nacos.grpc.payload import write_payload
from nacos_proxy.wire.nacos.grpc.server import (
    Publish,
    Query,
    Request,
    RequestType,
    Result,
    Subscribe,
    Withdraw,
    encode_info,
    write_answer,
)

log = logging.getLogger("nacos_proxy.grpc")

Send = Callable[[bytes], bool]
"""Sends a message on the session's stream. False if the session takes no more now; `Naming.drained` follows."""


class _Subscription:
    """One list that a session follows: a `Subscriber` of the pushes."""

    __slots__ = ("_agent", "_naming", "_quota", "_wanted", "awaited", "mailbox", "read", "release")

    def __init__(self, naming: Naming, read: ReadService, served: Served) -> None:
        self.read = read
        self.awaited = ""  # the request id of the last push, until it is acknowledged
        self.mailbox: Mailbox | None = None
        self.release: Callable[[], None] = _nothing
        self._wanted = False  # a push, although the mailbox has no change
        self._naming = naming
        self._agent = served.agent
        self._quota = served.quota

    def serves(self, served: Served) -> bool:
        """Whether it reads from the same catalog: that of the same tenant."""
        return self._agent is served.agent

    async def begin(self, client: str) -> Snapshot:
        """Subscribes. Raises `BadCall` (429), and why there is no list to begin with."""
        keys = frozenset((self.read.service,))
        self._quota.take(client, keys)
        try:
            self.mailbox, known = await self._agent.watch(Filter(keys), self._wake, client=client)
            if known:
                return known[0]
            return _shown((await self._agent.read(self.read.service)).snapshot, self.read.service)
        except BaseException:
            self.end(client)
            raise

    def current(self) -> Snapshot | None:
        """The list that readers see now. None if they may not see it any more."""
        entry = self._agent.catalog.cache.get(self.read.service)
        return None if entry is None else entry.visible

    def _wake(self) -> None:
        self._naming.pushes.add(self)

    def want(self) -> None:
        """The next push goes out even if nothing changed."""
        self._wanted = True
        self._naming.pushes.add(self)

    def push(self, *, anew: bool) -> bool:
        if self.mailbox is None:
            return False
        changed = any(isinstance(event.body, Change) for event in self.mailbox.take())
        if not (changed or anew or self._wanted):  # the upstream was lost or is back, or a change was undone
            return False
        self._wanted = not self._naming.push(self, anew=anew)
        return not self._wanted

    def end(self, client: str) -> None:
        """Releases everything. Call it once."""
        mailbox, self.mailbox = self.mailbox, None
        if mailbox is not None:
            self._agent.unwatch(mailbox)
        self._naming.pushes.forget(self)
        self._quota.leave(client, (self.read.service,))
        self.release()


class Naming:
    """What one session reads and publishes.

    `owner` names the connection, `client` is its address. `end` ends the session, because a token of it was revoked.
    `reconnect` ends it so that its SDK connects again, and repeats what was refused.
    """

    def __init__(
        self,
        owner: Owner,
        client: str,
        admit: Admit,
        pushes: Pushes,
        send: Send,
        end: End,
        reconnect: Callable[[], None],
    ) -> None:
        self.pushes = pushes
        self._owner = owner
        self._client = client
        self._admit = admit
        self._send = send
        self._end = end
        self._reconnect = reconnect
        self._refused_by: dict[Agent, None] = {}  # whose upstream was away when something was refused
        self._subscriptions: dict[ServiceKey, _Subscription] = {}
        self._awaited: dict[str, _Subscription] = {}  # by the request id of the push
        self._withheld: dict[_Subscription, None] = {}  # the session took no more bytes
        self._publishing: dict[Publishing, None] = {}  # where this session has published
        self._published: dict[ServiceKey, tuple[Publishing, Callable[[], None]]] = {}
        self._closed = False

    @property
    def subscriptions(self) -> int:
        return len(self._subscriptions)

    @property
    def published(self) -> int:
        """How many instances the session publishes."""
        return sum(publications.count(self._owner) for publications in self._publishing)

    async def answer(self, kind: RequestType, request: Request, token: str | None) -> bytes:
        """The answer to a request of the session, as a message. Raises `ProxyError`."""
        served = await self._admit(token, kind.right or "read", self._client)
        try:
            match request:
                case Query(read):
                    return self._list(kind, request, await _read(served.agent, read.service))
                case Subscribe(read, subscribe):
                    return self._list(kind, request, await self._subscribe(served, read, subscribe=subscribe))
                case Publish():
                    await self._publish(served, request)
                case Withdraw(service):
                    publications, _ = self._published.get(service, (served.publications, None))
                    await publications.withdraw(self._owner, service, request.named)
                    self._release(service)
                case _:
                    return _message(kind, request, await _ask(served.agent, request))
            return _message(kind, request, None)
        finally:
            served.release()

    def _list(self, kind: RequestType, request: Query | Subscribe, snapshot: Snapshot) -> bytes:
        read = request.read

        def write() -> bytes:
            view = ServiceView(snapshot, snapshot.select(read.cluster_set, read.healthy_only))
            return _message(kind, request, encode_info(view, read.clusters))

        return self.pushes.prepared.answer(request, snapshot, write)

    # subscriptions

    async def _subscribe(self, served: Served, read: ReadService, *, subscribe: bool) -> Snapshot:
        """The list, which is pushed right after the answer, and whenever it changes.

        A session has one subscription per service, with the clusters that it named last (nacos-grpc.md 4).
        """
        service = read.service
        if not subscribe:
            self._unsubscribe(service)
            return await _read(served.agent, service)
        subscription = self._subscriptions.get(service)
        if subscription is None or not subscription.serves(served):
            subscription = _Subscription(self, read, served)
            try:
                snapshot = await subscription.begin(self._client)
            except ProxyError as error:
                if isinstance(error, NothingKnown) or is_unavailable(error):
                    self._reconnect_after_outage(served.agent)
                raise
            self._unsubscribe(service)  # of another tenant, or of a request at the same time
            self._subscriptions[service] = subscription
            subscription.release = served.hold(self._end)
            if self._closed:
                self._unsubscribe(service)
                return snapshot
        else:
            snapshot = await _read(served.agent, service)
            subscription.read = read
        subscription.want()
        return snapshot

    def _unsubscribe(self, service: ServiceKey) -> None:
        subscription = self._subscriptions.pop(service, None)
        if subscription is not None:
            self._awaited.pop(subscription.awaited, None)
            self._withheld.pop(subscription, None)
            subscription.end(self._client)

    def push(self, subscription: _Subscription, *, anew: bool) -> bool:
        """Sends the current list of a subscription, if the session takes it."""
        snapshot = subscription.current()
        if snapshot is None:
            return False
        got = subscription.awaited if anew else ""
        request_id, message = self.pushes.prepared.push(subscription.read, snapshot, other_than=got)
        if not self._send(message):
            self._withheld[subscription] = None
            return False
        self._awaited.pop(subscription.awaited, None)
        subscription.awaited = request_id
        self._awaited[request_id] = subscription
        return True

    def acknowledged(self, request_id: str) -> None:
        """The client has got a push. An earlier push than the last one of a list does not count."""
        subscription = self._awaited.pop(request_id, None)
        if subscription is not None:
            self.pushes.acknowledged(subscription)

    def drained(self) -> None:
        """The session takes more bytes again."""
        withheld, self._withheld = self._withheld, {}
        for subscription in withheld:
            self.pushes.add(subscription)

    # published instances

    async def _publish(self, served: Served, request: Publish) -> None:
        service, publications = request.service, served.publications
        before = self._published.get(service)
        if before is not None and before[0] is not publications:
            await before[0].withdraw(self._owner, service)  # it was published with an account that was another one
        if self._closed:
            return  # it would stay for ever
        self._publishing[publications] = None
        try:
            await publications.publish(self._owner, service, request.instances, client=self._client)
        except UpstreamError as error:
            if is_unavailable(error):
                self._reconnect_after_outage(served.agent)
            raise
        self._release(service)
        if request.instances:
            self._published[service] = (publications, served.hold(self._end))
            if self._closed:
                self._release(service)

    def _reconnect_after_outage(self, agent: Agent) -> None:
        """SDKs for Go and Rust repeat what was refused only on a new connection (nacos-grpc.md 9).

        Go's even hides it from its application when it subscribes again after a restart of this proxy.
        """
        if agent not in self._refused_by and not self._closed:
            self._refused_by[agent] = None
            agent.on_recovery.append(self._reconnect)

    def _release(self, service: ServiceKey) -> None:
        """The session no longer publishes the service with the token that it used."""
        published = self._published.pop(service, None)
        if published is not None:
            published[1]()

    def close(self, *, back_soon: bool) -> None:
        """The session is over; call it once. `back_soon`: it was closed here, so what it published beats on."""
        self._closed = True
        for agent in self._refused_by:
            agent.on_recovery.remove(self._reconnect)
        for service in list(self._subscriptions):
            self._unsubscribe(service)
        for service in list(self._published):
            self._release(service)
        for publications in self._publishing:
            publications.end(self._owner, back_soon=back_soon)


def _message(kind: RequestType, request: Request, result: Result) -> bytes:
    return write_payload(write_answer(kind, request, result))


async def _read(agent: Agent, service: ServiceKey) -> Snapshot:
    """A service with an empty name is an unknown one, which the upstream would refuse."""
    if not service.name.strip(BLANK):
        return Snapshot(service)
    return _shown((await agent.read(service)).snapshot, service)


def _shown(snapshot: Snapshot | None, service: ServiceKey) -> Snapshot:
    if snapshot is None:
        raise NothingKnown(f"nothing is known of {service}")
    return snapshot


async def _ask(agent: Agent, request: Request) -> Result:
    match request:
        case ListServices(size=0):  # a real server counts, and lists none
            page = await agent.ask(replace(request, size=1))
            return ServicePage(page.count, ())
        case ListServices():
            return await agent.ask(request)
        case Register() | Deregister():
            await agent.write(request)
        case _:
            pass
    return None


def _nothing() -> None:
    """Nothing is held."""

"""Executes calls in one dialect, including those that need more than one request.

a Fetch in | sends
-----------+-------------------------------------------------------------------------------------------------
v1, v2     | the list; under protection also the list of healthy instances; if an instance is unhealthy, a
           | request for the threshold
v3         | the admin page of services with similar names; if these are too many, the admin list of each
           | cluster; without admin rights the client list of the clusters seen so far
proxy      | the whole snapshot, from the upper proxy's own API
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Container, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    BeatResult,
    Call,
    CreateService,
    DeleteService,
    DetailPage,
    Fetch,
    GetInstance,
    GetService,
    ListDetails,
    Register,
    ServiceInfo,
    ServiceNames,
    Update,
)
from nacos_proxy.model.effects import completed
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.runtime import Clock
from nacos_proxy.upstream.nacos import service_pages
from nacos_proxy.upstream.nacos.response_cache import ResponseCache, Versioned
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos import v1, v2, v3
from nacos_proxy.wire.nacos.base import Dialect
from nacos_proxy.wire.nacos.hosts import Hosts, Listing
from nacos_proxy.wire.rest import tiers

R = TypeVar("R")

NOT_IDEMPOTENT = (CreateService, DeleteService)  # these fail if they are sent a second time
ADMIN = "/v3/admin/"
NEEDS_ADMIN = (
    "(this call needs the admin API of Nacos 3: an upstream user with write permission for the namespace, by the "
    "settings username and password, or a server with nacos.core.auth.admin.enabled=false)"
)
MANY_SIMILAR_NAMES = 50  # a page of more services costs more than the lists of one service


class Client(Protocol):
    """One server for one credential. `ask` sends a request, `send` a call in any dialect that the server offers.

    `ask_proxy` sends an idempotent request to an upper proxy's own API; the reply has the `wanted` headers.
    """

    async def ask(self, request: HttpRequest, *, idempotent: bool = True) -> HttpReply: ...

    async def ask_proxy(self, request: HttpRequest, wanted: Container[str]) -> HttpReply: ...

    async def send(self, call: Call[R]) -> R: ...

    def with_push_address(self, key: ServiceKey, request: HttpRequest) -> tuple[HttpRequest, int | None]: ...


class DialectClient:
    """Executes each call with one request. Subclasses add the calls that need more.

    `composed` are calls that the dialect has no request for, and that are executed with others.
    """

    composed: tuple[type, ...] = ()

    def __init__(self, dialect: Dialect, cache: ResponseCache, clock: Clock) -> None:
        self.dialect = dialect
        self.cache = cache
        self.clock = clock
        self._last_beat: tuple[HttpReply, BeatResult] | None = None

    def can_execute(self, call: Call[Any]) -> bool:
        return isinstance(call, self.composed) or self.dialect.can_send(call)

    async def execute(self, client: Client, call: Call[R]) -> R:
        """The result. Raises `Malformed`, `Refused` and the errors of the client."""
        request = self.dialect.write_request(call)
        return self.read_reply(call, await client.ask(request, idempotent=not isinstance(call, NOT_IDEMPOTENT)))

    def read_reply(self, call: Call[Any], reply: HttpReply) -> Any:
        """The answers to most beats are the same bytes: they are read once, and their result is one object."""
        if not isinstance(call, Beat):
            return self.dialect.read_reply(call, reply)
        if self._last_beat is None or self._last_beat[0] != reply:
            self._last_beat = reply, self.dialect.read_reply(call, reply)
        return self._last_beat[1]

    async def info(self, client: Client, key: ServiceKey) -> ServiceInfo | None:
        """A service's own data, which may be from the cache. None if the server refuses to show it."""
        info, due = self.cache.info(key, self.clock.now())
        if not due:
            return info
        try:
            info = await client.send(GetService(key))
        except Refused:
            info = None
        return self.cache.set_info(key, info, self.clock.now())

    async def current(self, client: Client, call: Update) -> Instance:
        """The instance to change, as the server shows it. Raises `Refused` if it is not registered."""
        return await client.send(GetInstance(call.service, call.ip, call.port, call.cluster))

    def listed(self, snapshot: Snapshot, *, protected: bool = False) -> ServiceList:
        """Makes the result of a list. Keeps its clusters; sets its time to now if the dialect gives none."""
        self.cache.add_clusters(snapshot.key, {host.cluster for host in snapshot.instances})
        if not snapshot.last_ref_time:
            snapshot = replace(snapshot, last_ref_time=int(self.clock.wall() * 1000))
        return ServiceList(snapshot, protected, all(host.healthy for host in snapshot.instances))


class ServiceList(NamedTuple):
    """A service as a list shows it. `protected`: the list may show unhealthy instances as healthy."""

    snapshot: Snapshot
    protected: bool
    all_healthy: bool


def unmask(listed: ServiceList, healthy: ServiceList | None, info: ServiceInfo | None) -> Snapshot:
    """The snapshot with its true health, from a list that may mask it (nacos-http.md 5.5, protection.jsonl).

    If the threshold is unknown, takes the lowest one at which the server would have masked the health as it did.
    """
    snapshot, masked = listed.snapshot, listed.protected
    if healthy is not None and not healthy.protected:
        truly_healthy = healthy.snapshot.by_key
        snapshot = snapshot.with_instances(
            host if host.key in truly_healthy else replace(host, healthy=False) for host in snapshot.instances
        )
    if info is not None:
        masking = masked or bool(info.metadata) or info.threshold > 0
        return replace(snapshot, threshold=info.threshold, masking=masking)
    if not masked:
        return snapshot
    share = sum(host.healthy for host in snapshot.instances) / max(1, len(snapshot.instances))
    return replace(snapshot, threshold=min(1.0, math.nextafter(share, 1.0)), masking=True)


class ListDialectClient(DialectClient):
    """v1 and v2, whose lists show a whole service.

    It makes partial changes complete, because PATCH cannot change only the named fields: v2's requires every field,
    v1's resets weight and enabled if they were never modified, r-nacos's replaces the metadata.
    """

    composed = (ListDetails,)

    def __init__(
        self,
        dialect: Dialect,
        cache: ResponseCache,
        clock: Clock,
        write_list: Callable[..., HttpRequest],
        read_list: Callable[[ServiceKey, HttpReply], Listing],
    ) -> None:
        super().__init__(dialect, cache, clock)
        self._write_list = write_list
        self._read_list = read_list

    async def execute(self, client: Client, call: Call[Any]) -> Any:
        match call:
            case Fetch():
                return await self._fetch(client, call.service)
            case ListDetails():
                return await service_pages.list_details(client, call)
            case Update() if call.partial:
                return await super().execute(client, completed(call, await self.current(client, call)))
            case _:
                return await super().execute(client, call)

    async def current(self, client: Client, call: Update) -> Instance:
        """Reads the list, since the single instance lacks enabled and ephemeral. The list hides disabled instances."""
        listed = (await self._list(client, call.service, healthy_only=False)).value.snapshot
        found = listed.find(call.ip, call.port, call.cluster)
        return found or replace(await super().current(client, call), enabled=False)

    async def _fetch(self, client: Client, key: ServiceKey) -> Snapshot:
        listed = await self._list(client, key, healthy_only=False)
        if listed.value.all_healthy and not listed.value.protected:
            return listed.value.snapshot
        healthy = await self._list(client, key, healthy_only=True) if listed.value.protected else None
        info = await self.info(client, key)
        version = (listed.version, healthy and healthy.version, info)
        return self.cache.derive(
            key, "unmasked", version, lambda: unmask(listed.value, healthy and healthy.value, info)
        ).value

    async def _list(self, client: Client, key: ServiceKey, *, healthy_only: bool) -> Versioned[ServiceList]:
        request, millis = self._write_list(key, healthy_only=healthy_only), None
        if self.dialect.name == "v1":
            request, millis = client.with_push_address(key, request)
        reply = await client.ask(request)
        return self.cache.parse(key, (healthy_only, millis), reply, lambda reply: self._parse(key, reply, millis))

    def _parse(self, key: ServiceKey, reply: HttpReply, millis: int | None) -> ServiceList:
        snapshot, protected = self._read_list(key, reply)
        return self.listed(snapshot if millis is None else replace(snapshot, cache_millis=millis), protected=protected)


class ProxyDialectClient(ListDialectClient):
    """v1 of an upper proxy. Lists are from its own API, which shows all that it knows, and how old that is."""

    async def _fetch(self, client: Client, key: ServiceKey) -> Snapshot:
        reply = await client.ask_proxy(tiers.write_fetch(key), tiers.READ_HEADERS)
        listed = self.cache.parse(key, "whole", reply, lambda reply: tiers.read_list(key, reply))
        return listed.value.heard(tiers.read_reply_via(reply))


class V3DialectClient(DialectClient):
    """v3: the client API lists some clusters, the admin API all of them; only the admin API changes instances."""

    composed = (ServiceNames,)

    async def execute(self, client: Client, call: Call[Any]) -> Any:
        match call:
            case Fetch():
                return await self._fetch(client, call.service)
            case ServiceNames():
                return await service_pages.list_names(client, partial(self._execute, client), call)
            case ListDetails() if call.ignore_empty:
                return await service_pages.without_empty(partial(self._execute, client), call)
            case Beat() if call.full is not None:
                return await self._full_beat(client, call, call.full)
            case Update() if call.partial:
                return await self._execute(client, completed(call, await self.current(client, call)))
            case GetInstance():
                return await self._get_instance(client, call)
            case _:
                return await self._execute(client, call)

    async def _execute(self, client: Client, call: Call[R]) -> R:
        """Sends one request. If the admin right is missing, the refusal says what to do."""
        try:
            return await super().execute(client, call)
        except Refused as refused:
            path = self.dialect.write_request(call).path
            if refused.reason is not Reason.NO_RIGHT or not path.startswith(ADMIN):
                raise
            raise Refused(
                refused.reason,
                f"{refused.text} {NEEDS_ADMIN}",
                status=refused.status,
                dialect=refused.dialect,
                content_type=refused.content_type,
                body=refused.body,
            ) from refused

    async def _get_instance(self, client: Client, call: GetInstance) -> Instance:
        """Without admin rights, reads the client list. That hides disabled instances, which then count as not found."""
        try:
            return await super().execute(client, call)
        except Refused as refused:
            if refused.reason is not Reason.NO_RIGHT:
                raise
            hosts = v3.read_hosts(call.service, await client.ask(v3.write_client_list(call.service, (call.cluster,))))
            found = Snapshot.of(call.service, hosts.instances).find(call.ip, call.port, call.cluster)
            if found is None:
                raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404) from refused
            return found

    async def _full_beat(self, client: Client, call: Beat, full: Instance) -> BeatResult:
        """A heartbeat of v3 carries no instance, so if the server does not know the instance, this registers it."""
        result = await self._execute(client, call)
        if result.code != BEAT_NOT_FOUND:
            return result
        await client.send(Register(call.service, replace(full, ephemeral=call.ephemeral)))
        return replace(result, code=BEAT_OK)

    async def _fetch(self, client: Client, key: ServiceKey) -> Snapshot:
        admin_refused = False
        if self.clock.now() >= self.cache.admin_refused_until:
            try:
                return await self._fetch_as_admin(client, key)
            except Refused as refused:
                if refused.reason not in (Reason.NO_RIGHT, Reason.GONE):  # GONE: a gateway may hide the admin API
                    raise
            admin_refused = True
        reply = await client.ask(v3.write_client_list(key, self.cache.clusters(key)))
        listed = self.cache.parse(
            key, "client", reply, lambda reply: self.listed(v3.snapshot(key, v3.read_hosts(key, reply)))
        )
        if admin_refused:
            self.cache.admin_refused(self.clock.now())
        return listed.value.snapshot

    async def _fetch_as_admin(self, client: Client, key: ServiceKey) -> Snapshot:
        if not self.cache.list_by_cluster(key):
            call = v3.details_of(key)
            reply = await client.ask(self.dialect.write_request(call))
            page = self.cache.parse(
                key, "page", reply, lambda reply: _read_page(key, self.dialect.read_reply(call, reply))
            )
            count, snapshot = page.value
            if count > MANY_SIMILAR_NAMES:
                self.cache.set_list_by_cluster(key)
            if snapshot is not None:
                return await self._with_threshold(client, key, page.version, lambda: snapshot)
        return await self._fetch_by_cluster(client, key)

    async def _fetch_by_cluster(self, client: Client, key: ServiceKey) -> Snapshot:
        try:
            info = await client.send(GetService(key))
        except Refused as refused:
            if refused.reason is not Reason.SERVICE_NOT_FOUND:
                raise
            return self.cache.derive(key, "raw", "none", lambda: self.listed(Snapshot(key))).value.snapshot
        self.cache.set_info(key, info, self.clock.now())
        hosts = await asyncio.gather(*(self._list_cluster(client, key, cluster) for cluster in info.clusters))
        version = tuple(cluster.version for cluster in hosts)
        return await self._with_threshold(
            client, key, version, lambda: v3.snapshot(key, *(cluster.value for cluster in hosts))
        )

    async def _list_cluster(self, client: Client, key: ServiceKey, cluster: str) -> Versioned[Hosts]:
        reply = await client.ask(v3.write_admin_list(key, cluster))
        try:
            return self.cache.parse(key, ("cluster", cluster), reply, lambda reply: v3.read_hosts(key, reply))
        except Refused as refused:
            if refused.reason in (Reason.CLUSTER_NOT_FOUND, Reason.SERVICE_NOT_FOUND):
                return Versioned(Hosts(()), "none")
            raise

    async def _with_threshold(
        self, client: Client, key: ServiceKey, version: Hashable, build: Callable[[], Snapshot]
    ) -> Snapshot:
        """Adds the threshold, which admin lists lack. It matters only if an instance is unhealthy."""
        listed = self.cache.derive(key, "raw", version, lambda: self.listed(build()))
        info = None if listed.value.all_healthy else await self.info(client, key)
        if info is None:
            return listed.value.snapshot
        return self.cache.derive(key, "true", (version, info), lambda: unmask(listed.value, None, info)).value


def _read_page(key: ServiceKey, page: DetailPage) -> tuple[int, Snapshot | None]:
    """The number of services on all pages, and the snapshot of one service, None if another page may have it."""
    complete = page.count <= len(page.rows)
    return page.count, v3.find(key, page) or (Snapshot(key) if complete else None)


def dialect_clients(cache: ResponseCache, clock: Clock, *, of_proxy: bool = False) -> dict[str, DialectClient]:
    """The client of each dialect, by its name. `of_proxy`: the servers are upper proxies."""
    first = ProxyDialectClient if of_proxy else ListDialectClient
    return {
        "v1": first(v1.V1, cache, clock, v1.write_list, v1.read_list),
        "v2": ListDialectClient(v2.V2, cache, clock, v2.write_list, v2.read_list),
        "v3": V3DialectClient(v3.V3, cache, clock),
    }

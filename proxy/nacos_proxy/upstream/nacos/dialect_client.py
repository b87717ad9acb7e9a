"""How calls are spoken where one request of a dialect does not say it all: whole services, partial changes, full beats.

Not for: the requests themselves (`wire`), which dialect is used (`detect`), which server (`servers`).

    a Fetch in | asks
    -----------+-------------------------------------------------------------------------------------------------
    v1, v2     | the list; under protection also the list of the healthy; where one is unhealthy, the threshold
    v3         | the admin page of services with instances, exact name picked; where too many are named alike the
               | admin list of each cluster; without admin rights the client list of the clusters that were seen,
               | in which one instance is looked up, too
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from cachetools import LRUCache

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    BeatResult,
    Call,
    CreateService,
    DeleteService,
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
from nacos_proxy.upstream.nacos import service_pages as pages
from nacos_proxy.upstream.nacos.response_cache import ResponseCache
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos import v1, v2, v3
from nacos_proxy.wire.nacos.base import Dialect
from nacos_proxy.wire.nacos.hosts import Hosts, Listing

R = TypeVar("R")

ONCE = (CreateService, DeleteService)  # calls that say something else the second time
ADMIN = "/v3/admin/"
NEEDS_ADMIN = (
    "(this call needs the admin API of Nacos 3: an upstream user with write permission for the namespace, by the "
    "settings username and password, or a server with nacos.core.auth.admin.enabled=false)"
)
NO_HOSTS = Hosts(())  # one object, so that nothing is made anew of it
BEATS = 4096  # whose requests are remembered
SHORT_BEAT = 2048  # characters of values; a longer one is made anew each time
CROWD = 50  # services named alike from which on a page of them costs more than a service's own lists


class Client(Protocol):
    """A way to one server: raw requests, and other calls in whatever dialect it takes them."""

    async def ask(self, request: HttpRequest, *, again: bool = True) -> HttpReply: ...

    async def send(self, call: Call[R]) -> R: ...

    def subscribing(self, key: ServiceKey, request: HttpRequest) -> tuple[HttpRequest, int | None]: ...


class DialectClient:
    """A dialect that says a call in one request; `say` is where the others differ.

    `composed` are the calls that it says although the dialect has none for them.
    """

    composed: tuple[type, ...] = ()

    def __init__(self, dialect: Dialect, memory: ResponseCache, clock: Clock) -> None:
        self.dialect = dialect
        self.memory = memory
        self.clock = clock
        self._beats: LRUCache[int, tuple[Beat, HttpRequest]] = LRUCache(BEATS)

    def can_execute(self, call: Call[Any]) -> bool:
        return isinstance(call, self.composed) or self.dialect.can_ask(call)

    async def execute(self, line: Client, call: Call[R]) -> R:
        """The result. Raises `Malformed`, `Refused` and what the line raises."""
        reply = await line.ask(self._request(call), again=not isinstance(call, ONCE))
        return self.dialect.read_reply(call, reply)

    def _request(self, call: Call[Any]) -> HttpRequest:
        """A client's beats are the same each time, down to the object: they are written once."""
        if not isinstance(call, Beat):
            return self.dialect.write_request(call)
        known = self._beats.get(id(call))
        if known is not None and known[0] is call:
            return known[1]
        request = self.dialect.write_request(call)
        if sum(len(value) for _, value in (*request.query, *request.form)) <= SHORT_BEAT:
            self._beats[id(call)] = (call, request)
        return request

    async def info(self, line: Client, key: ServiceKey) -> ServiceInfo | None:
        """A service's threshold and metadata, asked now and then; None where the server does not tell."""
        info, due = self.memory.info(key, self.clock.now())
        if not due:
            return info
        try:
            info = await line.send(GetService(key))
        except Refused:
            info = None
        return self.memory.learned(key, info, self.clock.now())

    async def merge(self, line: Client, call: Update) -> Update:
        """A partial change as one that names all."""
        return completed(call, await self.known(line, call))

    async def known(self, line: Client, call: Update) -> Instance:
        """The instance that is to be changed, as the server shows it. Raises `Refused` where there is none."""
        return await line.send(GetInstance(call.service, call.ip, call.port, call.cluster))

    def stamped(self, snapshot: Snapshot) -> Snapshot:
        """With a moment, where the dialect has none."""
        return snapshot if snapshot.last_ref_time else replace(snapshot, last_ref_time=int(self.clock.wall() * 1000))


class Parsed(NamedTuple):
    """A list, and whether all in it are healthy, so that no threshold matters."""

    listing: Listing
    calm: bool


def calm(hosts: Sequence[Instance]) -> bool:
    return all(host.healthy for host in hosts)


def unmasked(parsed: Parsed, healthy: Parsed | None, info: ServiceInfo | None) -> Snapshot:
    """The truth behind a list that may be under protection (nacos-http.md 5.5, protection.jsonl).

    Where the threshold is not told it is the lowest one at which the server would have masked as it did.
    """
    snapshot, masked = parsed.listing
    if healthy is not None and not healthy.listing.protected:
        well = healthy.listing.snapshot.by_key
        snapshot = snapshot.with_instances(
            host if host.key in well else replace(host, healthy=False) for host in snapshot.instances
        )
    if info is not None:
        masking = masked or bool(info.metadata) or info.threshold > 0
        return replace(snapshot, threshold=info.threshold, masking=masking)
    if not masked:
        return snapshot
    share = sum(host.healthy for host in snapshot.instances) / max(1, len(snapshot.instances))
    return replace(snapshot, threshold=min(1.0, math.nextafter(share, 1.0)), masking=True)


class ListDialectClient(DialectClient):
    """v1 and v2: their lists show a whole service.

    Their PATCH changes more than is named: v2's wants everything named, v1's puts weight and enabled back where
    nothing was modified before, r-nacos's replaces the metadata.
    """

    composed = (ListDetails,)

    def __init__(
        self,
        dialect: Dialect,
        memory: ResponseCache,
        clock: Clock,
        write: Callable[..., HttpRequest],
        read: Callable[[ServiceKey, HttpReply], Listing],
    ) -> None:
        super().__init__(dialect, memory, clock)
        self._write = write
        self._read = read

    async def execute(self, line: Client, call: Call[Any]) -> Any:
        if isinstance(call, Fetch):
            return await self._fetch(line, call.service)
        if isinstance(call, ListDetails):
            return await pages.details(line, call)
        if isinstance(call, Update) and call.partial:
            return await super().execute(line, await self.merge(line, call))
        return await super().execute(line, call)

    async def known(self, line: Client, call: Update) -> Instance:
        """From the list, which hides disabled ones alone; one instance is shown without enabled and ephemeral."""
        listed = (await self._list(line, call.service, healthy_only=False)).listing.snapshot
        found = listed.find(call.ip, call.port, call.cluster)
        return found or replace(await super().known(line, call), enabled=False)

    async def _fetch(self, line: Client, key: ServiceKey) -> Snapshot:
        parsed = await self._list(line, key, healthy_only=False)
        if parsed.calm and not parsed.listing.protected:
            return parsed.listing.snapshot
        healthy = await self._list(line, key, healthy_only=True) if parsed.listing.protected else None
        info = await self.info(line, key)
        return self.memory.made(key, "list", (parsed, healthy, info), lambda: unmasked(parsed, healthy, info))

    async def _list(self, line: Client, key: ServiceKey, *, healthy_only: bool) -> Parsed:
        request, millis = self._write(key, healthy_only=healthy_only), None
        if self.dialect.name == "v1":
            request, millis = line.subscribing(key, request)
        reply = await line.ask(request)
        return self.memory.parsed(key, (healthy_only, millis), reply, lambda reply: self._parse(key, reply, millis))

    def _parse(self, key: ServiceKey, reply: HttpReply, millis: int | None) -> Parsed:
        snapshot, protected = self._read(key, reply)
        snapshot = snapshot if millis is None else replace(snapshot, cache_millis=millis)
        self.memory.saw_hosts(key, snapshot.instances)
        return Parsed(Listing(self.stamped(snapshot), protected), calm(snapshot.instances))


class V3DialectClient(DialectClient):
    """v3: the client API shows some clusters, the admin API all; changes are the admin API's alone."""

    composed = (ServiceNames,)

    async def execute(self, line: Client, call: Call[Any]) -> Any:
        match call:
            case Fetch():
                return await self._fetch(line, call.service)
            case ServiceNames():
                return await pages.names(line, partial(self._explained, line), call)
            case ListDetails() if call.ignore_empty:
                return await pages.without_empty(partial(self._explained, line), call)
            case Beat() if call.full is not None:
                return await self._full_beat(line, call, call.full)
            case Update() if call.partial:
                return await self._explained(line, await self.merge(line, call))
            case GetInstance():
                return await self._instance(line, call)
            case _:
                return await self._explained(line, call)

    async def _explained(self, line: Client, call: Call[R]) -> R:
        try:
            return await super().execute(line, call)
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

    async def _instance(self, line: Client, call: GetInstance) -> Instance:
        """Without admin rights as the client list shows it, which hides disabled ones: to those who ask it is not."""
        try:
            return await super().execute(line, call)
        except Refused as refused:
            if refused.reason is not Reason.NO_RIGHT:
                raise
            hosts = v3.read_hosts(call.service, await line.ask(v3.write_client_list(call.service, (call.cluster,))))
            found = Snapshot.of(call.service, hosts.instances).find(call.ip, call.port, call.cluster)
            if found is None:
                raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404) from refused
            return found

    async def _full_beat(self, line: Client, call: Beat, full: Instance) -> BeatResult:
        """A heart beat of v3 is always light: what the server does not know is registered in a second step."""
        result = await self._explained(line, call)
        if result.code != BEAT_NOT_FOUND:
            return result
        await line.send(Register(call.service, replace(full, ephemeral=call.ephemeral)))
        return replace(result, code=BEAT_OK)

    async def _fetch(self, line: Client, key: ServiceKey) -> Snapshot:
        if self.clock.now() >= self.memory.barred_until:
            try:
                return await self._as_admin(line, key)
            except Refused as refused:
                if refused.reason not in (Reason.NO_RIGHT, Reason.GONE):  # a gateway may hide the admin API
                    raise
            snapshot = await self._as_client(line, key)
            self.memory.bar(self.clock.now())
            return snapshot
        return await self._as_client(line, key)

    async def _as_admin(self, line: Client, key: ServiceKey) -> Snapshot:
        if not self.memory.crowded(key):
            call = v3.details_of(key)
            reply = await line.ask(self.dialect.write_request(call))
            page = self.memory.parsed(key, "page", reply, lambda reply: self.dialect.read_reply(call, reply))
            found = v3.find(key, page)
            if page.count > CROWD:
                self.memory.crowd(key)
            if found is not None or page.count <= len(page.rows):
                return await self._with_threshold(line, key, (page,), lambda: found or Snapshot(key))
        return await self._by_cluster(line, key)

    async def _by_cluster(self, line: Client, key: ServiceKey) -> Snapshot:
        try:
            info = await line.send(GetService(key))
        except Refused as refused:
            if refused.reason is not Reason.SERVICE_NOT_FOUND:
                raise
            return self.memory.made(key, "none", (), lambda: self.stamped(Snapshot(key)))
        self.memory.learned(key, info, self.clock.now())
        hosts = await asyncio.gather(*(self._cluster(line, key, cluster) for cluster in info.clusters))
        return await self._with_threshold(line, key, tuple(hosts), lambda: v3.snapshot(key, *hosts))

    async def _cluster(self, line: Client, key: ServiceKey, cluster: str) -> Hosts:
        reply = await line.ask(v3.write_admin_list(key, cluster))
        try:
            return self.memory.parsed(key, ("cluster", cluster), reply, lambda reply: v3.read_hosts(key, reply))
        except Refused as refused:
            if refused.reason in (Reason.CLUSTER_NOT_FOUND, Reason.SERVICE_NOT_FOUND):
                return NO_HOSTS
            raise

    async def _with_threshold(
        self, line: Client, key: ServiceKey, parts: tuple[Any, ...], make: Callable[[], Snapshot]
    ) -> Snapshot:
        """These lists show raw health and never the threshold; it matters where one is unhealthy."""
        raw = self.memory.made(key, "raw", parts, lambda: self.stamped(make()))
        self.memory.saw_hosts(key, raw.instances)
        info = None if calm(raw.instances) else await self.info(line, key)
        if info is None:
            return raw
        masking = bool(info.metadata) or info.threshold > 0
        changed = {"threshold": info.threshold, "masking": masking}
        return self.memory.made(key, "true", (raw, info), lambda: replace(raw, **changed))

    async def _as_client(self, line: Client, key: ServiceKey) -> Snapshot:
        reply = await line.ask(v3.write_client_list(key, self.memory.clusters(key)))
        hosts = self.memory.parsed(key, "client", reply, lambda reply: v3.read_hosts(key, reply))
        self.memory.saw_hosts(key, hosts.instances)
        return self.memory.made(key, "client", (hosts,), lambda: self.stamped(v3.snapshot(key, hosts)))


def dialect_clients(memory: ResponseCache, clock: Clock) -> dict[str, DialectClient]:
    """One of each dialect, by its name."""
    return {
        "v1": ListDialectClient(v1.V1, memory, clock, v1.write_list, v1.read_list),
        "v2": ListDialectClient(v2.V2, memory, clock, v2.write_list, v2.read_list),
        "v3": V3DialectClient(v3.V3, memory, clock),
    }

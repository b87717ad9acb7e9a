"""A registry in this process: the contract of a real Nacos server without one, with beats that expire.

Not for: HTTP (the dialects), freshness (there is nothing to refresh). Time comes from the clock it was given; what time
does is worked out on each call and by one task that sleeps until the next deadline, so that watchers hear of it.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BatchMetadata,
    Beat,
    BeatResult,
    Call,
    CreateService,
    DeleteService,
    Deregister,
    DetailPage,
    Fetch,
    GetInstance,
    GetService,
    ListDetails,
    ListServices,
    Register,
    ServiceDetail,
    ServiceInfo,
    ServiceNames,
    ServicePage,
    SetHealth,
    Update,
    UpdateService,
)
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.limits import check_instance
from nacos_proxy.model.services import (
    Checking,
    Instance,
    InstanceKey,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.runtime import (
    Clock,
    Supervisor,
    in_turns,
    stood_still,
    stop,
)
from nacos_proxy.upstream.embedded.administration import AT_ONCE, Administration
from nacos_proxy.upstream.embedded.persistence import (
    OF_SERVICES,
    OF_SWITCHES,
    Keeping,
    Lasting,
)
from nacos_proxy.upstream.embedded.state import (
    InstanceOverrides,
    Kept,
    Service,
    no_instances,
    read_selector,
    service_not_found,
)
from nacos_proxy.wire.nacos.administration import CatalogService, SetCluster, SetSwitch

R = TypeVar("R")

TICK = 1.0  # seconds between two looks at what time does, while anybody watches


@dataclass(frozen=True, slots=True)
class Limits:
    """How much it holds; beyond that it refuses. `listing_delay` seconds pass until a list shows a write (tests)."""

    instances: int = 100_000
    services: int = 50_000
    listing_delay: float = 0.0


class EmbeddedRegistry:
    """A `Registry` and a `Watchable`."""

    def __init__(self, clock: Clock, limits: Limits = Limits(), supervisor: Supervisor | None = None) -> None:
        self._clock = clock
        self._supervisor = supervisor or Supervisor(clock)
        self._limits = limits
        self._services: dict[ServiceKey, Service] = {}
        self._deadlines: list[tuple[float, ServiceKey]] = []
        self._planned: dict[ServiceKey, float] = {}
        self._listing: dict[ServiceKey, Snapshot] = {}
        self._listed_again_at: dict[ServiceKey, float] = {}
        self._watched: set[ServiceKey] | None = None
        self._changed: list[ServiceKey] = []  # in this step of the loop
        self._told: asyncio.Queue[ServiceKey] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._instances = 0
        self._swept = 0.0
        self._administration = Administration(self._services, clock)
        self.keeping = Keeping()
        self._handlers: dict[type, Callable[[Any, float], Any]] = {
            Fetch: self._fetch,
            GetInstance: self._get_instance,
            ListServices: self._list_services,
            Register: self._register,
            Deregister: self._deregister,
            Update: self._update,
            Beat: self._beat,
            BatchMetadata: self._batch,
            SetHealth: self._set_health,
            GetService: self._get_service,
            CreateService: self._create_service,
            UpdateService: self._update_service,
            DeleteService: self._delete_service,
            ServiceNames: self._names,
            CatalogService: self._catalog_service,
            SetCluster: self._set_cluster,
            **self._administration.handlers,
        }
        slow: dict[type, Callable[[Any, float], Awaitable[Any]]] = {ListDetails: self._details}
        self._slow = slow | self._administration.slow

    async def send(self, call: Call[R]) -> R:
        """The result of the call; what is to last is written by then. Raises `Refused`."""
        now = self._clock.now()
        self._sweep(now)
        if (slow := self._slow.get(type(call))) is not None:
            return await slow(call, now)
        result = self._handlers[type(call)](call, now)
        if isinstance(call, OF_SERVICES):
            self._lasts(call.service)
        elif isinstance(call, SetSwitch):
            self.keeping.found(OF_SWITCHES, self._administration.switches)
        else:
            return result
        changed, self._changed = self._changed, []
        try:
            await self.keeping.settled()
        finally:  # watchers hear of it when it lasts, as the caller does
            self._tell(changed)
        return result

    def _lasts(self, key: ServiceKey) -> None:
        service = self._services.get(key)
        self.keeping.found(key, None if service is None else service.kept())

    def restore(self, kept: Iterable[tuple[ServiceKey, Lasting]]) -> None:
        """What was written; to be called before anything else is."""
        now = self._clock.now()
        for key, lasting in kept:
            self.keeping.known(key, lasting)
            if isinstance(lasting, Kept):
                service = self._services[key] = Service.of(key, lasting, now)
                self._instances += len(service.places)
                self._plan(service, service.deadline())
            else:
                self._administration.switches = {**self._administration.switches, **lasting}

    async def close(self) -> None:
        await stop(self._task)

    # watching

    @property
    def alive(self) -> bool:
        return True

    def covers(self, key: ServiceKey) -> bool:
        return True

    def watch(self, services: Collection[ServiceKey]) -> None:
        known, self._watched = self._watched or set(), set(services)
        for key in self._watched - known:  # what changed before this moment nobody has told
            self._told.put_nowait(key)

    async def changes(self) -> AsyncIterator[ServiceKey]:
        """Yields watched services as they change; the first caller starts the task that lets time expire them."""
        if self._task is None:
            self._swept = self._clock.now()
            self._task = self._supervisor.keep(self._tick, name="embedded registry")
        while True:
            yield await self._told.get()

    async def _tick(self) -> None:
        while True:
            now = self._clock.now()
            self._sweep(now)
            await self._clock.sleep_until(min(now + TICK, max(now + 0.05, self._next())))

    def _next(self) -> float:
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _changes(self, service: Service, now: float) -> None:
        if self._limits.listing_delay:
            self._listed_again_at.setdefault(service.key, now + self._limits.listing_delay)
        self._changed.append(service.key)

    def _tell(self, changed: Iterable[ServiceKey]) -> None:
        for key in changed:
            if self._watched is not None and key in self._watched:
                self._told.put_nowait(key)

    # time

    def _sweep(self, now: float) -> None:
        if self._task is not None and (gap := stood_still(self._swept + TICK, now)):
            for service in self._services.values():  # who beat meanwhile was not heard
                service.shift(gap, now)
        self._swept = now
        while self._deadlines and self._deadlines[0][0] <= now:
            moment, key = heapq.heappop(self._deadlines)
            if self._planned.get(key) != moment:
                continue
            del self._planned[key]
            service = self._services.get(key)
            if service is None:
                continue
            if service.places and not self._administration.checking:
                self._plan(service, now + 1.0)
                continue
            before = len(service.places)
            if service.expire(now):
                self._changes(service, now)
            self._instances -= before - len(service.places)
            if not service.places and service.deadline() <= now:
                del self._services[key]
                self._lasts(key)
            else:
                self._plan(service, service.deadline())
        changed, self._changed = self._changed, []
        self._tell(changed)

    def _plan(self, service: Service, moment: float) -> None:
        if moment < self._planned.get(service.key, math.inf):
            self._planned[service.key] = moment
            heapq.heappush(self._deadlines, (moment, service.key))

    # instances

    def _fetch(self, call: Fetch, now: float) -> Snapshot:
        service = self._services.get(call.service)
        if service is None:
            return Snapshot(call.service)
        if not self._limits.listing_delay:
            return service.listed()
        key = call.service
        if key not in self._listing or now >= self._listed_again_at.get(key, math.inf):
            self._listed_again_at.pop(key, None)
            self._listing[key] = service.listed()
        return self._listing[key]

    def _get_instance(self, call: GetInstance, now: float) -> Instance:
        snapshot = self._fetch(Fetch(call.service), now)
        if not snapshot.instances:
            raise no_instances(call.service, call.cluster)
        found = snapshot.find(call.ip, call.port, call.cluster)
        if found is None:
            raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
        return found

    def _register(self, call: Register, now: float) -> None:
        check_instance(call.instance)
        service = self._services.get(call.service)
        known = service is not None and (call.instance.ip, call.instance.port) in service.places
        if not known and self._instances >= self._limits.instances:
            raise Refused(Reason.OTHER, f"the embedded registry holds {self._limits.instances} instances already")
        if service is None:
            service = self._create(call.service, call.instance.ephemeral)
        service.register(call.instance, now)
        self._instances += not known
        self._plan(service, service.deadline_of(call.instance.ip, call.instance.port))
        self._changes(service, now)

    def _create(self, key: ServiceKey, ephemeral: bool, **fields: Any) -> Service:
        if len(self._services) >= self._limits.services:
            raise Refused(Reason.OTHER, f"the embedded registry holds {self._limits.services} services already")
        service = self._services[key] = Service(key, ephemeral, empty_since=self._clock.now(), **fields)
        self._plan(service, service.deadline())
        return service

    def _deregister(self, call: Deregister, now: float) -> None:
        service = self._services.get(call.service)
        if service is not None and service.deregister(call.ip, call.port, call.ephemeral, now):
            self._instances -= 1
            self._plan(service, math.inf if service.places else service.deadline())
            self._changes(service, now)

    def _update(self, call: Update, now: float) -> None:
        service = self._services.get(call.service)
        key = InstanceKey(call.ip, call.port, call.cluster)
        if call.partial:
            self._get_instance(GetInstance(call.service, call.ip, call.port, call.cluster), now)
        if service is None:
            raise service_not_found(call)
        old = service.overrides_of(key) if call.partial else InstanceOverrides()
        laid = InstanceOverrides(
            old.weight if call.weight is None else call.weight,
            old.enabled if call.enabled is None else call.enabled,
            old.metadata if call.metadata is None else call.metadata,
        )
        service.override(key, laid)
        self._plan(service, service.deadline_of(call.ip, call.port))
        self._changes(service, now)

    def _beat(self, call: Beat, now: float) -> BeatResult:
        service = self._services.get(call.service)
        was = service.listed() if service is not None else None
        known = service.beat(call.ip, call.port, now) if service is not None else None
        if service is not None and known is not None:
            if service.listed() is not was:
                self._changes(service, now)
            return self._administration.beaten(service, known)
        if call.full is None:
            return replace(self._administration.beaten(), code=BEAT_NOT_FOUND)
        self._register(Register(call.service, replace(call.full, healthy=True, enabled=True)), now)
        service = self._services[call.service]
        return self._administration.beaten(service, service.places[(call.ip, call.port)])

    def _batch(self, call: BatchMetadata, now: float) -> tuple[str, ...]:
        service = self._services.get(call.service)
        if service is None:
            return ()
        keys = call.instances or tuple(i.key for i in service.listed().instances)
        changed = [key for key in keys if service.has(key)]
        for key in changed:
            old = service.overrides_of(key)
            kept = {k: v for k, v in old.metadata.items() if not (call.remove and k in call.metadata)}
            service.override(key, replace(old, metadata=kept if call.remove else {**kept, **call.metadata}))
            self._plan(service, service.deadline_of(key.ip, key.port))
        if changed:
            self._changes(service, now)
        kind = "ephemeral" if call.ephemeral else "persistent"
        return tuple(f"{key.ip}:{key.port}:unknown:{key.cluster}:{kind}" for key in changed)

    def _set_health(self, call: SetHealth, now: float) -> None:
        service = self._services.get(call.service)
        if service is None or service.checks.get(call.cluster, Checking()).checker["type"] != "NONE":
            text = f"health check is still working, service: {call.service.grouped}, cluster: {call.cluster}"
            raise Refused(Reason.CHECKER_AT_WORK, text)
        if service.set_health(call.ip, call.port, call.healthy):
            self._changes(service, now)

    # services

    def _get_service(self, call: GetService, now: float) -> ServiceInfo:
        key = call.service
        text = f"service not found, namespace: {key.namespace}, serviceName: {key.grouped}"
        return self._known(key, text).info()

    def _catalog_service(self, call: CatalogService, now: float) -> ServiceInfo:
        return self._known(call.service, f"service {call.service.grouped} is not found!").info()

    def _create_service(self, call: CreateService, now: float) -> None:
        if call.service in self._services:
            raise Refused(Reason.SERVICE_EXISTS, f"specified service {call.service.grouped} already exists!")
        more = {"explicit": True, "threshold": call.threshold, "metadata": call.metadata}
        self._create(call.service, call.ephemeral, selector=read_selector(call.selector), **more)

    def _update_service(self, call: UpdateService, now: float) -> None:
        service = self._known(call.service)
        service.explicit, service.threshold, service.metadata = True, call.threshold, call.metadata
        service.selector = read_selector(call.selector)
        service.changed()
        self._plan(service, service.deadline())
        self._changes(service, now)

    def _set_cluster(self, call: SetCluster, now: float) -> None:
        """It gives the service metadata of its own, as every change of a service does (nacos-http.md 5.5)."""
        service = self._known(call.service, f"service not found:{call.service.grouped}", Reason.OTHER)
        service.explicit, service.checks = True, {**service.checks, call.cluster: call.checking}
        service.changed()
        self._changes(service, now)

    def _delete_service(self, call: DeleteService, now: float) -> None:
        service = self._known(call.service)
        if service.places:
            text = f"Service {call.service.grouped} is not empty, can't be delete. Please unregister instance first"
            raise Refused(Reason.SERVICE_NOT_EMPTY, text)
        del self._services[call.service]

    def _known(self, key: ServiceKey, unless: str = "", reason: Reason = Reason.SERVICE_NOT_FOUND) -> Service:
        service = self._services.get(key)
        if service is None:
            raise Refused(reason, unless or f"service {key.grouped} not found!")
        return service

    def _list_services(self, call: ListServices, now: float) -> ServicePage:
        names = [k.name for k in self._services if k.namespace == call.namespace and k.group == call.group]
        first = (max(1, call.page) - 1) * max(0, call.size)
        return ServicePage(len(names), tuple(names[first : first + max(0, call.size)]))

    def _names(self, call: ServiceNames, now: float) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for key in self._services:
            if not call.namespace or key.namespace == call.namespace:
                found.setdefault(key.namespace, []).append(key.grouped)
        return {namespace: tuple(names) for namespace, names in found.items()}

    async def _details(self, call: ListDetails, now: float) -> DetailPage:
        found = [
            s
            for s in self._services.values()
            if s.key.namespace == call.namespace
            and call.name_part in s.key.name
            and call.group_part in s.key.group
            and not (call.ignore_empty and not s.places)
        ]
        first = (max(1, call.page) - 1) * call.size
        rows: list[ServiceDetail] = []
        async for s in in_turns(found[first : first + call.size], AT_ONCE):
            rows.append(ServiceDetail(s.info(), self._fetch(Fetch(s.key), now)))
        return DetailPage(len(found), tuple(rows))

    def __repr__(self) -> str:
        return f"<EmbeddedRegistry {len(self._services)} services, {self._instances} instances>"

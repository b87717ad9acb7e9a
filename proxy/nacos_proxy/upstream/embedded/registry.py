"""A registry in this process that behaves like a Nacos server, including instances that expire.

Each call first expires what is due. While changes are watched, a task does the same at each deadline.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from nacos_proxy.model import calls
from nacos_proxy.model.calls import Call
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.limits import check_instance
from nacos_proxy.model.services import Checking, Instance, InstanceKey, ServiceKey, Snapshot
from nacos_proxy.runtime import Clock, Supervisor, in_turns, stood_still, stop
from nacos_proxy.upstream.contract import Changed
from nacos_proxy.upstream.embedded.administration import BATCH, Administration
from nacos_proxy.upstream.embedded.persistence import SWITCHES_KEY, PersistentState, PersistentValue
from nacos_proxy.upstream.embedded.state import InstanceOverrides, PersistentService, Service, read_selector
from nacos_proxy.wire.nacos.administration import CatalogService, SetCluster, SetSwitch

R = TypeVar("R")

TICK = 1.0  # seconds, at most, between two checks for expired instances while changes are watched


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the registry holds. A list shows a write only after `listing_delay` seconds (for tests)."""

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
        self._scheduled: dict[ServiceKey, float] = {}  # the deadline that counts; the heap may hold replaced ones
        self._delayed_lists: dict[ServiceKey, Snapshot] = {}
        self._delayed_until: dict[ServiceKey, float] = {}
        self._watched: set[ServiceKey] = set()
        self._changed: list[ServiceKey] = []  # by the current call
        self._notifications: asyncio.Queue[ServiceKey] = asyncio.Queue()
        self._expiry_task: asyncio.Task[None] | None = None
        self._instances = 0
        self._expired_at = 0.0
        self._administration = Administration(self._services, clock)
        self.persistent_state = PersistentState()
        self._being_written = Counter[ServiceKey]()  # write calls under way
        self._handlers: dict[type, Callable[[Any, float], Any]] = {
            calls.Fetch: self._fetch,
            calls.GetInstance: self._get_instance,
            calls.ListServices: self._list_services,
            calls.Register: self._register,
            calls.Deregister: self._deregister,
            calls.Update: self._update,
            calls.Beat: self._beat,
            calls.BatchMetadata: self._batch_metadata,
            calls.SetHealth: self._set_health,
            calls.GetService: self._get_service,
            calls.CreateService: self._create_service,
            calls.UpdateService: self._update_service,
            calls.DeleteService: self._delete_service,
            calls.ServiceNames: self._list_names,
            CatalogService: self._catalog_service,
            SetCluster: self._set_cluster,
            **self._administration.handlers,
        }
        self._slow: dict[type, Callable[[Any, float], Awaitable[Any]]] = {
            calls.ListDetails: self._list_details,
            **self._administration.slow,
        }

    async def send(self, call: Call[R]) -> R:
        """The result of the call. Changes of the persistent state are written before it returns. Raises `Refused`.

        A list waits for changes of its service that are being written: readers must not see what a kill could undo.
        """
        if isinstance(call, calls.Fetch) and self._being_written[call.service]:
            await self.persistent_state.flush()
        now = self._clock.now()
        self._expire_due(now)
        if (slow := self._slow.get(type(call))) is not None:
            return await slow(call, now)
        result = self._handlers[type(call)](call, now)
        if isinstance(call, (calls.Write, calls.CreateService, calls.UpdateService, calls.DeleteService, SetCluster)):
            key = call.service
            self._persist(key)
        elif isinstance(call, SetSwitch):
            key = SWITCHES_KEY
            self.persistent_state.update(key, self._administration.switches)
        else:
            return result
        changed, self._changed = self._changed, []
        self._being_written[key] += 1
        try:
            await self.persistent_state.flush()
        finally:  # like the caller, watchers must not learn of a change before it is written
            self._being_written[key] -= 1
            if not self._being_written[key]:
                del self._being_written[key]
            self._notify(changed)
        return result

    def _persist(self, key: ServiceKey) -> None:
        service = self._services.get(key)
        self.persistent_state.update(key, None if service is None else service.persistent())

    def restore(self, values: Iterable[tuple[ServiceKey, PersistentValue]]) -> None:
        """Loads the state that an earlier process wrote. Must be called before anything else."""
        now = self._clock.now()
        for key, value in values:
            self.persistent_state.restore(key, value)
            if isinstance(value, PersistentService):
                service = self._services[key] = Service.of(key, value, now)
                self._instances += len(service.instances)
                self._schedule(service, service.deadline())
            else:
                self._administration.switches = {**self._administration.switches, **value}

    async def close(self) -> None:
        await stop(self._expiry_task)

    @property
    def alive(self) -> bool:
        return True

    def covers(self, key: ServiceKey) -> bool:
        return True

    def watch(self, services: Collection[ServiceKey]) -> None:
        before, self._watched = self._watched, set(services)
        for key in self._watched - before:  # may have changed before it was watched
            self._notifications.put_nowait(key)

    async def changes(self) -> AsyncIterator[Changed]:
        """Yields watched services as they change. The first call starts the task that expires instances."""
        if self._expiry_task is None:
            self._expired_at = self._clock.now()
            self._expiry_task = self._supervisor.keep(self._expire_regularly, name="embedded registry")
        while True:
            yield Changed(await self._notifications.get())

    async def _expire_regularly(self) -> None:
        while True:
            now = self._clock.now()
            self._expire_due(now)
            deadline = self._deadlines[0][0] if self._deadlines else math.inf
            await self._clock.sleep_until(min(now + TICK, max(now + 0.05, deadline)))

    def _mark_changed(self, service: Service, now: float) -> None:
        if self._limits.listing_delay:
            self._delayed_until.setdefault(service.key, now + self._limits.listing_delay)
        self._changed.append(service.key)

    def _notify(self, changed: Iterable[ServiceKey]) -> None:
        for key in changed:
            if key in self._watched:
                self._notifications.put_nowait(key)

    def _expire_due(self, now: float) -> None:
        if self._expiry_task is not None and (gap := stood_still(self._expired_at + TICK, now)):
            for service in self._services.values():  # beats that arrived meanwhile were not read
                service.shift(gap, now)
        self._expired_at = now
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, key = heapq.heappop(self._deadlines)
            if self._scheduled.get(key) != deadline:
                continue
            del self._scheduled[key]
            service = self._services.get(key)
            if service is None:
                continue
            if service.instances and not self._administration.checking:
                self._schedule(service, now + 1.0)
                continue
            before = len(service.instances)
            if service.expire(now):
                self._mark_changed(service, now)
            self._instances -= before - len(service.instances)
            if not service.instances and service.deadline() <= now:
                del self._services[key]
                self._persist(key)
            else:
                self._schedule(service, service.deadline())
        changed, self._changed = self._changed, []
        self._notify(changed)

    def _schedule(self, service: Service, deadline: float) -> None:
        if deadline < self._scheduled.get(service.key, math.inf):
            self._scheduled[service.key] = deadline
            heapq.heappush(self._deadlines, (deadline, service.key))

    def _fetch(self, call: calls.Fetch, now: float) -> Snapshot:
        service = self._services.get(call.service)
        if service is None:
            return Snapshot(call.service)
        if not self._limits.listing_delay:
            return service.snapshot()
        key = call.service
        if key not in self._delayed_lists or now >= self._delayed_until.get(key, math.inf):
            self._delayed_until.pop(key, None)
            self._delayed_lists[key] = service.snapshot()
        return self._delayed_lists[key]

    def _get_instance(self, call: calls.GetInstance, now: float) -> Instance:
        snapshot = self._fetch(calls.Fetch(call.service), now)
        if not snapshot.instances:
            text = f"no ips found for cluster {call.cluster} in service {call.service.grouped}"
            raise Refused(Reason.NO_INSTANCES, text, status=404)
        found = snapshot.find(call.ip, call.port, call.cluster)
        if found is None:
            raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
        return found

    def _register(self, call: calls.Register, now: float) -> None:
        check_instance(call.instance)
        service = self._services.get(call.service)
        known = service is not None and (call.instance.ip, call.instance.port) in service.instances
        if not known and self._instances >= self._limits.instances:
            raise Refused(Reason.OTHER, f"the embedded registry holds {self._limits.instances} instances already")
        if service is None:
            service = self._create(call.service, call.instance.ephemeral)
        service.register(call.instance, now)
        self._instances += not known
        self._schedule(service, service.deadline_of(call.instance.ip, call.instance.port))
        self._mark_changed(service, now)

    def _create(self, key: ServiceKey, ephemeral: bool, **fields: Any) -> Service:
        if len(self._services) >= self._limits.services:
            raise Refused(Reason.OTHER, f"the embedded registry holds {self._limits.services} services already")
        service = self._services[key] = Service(key, ephemeral, empty_since=self._clock.now(), **fields)
        self._schedule(service, service.deadline())
        return service

    def _deregister(self, call: calls.Deregister, now: float) -> None:
        service = self._services.get(call.service)
        if service is not None and service.deregister(call.ip, call.port, call.ephemeral, now):
            self._instances -= 1
            self._schedule(service, math.inf if service.instances else service.deadline())
            self._mark_changed(service, now)

    def _update(self, call: calls.Update, now: float) -> None:
        service = self._services.get(call.service)
        key = InstanceKey(call.ip, call.port, call.cluster)
        if call.partial:
            self._get_instance(calls.GetInstance(call.service, call.ip, call.port, call.cluster), now)
        if service is None:
            namespace, group, name = call.service.namespace, call.service.group, call.service.name
            java = f"Service{{namespace='{namespace}', group='{group}', name='{name}', "
            java += f"ephemeral={str(call.ephemeral).lower()}, revision=0}}"
            raise Refused(Reason.SERVICE_NOT_FOUND, f"service not found, namespace: {namespace}, service: {java}")
        old = service.overrides_of(key) if call.partial else InstanceOverrides()
        overrides = InstanceOverrides(
            old.weight if call.weight is None else call.weight,
            old.enabled if call.enabled is None else call.enabled,
            old.metadata if call.metadata is None else call.metadata,
        )
        service.override(key, overrides)
        self._schedule(service, service.deadline_of(call.ip, call.port))
        self._mark_changed(service, now)

    def _beat(self, call: calls.Beat, now: float) -> calls.BeatResult:
        service = self._services.get(call.service)
        if service is not None:
            before = service.snapshot()
            if (known := service.beat(call.ip, call.port, now)) is not None:
                if service.snapshot() is not before:
                    self._mark_changed(service, now)
                return self._administration.beat_result(known)
        if call.full is None:
            return replace(self._administration.beat_result(), code=calls.BEAT_NOT_FOUND)
        self._register(calls.Register(call.service, replace(call.full, healthy=True, enabled=True)), now)
        return self._administration.beat_result(self._services[call.service].instances[(call.ip, call.port)])

    def _batch_metadata(self, call: calls.BatchMetadata, now: float) -> tuple[str, ...]:
        service = self._services.get(call.service)
        if service is None:
            return ()
        keys = call.instances or tuple(instance.key for instance in service.snapshot().instances)
        changed = [key for key in keys if service.find(key) is not None]
        for key in changed:
            old = service.overrides_of(key)
            kept = {name: old.metadata[name] for name in old.metadata if not (call.remove and name in call.metadata)}
            service.override(key, replace(old, metadata=kept if call.remove else {**kept, **call.metadata}))
            self._schedule(service, service.deadline_of(key.ip, key.port))
        if changed:
            self._mark_changed(service, now)
        kind = "ephemeral" if call.ephemeral else "persistent"
        return tuple(f"{key.ip}:{key.port}:unknown:{key.cluster}:{kind}" for key in changed)

    def _set_health(self, call: calls.SetHealth, now: float) -> None:
        service = self._services.get(call.service)
        if service is None or service.checks.get(call.cluster, Checking()).checker["type"] != "NONE":
            text = f"health check is still working, service: {call.service.grouped}, cluster: {call.cluster}"
            raise Refused(Reason.CHECKER_AT_WORK, text)
        if service.set_health(call.ip, call.port, call.healthy):
            self._mark_changed(service, now)

    def _get_service(self, call: calls.GetService, now: float) -> calls.ServiceInfo:
        key = call.service
        text = f"service not found, namespace: {key.namespace}, serviceName: {key.grouped}"
        return self._existing(key, text).info()

    def _catalog_service(self, call: CatalogService, now: float) -> calls.ServiceInfo:
        return self._existing(call.service, f"service {call.service.grouped} is not found!").info()

    def _create_service(self, call: calls.CreateService, now: float) -> None:
        if call.service in self._services:
            raise Refused(Reason.SERVICE_EXISTS, f"specified service {call.service.grouped} already exists!")
        self._create(
            call.service,
            call.ephemeral,
            explicit=True,
            threshold=call.threshold,
            metadata=call.metadata,
            selector=read_selector(call.selector),
        )

    def _update_service(self, call: calls.UpdateService, now: float) -> None:
        service = self._existing(call.service)
        service.explicit, service.threshold, service.metadata = True, call.threshold, call.metadata
        service.selector = read_selector(call.selector)
        service.changed()
        self._schedule(service, service.deadline())
        self._mark_changed(service, now)

    def _set_cluster(self, call: SetCluster, now: float) -> None:
        """Makes the service explicit, as every change of a service does (nacos-http.md 5.5)."""
        service = self._existing(call.service, f"service not found:{call.service.grouped}", Reason.OTHER)
        service.explicit, service.checks = True, {**service.checks, call.cluster: call.checking}
        service.changed()
        self._mark_changed(service, now)

    def _delete_service(self, call: calls.DeleteService, now: float) -> None:
        service = self._existing(call.service)
        if service.instances:
            text = f"Service {call.service.grouped} is not empty, can't be delete. Please unregister instance first"
            raise Refused(Reason.SERVICE_NOT_EMPTY, text)
        del self._services[call.service]

    def _existing(self, key: ServiceKey, text: str = "", reason: Reason = Reason.SERVICE_NOT_FOUND) -> Service:
        service = self._services.get(key)
        if service is None:
            raise Refused(reason, text or f"service {key.grouped} not found!")
        return service

    def _list_services(self, call: calls.ListServices, now: float) -> calls.ServicePage:
        names = [key.name for key in self._services if (key.namespace, key.group) == (call.namespace, call.group)]
        first = (max(1, call.page) - 1) * max(0, call.size)
        return calls.ServicePage(len(names), tuple(names[first : first + max(0, call.size)]))

    def _list_names(self, call: calls.ServiceNames, now: float) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for key in self._services:
            if not call.namespace or key.namespace == call.namespace:
                found.setdefault(key.namespace, []).append(key.grouped)
        return {namespace: tuple(names) for namespace, names in found.items()}

    async def _list_details(self, call: calls.ListDetails, now: float) -> calls.DetailPage:
        matching = [
            service
            for key, service in self._services.items()
            if key.namespace == call.namespace
            and call.name_part in key.name
            and call.group_part in key.group
            and (service.instances or not call.ignore_empty)
        ]
        first = (max(1, call.page) - 1) * call.size
        page = in_turns(matching[first : first + call.size], BATCH)
        rows = [
            calls.ServiceDetail(service.info(), self._fetch(calls.Fetch(service.key), now)) async for service in page
        ]
        return calls.DetailPage(len(matching), tuple(rows))

    def __repr__(self) -> str:
        return f"<EmbeddedRegistry {len(self._services)} services, {self._instances} instances>"

"""The administrative calls of the embedded registry: switches, metrics, state, namespaces, clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nacos_proxy.model.calls import Alive, BeatResult, Metrics, Namespaces, Ready, ServerState, Subscribers, Switches
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.heartbeats import DEFAULT_BEAT_INTERVAL, beat_interval
from nacos_proxy.model.services import InstanceKey, ServiceKey
from nacos_proxy.runtime import Clock, in_turns
from nacos_proxy.upstream.embedded.state import Address, Registered, Service
from nacos_proxy.upstream.embedded.switches import STATE, SWITCHES, with_switch
from nacos_proxy.wire.nacos.administration import Client, Clients, FindClient, Publishers, SetSwitch

BATCH = 100  # services that are read before other tasks get a turn; a service may have many instances


class Administration:
    """Reads the registry's services, and owns the switches. `handlers` and `slow` map a call's type to its handler.

    Only the switches `clientBeatInterval`, `lightBeatEnabled` and `check` (off: no instance expires) have an effect;
    the others are only stored.
    """

    def __init__(self, services: Mapping[ServiceKey, Service], clock: Clock) -> None:
        self._services = services
        self._clock = clock
        self.switches = SWITCHES
        self.handlers: dict[type, Callable[[Any, float], Any]] = {
            Switches: lambda call, now: self.switches,
            SetSwitch: self._set_switch,
            ServerState: lambda call, now: STATE,
            Namespaces: self._namespaces,
            Subscribers: lambda call, now: (),
            FindClient: self._find_client,
            Publishers: self._publishers,
            Alive: lambda call, now: None,
            Ready: lambda call, now: None,
        }
        self.slow: dict[type, Callable[[Any, float], Awaitable[Any]]] = {Metrics: self._metrics, Clients: self._clients}

    @property
    def checking(self) -> bool:
        return bool(self.switches["healthCheckEnabled"])

    def beat_result(self, known: Registered | None = None) -> BeatResult:
        interval = self.switches["clientBeatInterval"] or DEFAULT_BEAT_INTERVAL
        if known is not None:
            interval = beat_interval(known.metadata, interval)
        return BeatResult(interval=interval, light=self.switches["lightBeatEnabled"])

    def _set_switch(self, call: SetSwitch, now: float) -> None:
        self.switches = with_switch(self.switches, call.entry, call.value)

    async def _metrics(self, call: Metrics, now: float) -> Mapping[str, Any]:
        if call.only_status:
            return {"status": "UP"}
        instances, ephemeral, persistent = 0, set[Address](), set[Address]()
        async for service in in_turns(list(self._services.values()), BATCH):
            instances += len(service.instances)
            (ephemeral if service.ephemeral else persistent).update(service.instances)
        clients = len(ephemeral) + len(persistent)
        return {
            "status": "UP",
            "serviceCount": len(self._services),
            "instanceCount": instances,
            "subscribeCount": 0,
            "responsibleInstanceCount": instances,
            "clientCount": clients,
            "connectionBasedClientCount": 0,
            "ephemeralIpPortClientCount": len(ephemeral),
            "persistentIpPortClientCount": len(persistent),
            "responsibleClientCount": clients,
            "cpu": 0.0,
            "load": 0.0,
            "mem": 0.0,
        }

    def _namespaces(self, call: Namespaces, now: float) -> tuple[Mapping[str, Any], ...]:
        """Only the default namespace: registering in another does not create that (recording "v1 namespaces")."""
        default = {"namespace": "", "namespaceShowName": "public", "namespaceDesc": "Default Namespace"}
        return ({**default, "quota": 200, "configCount": 0, "type": 0},)

    async def _clients(self, call: Clients, now: float) -> tuple[Client, ...]:
        index = _ClientIndex()
        async for service in in_turns(list(self._services.values()), BATCH):
            index.add(service, service.instances)
        return tuple([self._describe_client(index, key, now) async for key in in_turns(list(index.heard), 10 * BATCH)])

    def _publishers(self, call: Publishers, now: float) -> tuple[Client, ...]:
        index = _ClientIndex()
        if (service := self._services.get(call.service)) is not None:
            index.add(service, service.instances)
        return tuple(self._describe_client(index, key, now) for key in index.heard)

    def _find_client(self, call: FindClient, now: float) -> Client:
        name, _, kind = call.name.partition("#")
        ip, _, port = name.rpartition(":")
        index = _ClientIndex()
        if port.isascii() and port.isdecimal() and len(port) <= 5:
            address = (ip, int(port))
            for service in self._services.values():
                if address in service.instances and str(service.ephemeral).lower() == kind:
                    index.add(service, (address,))
        clients = [self._describe_client(index, key, now) for key in index.heard]
        if not clients or clients[0].name != call.name:
            raise Refused(Reason.INSTANCE_NOT_FOUND, f"clientId [ {call.name} ] not exist", status=404)
        return clients[0]

    def _describe_client(self, index: _ClientIndex, key: _ClientKey, now: float) -> Client:
        updated = int((self._clock.wall() - now + index.heard[key]) * 1000)
        return Client(*key, updated, tuple(index.published[key]))


_ClientKey = tuple[str, int, bool]  # ip, port, ephemeral: these identify a client (nacos-http.md 5.1)


@dataclass(slots=True)
class _ClientIndex:
    """The time of each client's last beat, and the instances that it published."""

    heard: dict[_ClientKey, float] = field(default_factory=lambda: {})
    published: dict[_ClientKey, list[tuple[ServiceKey, InstanceKey]]] = field(default_factory=lambda: {})

    def add(self, service: Service, addresses: Iterable[Address]) -> None:
        for address in addresses:
            known, key = service.instances[address], (*address, service.ephemeral)
            self.heard[key] = max(known.heard, self.heard.get(key, known.heard))
            self.published.setdefault(key, []).append((service.key, known.instance.key))

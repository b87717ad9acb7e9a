"""What the embedded registry tells of itself: switches, metrics, state, namespaces, and who registered what.

Not for: instances and services (`embedded`), what a switch takes (`switches`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nacos_proxy.model.calls import (
    Alive,
    BeatResult,
    Metrics,
    Namespaces,
    Ready,
    ServerState,
    Subscribers,
    Switches,
)
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.heartbeats import DEFAULT_BEAT_INTERVAL
from nacos_proxy.model.services import InstanceKey, ServiceKey
from nacos_proxy.runtime import Clock, in_turns
from nacos_proxy.upstream.embedded.state import InstanceAddress, Registered, Service
from nacos_proxy.upstream.embedded.switches import STATE, SWITCHES, turned
from nacos_proxy.wire.nacos.administration import (
    Client,
    Clients,
    FindClient,
    Publishers,
    SetSwitch,
)

AT_ONCE = 100  # services that are looked at before others have their turn; one may have many instances


class Administration:
    """Reads the registry's services; the switches are its own. `handlers` take a call and the moment.

    Of the switches, `clientBeatInterval`, `lightBeatEnabled` and `check` (no instance expires) are obeyed here; the
    others are kept and shown.
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

    def beaten(self, service: Service | None = None, known: Registered | None = None) -> BeatResult:
        """What a beat is told."""
        interval = self.switches["clientBeatInterval"] or DEFAULT_BEAT_INTERVAL
        if service is not None and known is not None:
            interval = service.interval(known, interval)
        return BeatResult(interval=interval, light=self.switches["lightBeatEnabled"])

    def _set_switch(self, call: SetSwitch, now: float) -> None:
        self.switches = turned(self.switches, call.entry, call.value)

    async def _metrics(self, call: Metrics, now: float) -> Mapping[str, Any]:
        if call.only_status:
            return {"status": "UP"}
        instances, ephemeral, persistent = 0, set[InstanceAddress](), set[InstanceAddress]()
        async for service in in_turns(list(self._services.values()), AT_ONCE):
            instances += len(service.places)
            (ephemeral if service.ephemeral else persistent).update(service.places)
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
        """Namespaces are made elsewhere in Nacos: to register in one does not make it (recording "v1 namespaces")."""
        default = {"namespace": "", "namespaceShowName": "public", "namespaceDesc": "Default Namespace"}
        return ({**default, "quota": 200, "configCount": 0, "type": 0},)

    # who registered what: a client is an ip:port of one kind (nacos-http.md 5.1)

    async def _clients(self, call: Clients, now: float) -> tuple[Client, ...]:
        found = Found()
        async for service in in_turns(list(self._services.values()), AT_ONCE):
            found.look(service, service.places)
        clients: list[Client] = []
        async for who in in_turns(list(found.heard), 10 * AT_ONCE):
            clients.append(self._client(found, who, now))
        return tuple(clients)

    def _publishers(self, call: Publishers, now: float) -> tuple[Client, ...]:
        found = Found()
        if (service := self._services.get(call.service)) is not None:
            found.look(service, service.places)
        return tuple(self._client(found, who, now) for who in found.heard)

    def _find_client(self, call: FindClient, now: float) -> Client:
        address, _, kind = call.name.partition("#")
        ip, _, port = address.rpartition(":")
        found = Found()
        if port.isascii() and port.isdecimal() and len(port) <= 5:
            place = (ip, int(port))
            for service in self._services.values():
                if place in service.places and str(service.ephemeral).lower() == kind:
                    found.look(service, (place,))
        clients = [self._client(found, who, now) for who in found.heard]
        if not clients or clients[0].name != call.name:
            raise Refused(Reason.INSTANCE_NOT_FOUND, f"clientId [ {call.name} ] not exist", status=404)
        return clients[0]

    def _client(self, found: Found, who: Who, now: float) -> Client:
        updated = int((self._clock.wall() - now + found.heard[who]) * 1000)
        return Client(*who, updated, tuple(found.published[who]))


Who = tuple[str, int, bool]


@dataclass(slots=True)
class Found:
    """Clients, when each was last heard of, and what it published."""

    heard: dict[Who, float] = field(default_factory=lambda: {})
    published: dict[Who, list[tuple[ServiceKey, InstanceKey]]] = field(default_factory=lambda: {})

    def look(self, service: Service, places: Iterable[InstanceAddress]) -> None:
        for place in places:
            known, who = service.places[place], (*place, service.ephemeral)
            self.heard[who] = max(known.heard, self.heard.get(who, known.heard))
            self.published.setdefault(who, []).append((service.key, known.instance.key))

"""What the embedded registry tells of itself: switches, metrics, state, namespaces, and who registered what.

Not for: instances and services (`embedded`), what a switch takes (`switches`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from proxy.calls import (
    DEFAULT_BEAT_INTERVAL,
    Alive,
    BeatResult,
    Metrics,
    Namespaces,
    Ready,
    ServerState,
    Subscribers,
    Switches,
)
from proxy.errors import Reason, Refused
from proxy.model import InstanceKey, ServiceKey
from proxy.registry.embedded_state import Registered, Service
from proxy.registry.switches import STATE, SWITCHES, turned
from proxy.runtime import Clock
from proxy.wire.administration import Client, Clients, FindClient, Publishers, SetSwitch


class Administration:
    """Reads the registry's services; the switches are its own. `handlers` take a call and the moment.

    Of the switches, `clientBeatInterval`, `lightBeatEnabled` and `check` (no instance expires) are obeyed here; the
    others are kept and shown.
    """

    def __init__(self, services: Mapping[ServiceKey, Service], clock: Clock) -> None:
        self._services = services
        self._clock = clock
        self._switches = SWITCHES
        self.handlers: dict[type, Callable[[Any, float], Any]] = {
            Metrics: self._metrics,
            Switches: lambda call, now: self._switches,
            SetSwitch: self._set_switch,
            ServerState: lambda call, now: STATE,
            Namespaces: self._namespaces,
            Subscribers: lambda call, now: (),
            Clients: self._clients,
            FindClient: self._find_client,
            Publishers: self._publishers,
            Alive: lambda call, now: None,
            Ready: lambda call, now: None,
        }

    @property
    def checking(self) -> bool:
        return bool(self._switches["healthCheckEnabled"])

    def beaten(self, service: Service | None = None, known: Registered | None = None) -> BeatResult:
        """What a beat is told."""
        interval = self._switches["clientBeatInterval"] or DEFAULT_BEAT_INTERVAL
        if service is not None and known is not None:
            interval = service.interval(known, interval)
        return BeatResult(interval=interval, light=self._switches["lightBeatEnabled"])

    def _set_switch(self, call: SetSwitch, now: float) -> None:
        self._switches = turned(self._switches, call.entry, call.value)

    def _metrics(self, call: Metrics, now: float) -> Mapping[str, Any]:
        if call.only_status:
            return {"status": "UP"}
        instances = sum(len(service.places) for service in self._services.values())
        clients = {(place, s.ephemeral) for s in self._services.values() for place in s.places}
        persistent = sum(not ephemeral for _, ephemeral in clients)
        return {
            "status": "UP",
            "serviceCount": len(self._services),
            "instanceCount": instances,
            "subscribeCount": 0,
            "responsibleInstanceCount": instances,
            "clientCount": len(clients),
            "connectionBasedClientCount": 0,
            "ephemeralIpPortClientCount": len(clients) - persistent,
            "persistentIpPortClientCount": persistent,
            "responsibleClientCount": len(clients),
            "cpu": 0.0,
            "load": 0.0,
            "mem": 0.0,
        }

    def _namespaces(self, call: Namespaces, now: float) -> tuple[Mapping[str, Any], ...]:
        """Namespaces are made elsewhere in Nacos: to register in one does not make it (recording "v1 namespaces")."""
        default = {"namespace": "", "namespaceShowName": "public", "namespaceDesc": "Default Namespace"}
        return ({**default, "quota": 200, "configCount": 0, "type": 0},)

    # who registered what: a client is an ip:port of one kind (NACOS.md 5.1)

    def _clients(self, call: Clients, now: float) -> tuple[Client, ...]:
        return self._of(self._services.values(), now)

    def _publishers(self, call: Publishers, now: float) -> tuple[Client, ...]:
        service = self._services.get(call.service)
        return () if service is None else self._of((service,), now)

    def _find_client(self, call: FindClient, now: float) -> Client:
        for client in self._of(self._services.values(), now):
            if client.name == call.name:
                return client
        raise Refused(Reason.INSTANCE_NOT_FOUND, f"clientId [ {call.name} ] not exist", status=404)

    def _of(self, services: Iterable[Service], now: float) -> tuple[Client, ...]:
        heard: dict[tuple[str, int, bool], float] = {}
        published: dict[tuple[str, int, bool], list[tuple[ServiceKey, InstanceKey]]] = {}
        for service in services:
            for (ip, port), known in service.places.items():
                who = (ip, port, service.ephemeral)
                heard[who] = max(known.heard, heard.get(who, known.heard))
                published.setdefault(who, []).append((service.key, known.instance.key))
        wall = self._clock.wall()
        return tuple(
            Client(*who, int((wall - now + heard[who]) * 1000), tuple(found)) for who, found in published.items()
        )

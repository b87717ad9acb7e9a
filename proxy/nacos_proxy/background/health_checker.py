"""Beats for services that cannot beat by themselves: runs their checks and acts on the results.

Not for: what a result means (`catalog.checks`), what is registered (the agent).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from nacos_proxy.background.udp_push import Network, allowed
from nacos_proxy.catalog.health_checks import (
    CheckedInstance,
    CheckSpec,
    local,
    startable,
)
from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.core.agent import Agent, Written
from nacos_proxy.model.calls import Beat, Deregister, Register
from nacos_proxy.model.errors import BadCall, Problem, ProxyError
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import spawn, stood_still, stop

log = logging.getLogger("nacos_proxy.managed")


@dataclass(frozen=True, slots=True)
class HealthCheckerPolicy:
    """`allow` are networks that checks may reach besides this host; at most `most` managed instances.

    At most `at_once` checks run at once. Of either number an owner has no more than it leaves free.
    `farewell`: seconds that a stop gives the instances to leave the registry.
    """

    allow: tuple[Network, ...] = ()
    max_instances: int = 2_000
    tick: float = 0.25
    at_once: int = 100
    farewell: float = 5.0


class HealthChecker:
    """The managed instances of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: HealthCheckerPolicy) -> None:
        self._agent = agent
        self._policy = policy
        self._places: dict[RegistrationKey, CheckedInstance] = {}
        self._running: dict[RegistrationKey, tuple[CheckedInstance, asyncio.Task[None]]] = {}
        self._beating: dict[RegistrationKey, asyncio.Task[None]] = {}
        self._remembered: set[RegistrationKey] = set()
        self._client: httpx.AsyncClient | None = None  # where there is a use for it: to read the CAs takes a while
        self._task: asyncio.Task[None] | None = None
        agent.on_registration.append(self._forget_deregistered)

    def start(self) -> None:
        self._task = self._agent.supervisor.keep(self._run, name="managed")

    async def stop(self, *, deregister: bool = False) -> None:
        """Ends the checks; with `deregister` the instances leave the registry, which a planned stop may want."""
        await stop(self._task)
        checks = [task for _, task in self._running.values()]
        for task in (*checks, *self._beating.values()):  # or a late beat would bring back what leaves now
            await stop(task)
        if deregister and self._places:
            leaving = [spawn(self._deregister(managed), name="farewell") for managed in self]
            _, late = await asyncio.wait(leaving, timeout=self._policy.farewell)
            for task in late:
                await stop(task)
        if self._client is not None:
            await self._client.aclose()

    def check(self, spec: CheckSpec) -> None:
        """Raises `BadCall` for a check that may not be made from here."""
        if spec.kind != "ttl" and not local(spec.host) and not allowed(spec.host, self._policy.allow):
            text = f"checks reach this host only; {spec.host!r} is not allowed by the setting managed_allow"
            raise BadCall("managed.check", Problem.BODY, text, status=403)

    async def register(
        self, service: ServiceKey, instance: Instance, spec: CheckSpec, owner: str = ""
    ) -> Written[None]:
        """Register for the client at this address, and keep beating. Raises `BadCall` or what the upstream says."""
        self.check(spec)
        if (service, instance.ip, instance.port) not in self._places:
            shares = Shares(self._policy.max_instances, (managed.owner for managed in self))
            if not shares.room(owner):
                held = shares.held(owner)
                text = f"{held} instances of this client are managed already, {len(self)} of all clients together"
                raise BadCall("managed", Problem.OTHER, text, status=429)
        written = await self._agent.write(Register(service, instance))
        self._keep(CheckedInstance(service, instance, spec, owner), registered=True)
        self._agent.registrations_changed(service)
        return written

    def restore(self, managed: CheckedInstance) -> None:
        """One that was managed before a restart; its first check is due at once."""
        self._keep(managed, registered=False)

    def _keep(self, managed: CheckedInstance, *, registered: bool) -> None:
        managed.begin(self._agent.clock.now(), registered=registered)
        if managed.spec.kind == "http" and self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)
        place = managed.key
        self._places[place] = managed
        registration = self._agent.catalog.registrations.find(*place)
        if registration is not None:
            registration.managed = managed.spec.dump() | ({"owner": managed.owner} if managed.owner else {})
            self._remembered.add(place)

    def restore_all(self) -> int:
        """All that the ledger says is managed and that may still be; their number."""
        for registration in self._agent.catalog.registrations:
            if registration.managed is None:
                continue
            where = f"{registration.instance.address} of {registration.service}"
            try:
                kept = dict(registration.managed)
                owner = str(kept.pop("owner", ""))
                spec = CheckSpec.parse(kept, kept=True)
                self.check(spec)
            except BadCall as error:
                registration.managed = None
                log.error("%s is not managed any more, its beats are its own affair: %s", where, error)
                continue
            self.restore(CheckedInstance(registration.service, registration.instance, spec, owner))
        return len(self._places)

    def heard(self, service: ServiceKey, ip: str, port: int) -> bool:
        """A sign of life for a TTL check. True where there is one for it."""
        managed = self._places.get((service, ip, port))
        if managed is None:
            return False
        managed.heard = self._agent.clock.now()
        return True

    def forget(self, service: ServiceKey, ip: str, port: int) -> None:
        """The instance was deregistered by its owner; harmless for one that is not managed."""
        self._places.pop((service, ip, port), None)
        self._remembered.discard((service, ip, port))

    def _forget_deregistered(self) -> None:
        """However its owner deregistered it: a beat must not bring it back."""
        ledger = self._agent.catalog.registrations
        for place in [place for place in self._remembered if ledger.find(*place) is None]:
            self.forget(*place)

    async def _run(self) -> None:
        clock = self._agent.clock
        due = clock.now()
        while True:
            now = clock.now()
            if gap := stood_still(due, now):
                for managed in self:
                    managed.shift(gap, now)
            self._begin_checks(now)
            self._begin_beats(now)
            due = now + self._policy.tick
            await clock.sleep_until(due)

    def _begin_checks(self, now: float) -> None:
        waiting = [m for place, m in self._places.items() if m.due_at <= now and place not in self._running]
        running = [managed for managed, _ in self._running.values()]
        for managed in startable(waiting, running, self._policy.at_once):
            task = self._agent.supervisor.once(self._look_after(managed.key, managed), name="check")
            self._running[managed.key] = managed, task

    def _begin_beats(self, now: float) -> None:
        for place, managed in self._places.items():
            if place not in self._beating and managed.beats(now):
                self._beating[place] = self._agent.supervisor.once(self._beat(place, managed), name="beat")

    async def _look_after(self, place: RegistrationKey, managed: CheckedInstance) -> None:
        began = self._agent.clock.now()
        try:
            error = await self._examine(managed)
            was, now = managed.passing, self._agent.clock.now()
            action = managed.result(error, now, now - began)
            if managed.passing is not was:
                state = "passes again" if managed.passing else f"fails, its beats stop: {error}"
                log.warning("the check of %s of %s %s", managed.instance.address, managed.service, state)
            if self._places.get(place) is not managed:
                return
            if action == "deregister":
                log.warning("%s of %s failed too long: deregistered", managed.instance.address, managed.service)
                await self._deregister(managed)
                self.forget(managed.service, managed.instance.ip, managed.instance.port)
        finally:
            self._running.pop(place, None)

    async def _beat(self, place: RegistrationKey, managed: CheckedInstance) -> None:
        i = self._as_it_is(managed)
        try:
            if self._places.get(place) is not managed:  # deregistered since
                return
            await self._agent.write(Beat(managed.service, i.ip, i.port, i.cluster, i.ephemeral, i))
        except ProxyError as error:
            log.info("a beat for %s of %s did not get through: %s", i.address, managed.service, error)
        finally:
            self._beating.pop(place, None)

    async def _deregister(self, managed: CheckedInstance) -> None:
        i = self._as_it_is(managed)
        try:
            await self._agent.write(Deregister(managed.service, i.ip, i.port, i.cluster, i.ephemeral))
        except ProxyError as error:
            log.warning("could not deregister %s of %s: %s", i.address, managed.service, error)

    def _as_it_is(self, managed: CheckedInstance) -> Instance:
        """With what was modified since it was registered."""
        i = managed.instance
        known = self._agent.catalog.registrations.find(managed.service, i.ip, i.port)
        return i if known is None else known.instance

    async def _examine(self, managed: CheckedInstance) -> str:
        spec = managed.spec
        if spec.kind == "ttl":
            return managed.expired(self._agent.clock.now())
        try:
            # One limit for the whole check: a server that sends a byte now and then is no healthy one.
            return await asyncio.wait_for(self._http(spec) if spec.kind == "http" else self._tcp(spec), spec.timeout)
        except asyncio.TimeoutError:
            return f"no answer in {spec.timeout:g} s"
        except Exception as error:  # the target is anybody's text: whatever a check dies of is its failure
            return str(error) or type(error).__name__

    async def _http(self, spec: CheckSpec) -> str:
        assert self._client is not None
        async with self._client.stream("GET", spec.target, timeout=None) as reply:
            return "" if 200 <= reply.status_code < 300 else f"{spec.target} answered {reply.status_code}"

    async def _tcp(self, spec: CheckSpec) -> str:
        host, _, port = spec.target.rpartition(":")
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
        return ""

    def __iter__(self) -> Iterator[CheckedInstance]:
        return iter(list(self._places.values()))

    def __len__(self) -> int:
        return len(self._places)

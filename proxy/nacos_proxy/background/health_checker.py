"""Runs the health checks of instances that cannot beat by themselves, and beats for those that pass.

`catalog.health_checks` decides what follows from a result.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace

import httpx

from nacos_proxy.background.udp_push import Network, allowed
from nacos_proxy.catalog.health_checks import CheckedInstance, CheckSpec, Maintenance, is_local_host, startable
from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.core.agent import Agent, Written
from nacos_proxy.model.calls import Beat, Deregister, Register
from nacos_proxy.model.errors import BadCall, ProxyError, Violation
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import spawn, stop, ticks

log = logging.getLogger("nacos_proxy.managed")

OF_FILES = "service files"  # the owner of all instances that files declare
Persist = Callable[[Collection[RegistrationKey]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HealthCheckerPolicy:
    """`allow`: networks that checks may reach besides this host. `max_checks` run at once.

    One owner gets at most as many instances and checks as stay free (`Shares`). `max_stop`: seconds for the
    deregistrations at a stop.
    """

    allow: tuple[Network, ...] = ()
    max_instances: int = 2_000
    tick: float = 0.25
    max_checks: int = 100
    max_stop: float = 5.0


async def _not_persisted(keys: Collection[RegistrationKey]) -> None:
    """Without a state file, nothing has to be on disk before an answer."""


class HealthChecker:
    """The checked instances of one agent: `start`, then `stop`."""

    def __init__(self, agent: Agent, policy: HealthCheckerPolicy) -> None:
        self._agent = agent
        self._policy = policy
        self._instances: dict[RegistrationKey, CheckedInstance] = {}
        self._checks: dict[RegistrationKey, tuple[CheckedInstance, asyncio.Task[None]]] = {}
        self._beats: dict[RegistrationKey, asyncio.Task[None]] = {}
        self._registered: set[RegistrationKey] = set()  # instances whose registrations the agent remembers
        self._client: httpx.AsyncClient | None = None  # made on first use, because reading the CAs takes a while
        self._task: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[Instance | None]] = set()
        self._persist: Persist = _not_persisted
        agent.on_registration.append(self._forget_deregistered)

    def persist_with(self, persist: Persist) -> None:
        """From now on, maintenance is on disk before its call returns."""
        self._persist = persist

    def start(self) -> None:
        self._task = self._agent.supervisor.keep(self._run, name="managed")

    async def stop(self, *, deregister: bool = False) -> None:
        """End the checks. With `deregister`, for a planned stop, also deregister the instances."""
        await stop(self._task)
        checks = [task for _, task in self._checks.values()]
        for task in (*checks, *self._beats.values(), *self._settling):  # a late beat would undo the deregistration
            await stop(task)
        if deregister and self._instances:
            there = [checked for checked in self if self._is_there(checked)]
            leaving = [spawn(self._deregister(checked), name="deregister") for checked in there]
            _, late = await asyncio.wait(leaving, timeout=self._policy.max_stop) if leaving else ((), ())
            for task in late:
                await stop(task)
        if self._client is not None:
            await self._client.aclose()

    def validate(self, spec: CheckSpec) -> None:
        """Raises `BadCall` for a check that is not allowed from here."""
        if spec.kind != "ttl" and not is_local_host(spec.host) and not allowed(spec.host, self._policy.allow):
            text = f"checks reach this host only; {spec.host!r} is not allowed by the setting managed_allow"
            raise BadCall("managed.check", Violation.BODY, text, status=403)

    async def register(
        self, service: ServiceKey, instance: Instance, spec: CheckSpec, owner: str = ""
    ) -> Written[None]:
        """Register for the client at the address `owner`, and keep beating. Raises `BadCall` or upstream errors."""
        self.validate(spec)
        if (service, instance.ip, instance.port) not in self._instances:
            shares = Shares(self._policy.max_instances, (checked.owner for checked in self))
            if not shares.room(owner):
                held = shares.held(owner)
                text = f"{held} instances of this client are managed already, {len(self)} of all clients together"
                raise BadCall("managed", Violation.OTHER, text, status=429)
        known = self._instances.get((service, instance.ip, instance.port))
        maintenance = None if known is None else known.maintenance  # it ends when someone ends it
        shown = instance if maintenance is None else replace(instance, enabled=False)
        written = await self._agent.write(Register(service, shown))
        self._add(CheckedInstance(service, instance, spec, owner, maintenance=maintenance), registered=True)
        self._agent.registrations_changed(service)
        return written

    def declare(self, file: str, service: ServiceKey, instance: Instance, spec: CheckSpec, declared: str) -> None:
        """Keep an instance of a service file: it is registered when its check passes.

        No effect if an instance with the same digest (`declared`) is kept already: its modifications stay. The operator
        chose the target of the check, so the setting `managed_allow` does not count.
        """
        known = self._instances.get((service, instance.ip, instance.port))
        if known is None or known.declared != declared or known.phase == "leaving":
            maintenance = None if known is None else known.maintenance  # it ends when someone ends it
            checked = CheckedInstance(
                service, instance, spec, OF_FILES, file, declared, "waiting", maintenance=maintenance
            )
            self._begin(checked, registered=False)
        elif known.file != file:
            known.file = file
            if known.phase == "registered":
                self._remember(known)
                self._agent.registrations_changed(service)

    def withdraw(self, checked: CheckedInstance) -> None:
        """No service file declares the instance any more: deregister it, as soon as the upstream accepts that."""
        if self._is_there(checked):
            checked.leave(self._agent.clock.now())
        else:
            self.forget(*checked.key)

    def _is_there(self, checked: CheckedInstance) -> bool:
        """Whether it may be registered."""
        return checked.phase != "waiting" or checked.key in self._registered

    async def maintain(self, service: ServiceKey, ip: str, port: int, reason: str | None) -> Written[Instance] | None:
        """Keep an instance out of traffic for a reason, or (None) no longer. None if it is not managed.

        Checks go on. Raises the upstream's error, and `BadCall` (409) while it is drained.
        """
        key = (service, ip, port)
        checked, registration = self._instances.get(key), self._agent.catalog.registrations.find(*key)
        if checked is None or registration is None:
            return None
        if self._agent.traffic.drains(key):
            raise BadCall("address", Violation.OTHER, "The instance is being drained: cancel that first.", status=409)
        before, enabled = checked.maintenance, reason is None
        since = before.since if before is not None else self._agent.clock.wall()
        checked.maintenance = None if reason is None else Maintenance(reason, since)
        if (before is None) is enabled:  # only the reason changed, if anything
            written = Written(registration.instance)
        else:
            try:
                written = await self._agent.traffic.enable(registration, enabled)
            except ProxyError:
                checked.maintenance = before
                raise
            checked.begin(self._agent.clock.now(), registered=True)
            task = self._agent.supervisor.once(
                self._agent.traffic.settle(registration), name="maintenance", for_request=True
            )
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
        registration.check = checked.saved()
        self._agent.registrations_changed(service)
        await self._persist([key])
        return written

    def _add(self, checked: CheckedInstance, *, registered: bool) -> None:
        self._begin(checked, registered=registered)
        self._remember(checked)

    def _begin(self, checked: CheckedInstance, *, registered: bool) -> None:
        checked.begin(self._agent.clock.now(), registered=registered)
        if checked.spec.kind == "http" and self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)
        self._instances[checked.key] = checked

    def _remember(self, checked: CheckedInstance) -> None:
        """Keep the check with its registration, also on disk."""
        registration = self._agent.catalog.registrations.find(*checked.key)
        if registration is not None:
            registration.check = checked.saved()
            self._registered.add(checked.key)

    def restore_all(self) -> int:
        """Restore the checks of all registrations from disk, if still allowed. Returns the number of instances."""
        for registration in self._agent.catalog.registrations:
            if registration.check is None or registration.of_connection:
                continue
            try:
                checked = CheckedInstance.restored(registration.service, registration.instance, registration.check)
                if not checked.file:
                    self.validate(checked.spec)
            except BadCall as error:
                registration.check = None
                text = "%s of %s is not managed any more and has to beat by itself: %s"
                log.error(text, registration.instance.address, registration.service, error)
                continue
            self._add(checked, registered=False)
        return len(self._instances)

    def heard(self, service: ServiceKey, ip: str, port: int) -> bool:
        """A sign of life for a TTL check. False if the instance has no check."""
        checked = self._instances.get((service, ip, port))
        if checked is None:
            return False
        checked.last_heard = self._agent.clock.now()
        return True

    def forget(self, service: ServiceKey, ip: str, port: int) -> None:
        """The owner deregistered the instance. No effect if it has no check."""
        self._instances.pop((service, ip, port), None)
        self._registered.discard((service, ip, port))

    def _forget_deregistered(self) -> None:
        """However an owner deregistered an instance, no beat may register it again; nor if a connection has it now."""
        for key in list(self._registered):
            known = self._agent.catalog.registrations.find(*key)
            if known is None or known.of_connection:
                self.forget(*key)

    async def _run(self) -> None:
        async for now, gap in ticks(self._agent.clock, self._policy.tick):
            if gap:
                for checked in self:
                    checked.shift(gap, now)
            self._start_checks(now)
            self._start_beats(now)

    def _start_checks(self, now: float) -> None:
        due = [
            checked
            for key, checked in self._instances.items()
            if checked.due_at <= now and key not in self._checks and checked.phase != "leaving"
        ]
        running = [checked for checked, _ in self._checks.values()]
        for checked in startable(due, running, self._policy.max_checks):
            task = self._agent.supervisor.once(self._check(checked), name="check")
            self._checks[checked.key] = checked, task

    def _start_beats(self, now: float) -> None:
        for key, checked in self._instances.items():
            if key not in self._beats and checked.beats(now):
                self._beats[key] = self._agent.supervisor.once(self._beat(checked), name="beat")

    async def _check(self, checked: CheckedInstance) -> None:
        i, began = checked.instance, self._agent.clock.now()
        try:
            error = await self._run_check(checked)
            was_passing, now = checked.passing, self._agent.clock.now()
            action = checked.result(error, now, now - began)
            if checked.passing is not was_passing:
                state = "passes again" if checked.passing else f"fails, its beats stop: {error}"
                log.warning("the check of %s of %s %s", i.address, checked.service, state)
            if action == "deregister" and self._is_kept(checked) and checked.phase == "registered":
                log.warning("%s of %s failed too long: deregistered", i.address, checked.service)
                if checked.file:
                    checked.phase = "waiting"
                    self._registered.discard(checked.key)  # so that it is not forgotten
                await self._deregister(checked)
                if not checked.file:
                    self.forget(*checked.key)
        finally:
            self._checks.pop(checked.key, None)

    def _is_kept(self, checked: CheckedInstance) -> bool:
        """Whether it was neither deregistered nor replaced meanwhile."""
        return self._instances.get(checked.key) is checked

    async def _beat(self, checked: CheckedInstance) -> None:
        """A beat, or what the phase requires instead: so the writes about an instance do not overtake each other."""
        i = self._current(checked)
        try:
            if not self._is_kept(checked):
                return
            if checked.phase == "leaving":
                await self._leave(checked)
                return
            # an old value lives on while the upstream refuses the new one
            changed = checked.phase == "waiting" and checked.key in self._registered and i.ephemeral
            if checked.maintenance is None and (changed or checked.phase == "registered"):
                await self._agent.write(Beat(checked.service, i.ip, i.port, i.cluster, i.ephemeral, i))
            if checked.phase == "waiting":
                await self._register_declared(checked)
        except ProxyError as error:
            if checked.phase == "registered":
                log.info("a beat for %s of %s did not get through: %s", i.address, checked.service, error)
            elif not checked.refused:
                what = "registered" if checked.phase == "waiting" else "deregistered"
                log.warning("%s of %s cannot be %s yet: %s", i.address, checked.service, what, error)
            checked.refused = str(error) if checked.phase != "registered" else ""
        finally:
            self._beats.pop(checked.key, None)

    async def _register_declared(self, checked: CheckedInstance) -> None:
        i, before = checked.instance, self._agent.catalog.registrations.find(*checked.key)
        if before is not None and _kind(before.instance) != _kind(i):  # to servers, it is another instance
            self._registered.discard(checked.key)
            await self._agent.write(_deregistration(checked.service, before.instance))
        await self._agent.write(
            Register(checked.service, i if checked.maintenance is None else replace(i, enabled=False))
        )
        if self._is_kept(checked) and checked.phase == "waiting":
            log.info("registered %s of %s, as the service file %s declares", i.address, checked.service, checked.file)
            checked.phase, checked.refused = "registered", ""
            self._remember(checked)
            self._agent.registrations_changed(checked.service)

    async def _leave(self, checked: CheckedInstance) -> None:
        i = self._current(checked)
        self._registered.discard(checked.key)
        await self._agent.write(_deregistration(checked.service, i))
        log.info("deregistered %s of %s: no service file declares it any more", i.address, checked.service)
        if self._is_kept(checked):
            self.forget(*checked.key)

    async def _deregister(self, checked: CheckedInstance) -> None:
        i = self._current(checked)
        try:
            await self._agent.write(_deregistration(checked.service, i))
        except ProxyError as error:
            log.warning("could not deregister %s of %s: %s", i.address, checked.service, error)

    def _current(self, checked: CheckedInstance) -> Instance:
        """The instance with all modifications since it was registered."""
        registration = self._agent.catalog.registrations.find(*checked.key)
        return checked.instance if registration is None else registration.instance

    async def _run_check(self, checked: CheckedInstance) -> str:
        """The error, '' if the check passes."""
        spec = checked.spec
        if spec.kind == "none":
            return ""
        if spec.kind == "ttl":
            return checked.expired(self._agent.clock.now())
        try:
            # One limit for the whole check, because a server that sends a byte now and then is not healthy.
            return await asyncio.wait_for(self._http(spec) if spec.kind == "http" else self._tcp(spec), spec.timeout)
        except asyncio.TimeoutError:
            return f"no answer in {spec.timeout:g} s"
        except Exception as error:  # clients choose the target freely, so any exception is a failure of the check
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
        return iter(list(self._instances.values()))

    def __len__(self) -> int:
        return len(self._instances)


def _kind(instance: Instance) -> tuple[str, bool]:
    return instance.cluster, instance.ephemeral


def _deregistration(service: ServiceKey, i: Instance) -> Deregister:
    return Deregister(service, i.ip, i.port, i.cluster, i.ephemeral)

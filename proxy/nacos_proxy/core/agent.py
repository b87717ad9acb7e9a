"""Joins what this host knows (catalog) and where the truth lives (registry); alone changes the catalog.

Not for: HTTP, freshness rules, timers. Four walks go through here: read, fetch, write, commit. On one event loop a
stretch without `await` is a transaction; `_commit` is one, so followers see every change once and in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.circuit_breaker import Breaker
from nacos_proxy.catalog.freshness import CacheControl, CacheResult, Freshness
from nacos_proxy.catalog.hub import (
    Filter,
    Hub,
    Mailbox,
    Notice,
)
from nacos_proxy.catalog.registrations import Registration, Registrations
from nacos_proxy.core.counts import Counts
from nacos_proxy.core.outage import Outage, Written
from nacos_proxy.core.patch import Patches
from nacos_proxy.core.queries import Queries
from nacos_proxy.core.reregistration import Reregistration
from nacos_proxy.core.watch import Watches
from nacos_proxy.model.calls import (
    BEAT_OK,
    Beat,
    BeatResult,
    Call,
    Deregister,
    Fetch,
    GetInstance,
    Register,
    Update,
    Write,
)
from nacos_proxy.model.errors import (
    ABSENT,
    BadCall,
    Garbled,
    NothingKnown,
    ProxyError,
    Reason,
    Refused,
    TooSlow,
    Unreachable,
    away,
    no_right,
    telling,
)
from nacos_proxy.model.services import (
    Change,
    Instance,
    ServiceKey,
    Snapshot,
    Source,
)
from nacos_proxy.runtime import (
    Clock,
    Supervisor,
    at_most,
    outlive,
    stop,
)
from nacos_proxy.upstream.contract import Registry

R = TypeVar("R")

log = logging.getLogger("nacos_proxy.agent")

Follower = Callable[[Change], object]


@dataclass(frozen=True, slots=True)
class AgentPolicy:
    """Seconds. A cold read waits at most `cold_wait`: legacy clients give up after 3 s (nacos-http.md 10.1).

    `strict`: a service that the upstream refuses to show for want of rights is forgotten, and `on_barred` told.
    `outage_writes`: while the upstream is away, writes about ephemeral instances are accepted here.
    """

    cold_wait: float = 2.5
    suspicious_for: float = 30.0
    strict: bool = False
    outage_writes: bool = False


@dataclass(slots=True)
class Catalog:
    """The parts of what this host knows; pure, changed by the agent alone."""

    cache: Cache
    hub: Hub
    registrations: Registrations
    breaker: Breaker


class Agent:
    """Reads, writes and watches on behalf of clients. `checks` says whether Nacos's parameter check applies now."""

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        clock: Clock,
        policy: AgentPolicy,
        supervisor: Supervisor | None = None,
        checks: Callable[[], bool] = lambda: True,
    ) -> None:
        self.registry = registry
        self.supervisor = supervisor or Supervisor(clock)
        self.catalog = catalog
        self.clock = clock
        self.counts = Counts()
        self.on_recovery: list[Callable[[], None]] = []
        self.on_registration: list[Callable[[], None]] = []
        self.on_barred: list[Callable[[ServiceKey, ProxyError], None]] = []
        self._policy = policy
        self._followers: dict[str, Follower] = {}
        self.fetching: dict[ServiceKey, asyncio.Task[None]] = {}
        self._asking = Queries(catalog.cache, self, clock)
        self._watching = Watches(catalog.cache, catalog.hub, lambda key: self.read(key), clock, strict=policy.strict)
        self._patches = Patches(catalog.registrations, self)
        self._reregistration = Reregistration(catalog.registrations, self, self._took_back, clock, self.supervisor)
        self.outage = Outage(
            self, catalog.registrations, catalog.cache, catalog.breaker, self._commit, self.counts, clock,
            writes=policy.outage_writes, checks=checks,
        )  # fmt: skip
        self._suspicious_until = 0.0
        self.confirm_until = 0.0  # till then what is from disk waits to be confirmed: a kill lost the last writes

    # read

    async def read(self, key: ServiceKey, wants: CacheControl = CacheControl()) -> CacheResult:  # noqa: B008 - a frozen value
        """What is known of a service, as fresh as `wants` asks. Raises `NothingKnown` or what the upstream refused."""
        cache, now = self.catalog.cache, self.clock.now()
        self.touch(key, now)
        look = cache.lookup(key, now)
        if look.from_disk and look.error is None and now < self.confirm_until:
            await self._wait_for(key, self.confirm_until - now)
            look = replace(found := cache.lookup(key, self.clock.now()), fetched=not found.from_disk)
        if wants.satisfied_by(look):
            if look.stale:
                self._refresh_behind(key, now)
            Counts.add(self.counts.reads, "stale" if look.stale else "miss" if look.fetched else "hit")
            return self._explained(look)
        if not self.catalog.breaker.up and look.freshness in (Freshness.FRESH, Freshness.STALE):
            self._refresh_behind(key, now)  # who has a snapshot never waits for an upstream that is down
            return self._settle_for(look)
        await self._wait_for(key, self._policy.cold_wait)
        look = replace(cache.lookup(key, self.clock.now()), fetched=True)
        if look.freshness in (Freshness.MISSING, Freshness.EXPIRED):
            return self._settle_for(look)
        Counts.add(self.counts.reads, "stale" if look.stale else "miss")
        return look

    def touch(self, key: ServiceKey, now: float) -> None:
        """The service was read: it is kept fresh for a while."""
        self.catalog.cache.touch(key, now)

    def confirmed(self, shown: Snapshot, now: float) -> tuple[float, float] | None:
        """As the cache says; what is told to be fresh still counts as read."""
        if (span := self.catalog.cache.confirmed(shown, now)) is not None:
            self.touch(shown.key, now)
        return span

    def _explained(self, look: CacheResult) -> CacheResult:
        """A stale answer says that the upstream is down, also before it was asked for this very service."""
        breaker = self.catalog.breaker
        if breaker.up or look.error is not None or not look.stale:
            return look
        return replace(look, error=Unreachable(breaker.reason, arrived=False))

    def _settle_for(self, look: CacheResult) -> CacheResult:
        if look.freshness in (Freshness.STALE, Freshness.FRESH):
            Counts.add(self.counts.reads, "stale")
            return self._explained(look)
        Counts.add(self.counts.reads, "none")
        error = look.error
        if isinstance(error, Refused) and error.status < 500:
            raise error
        why = error or self.catalog.breaker.reason or "the upstream has not answered in time"
        raise NothingKnown(f"nothing is known of this service and the upstream cannot be asked: {why}") from error

    def _refresh_behind(self, key: ServiceKey, now: float) -> None:
        if self.catalog.breaker.allows(now) and self.catalog.cache.may_refresh(key, now):
            self.refresh(key)

    async def _wait_for(self, key: ServiceKey, longest: float) -> None:
        if key not in self.fetching and not self.catalog.breaker.allows(self.clock.now()):
            return
        await at_most(self.clock, longest, self.fetching.get(key) or self._start(key, "poll"))

    async def instance(self, call: GetInstance) -> tuple[Instance, CacheResult | None]:
        """One instance, from the snapshot where that has it, else from the registry (disabled ones, unknown ones)."""
        look = await self.read(call.service)
        assert look.snapshot is not None
        known = look.snapshot.find(call.ip, call.port, call.cluster)
        if known is not None:
            return known, look
        if not self.catalog.breaker.up:
            raise Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
        return await self.ask(call), None

    async def ask(self, call: Call[R]) -> R:
        """Any call that reads: the upstream's answer, in agreement with what it accepted from here."""
        return await self._asking.ask(call)

    # fetch

    def refresh(self, key: ServiceKey, source: Source = "poll") -> None:
        """Ask the upstream for a service now, unless that is under way."""
        if key not in self.fetching:
            self._start(key, source)

    def _start(self, key: ServiceKey, source: Source) -> asyncio.Task[None]:
        self.catalog.breaker.probing(self.clock.now())
        self.catalog.cache.begin_fetch(key)
        task = self.supervisor.once(self._fetch(key, source), name="fetch")
        self.fetching[key] = task
        return task

    async def _fetch(self, key: ServiceKey, source: Source) -> None:
        asked = self.clock.now()
        try:
            word = await self.send(Fetch(key))
            doubtful = self.suspicious
            missed = await self._reregistration.lost(word, doubtful=doubtful)
        except ProxyError as error:
            barred = self._policy.strict and no_right(error)
            self.catalog.cache.reject(key, error, self.clock.now(), barred=barred)
            Counts.add(self.counts.fetches, type(error).__name__)
            for listener in self.on_barred if barred else ():
                self.supervisor.call("what is refused", listener, key, error)
            return
        except Exception as error:  # a bug of ours must not be the end of a service's polling
            self.catalog.cache.reject(key, Garbled(f"{type(error).__name__} in the proxy"), self.clock.now())
            raise
        finally:
            self.fetching.pop(key, None)
        change = self.catalog.cache.accept(
            word, self.clock.now(), source, asked=asked, suspicious=doubtful, missed=missed, now_ms=self._wall_ms()
        )
        Counts.add(self.counts.fetches, "ok")
        self._commit(change)

    # write

    async def send(self, call: Call[R]) -> R:
        """Any call, straight to the registry; its outcome tells whether the upstream is up."""
        try:
            result = await self.registry.send(call)
        except ProxyError as error:
            self._outcome(call, error)
            raise
        self._outcome(call, None)
        return result

    async def write(self, call: Write[R]) -> Written[R]:
        """A write: the upstream's own answer, visible to the next read here. Goes on if the caller goes away.

        A beat of what is registered here is answered here where no answer comes within `cold_wait`.
        """
        if isinstance(call, Update) and call.partial:
            return await self._patches.patch(call)
        answered = asyncio.Event()
        going = outlive(self._write(call, answered), name=type(call).__name__)
        if isinstance(call, Beat):
            await at_most(self.clock, self._policy.cold_wait, going)
            if not going.done() and (local := self.outage.beaten(call)) is not None:
                answered.set()
                return cast("Written[R]", local)
        outcome = await going
        if isinstance(outcome, ProxyError):
            raise outcome
        return outcome

    async def _write(self, call: Write[Any], answered: asyncio.Event) -> Written[Any] | ProxyError:
        breaker, now = self.catalog.breaker, self.clock.now()
        if (local := await self.outage.first(call)) is None:
            return await self._forward(call, answered)
        # A beat may get through where other calls do not, so it goes on as a probe.
        if isinstance(call, Beat) and not breaker.up and breaker.allows(now):
            breaker.probing(now)
            answered.set()
            self.supervisor.once(self._forward(call, answered), name="beat behind its answer")
        return local

    async def _forward(self, call: Write[Any], answered: asyncio.Event) -> Written[Any] | ProxyError:
        shows = call
        try:
            if isinstance(call, Beat) and not await self._brings(call):
                shows = replace(call, full=None)
            known = isinstance(call, Beat) and self._registered(call)
            with self._reregistration.leaving(call) if isinstance(call, Deregister) else nullcontext():
                result: Any = await self.send(call)
            written = Written(result)
            if isinstance(call, Beat) and (healed := await self._reregistration.heal(call, written.result)):
                written = Written(healed, "healed")
        except ProxyError as error:
            Counts.add(self.counts.writes, type(error).__name__)
            if getattr(error, "arrived", False):
                self.catalog.cache.invalidate(call.service, self.clock.now())
            return error if answered.is_set() else await self.outage.instead(call, error) or error
        Counts.add(self.counts.writes, "ok")
        if not known or self._registered(call):  # a late beat brings nothing back that was deregistered meanwhile
            self.supervisor.call("write", self.took, call, written.result, shows=shows)  # the upstream has accepted it
        return written

    def _registered(self, call: Write[Any]) -> bool:
        return isinstance(call, Beat) and self.catalog.registrations.find(call.service, call.ip, call.port) is not None

    async def _brings(self, beat: Beat) -> bool:
        """Whether a full beat registers an instance, which is not so where somebody only disabled it."""
        if beat.full is None or self._registered(beat):
            return False
        try:
            await self.ask(GetInstance(beat.service, beat.ip, beat.port, beat.cluster))
        except ProxyError as error:
            return isinstance(error, Refused) and error.reason in ABSENT
        return False

    def took(self, call: Write[Any], result: object, *, shows: Write[Any] | None = None, local: bool = False) -> None:
        """A write was accepted, `local` here alone: it is remembered, and shown as `shows` where that is given."""
        now = self.clock.now()
        if isinstance(result, BeatResult) and result.code != BEAT_OK:
            return
        if isinstance(call, Register | Deregister | Update | Beat) and self.catalog.registrations.wrote(call, now):
            self.owned(call.service)
        self._commit(self.catalog.cache.wrote(shows or call, now, self._wall_ms(), local=local))
        if isinstance(call, Update) and (hidden := self.catalog.registrations.find(call.service, call.ip, call.port)):
            if hidden.instance.enabled and hidden.instance.cluster == call.cluster and hidden.alive(now):
                self.foresee(call.service, hidden.instance)

    def foresee(self, service: ServiceKey, instance: Instance) -> None:
        """The upstream will list this instance, which no list shows while it is disabled; what it lists then counts."""
        entry, i = self.catalog.cache.get(service), instance
        if entry is not None and entry.visible is not None and entry.visible.find(i.ip, i.port) is None:
            as_if = Beat(service, i.ip, i.port, i.cluster, i.ephemeral, full=i)  # has no effect on what is listed
            self._commit(self.catalog.cache.wrote(as_if, self.clock.now(), self._wall_ms()))

    def owned(self, service: ServiceKey) -> None:
        """What is remembered of a service's instances has changed."""
        self.catalog.cache.set_local_registrations(service, self.catalog.registrations.count(service), self.clock.now())
        for listener in self.on_registration:
            self.supervisor.call("registrations", listener)

    def _took_back(self, call: Register) -> None:
        self.counts.healed += 1
        self.suspect()  # what else has it lost?
        self._commit(self.catalog.cache.wrote(call, self.clock.now(), self._wall_ms()))

    async def renew(self, registration: Registration) -> bool:
        """Make sure that the upstream still has it; True where it had to be registered again."""
        return await self._reregistration.renew(registration)

    async def modify(self, call: Update) -> Written[Instance]:
        """Change only what the call names, named metadata by key. The result is the instance as it will be shown."""
        return await self._patches.modify(call)

    # watch

    async def watch(
        self, interest: Filter, wake: Callable[[], None], after: str = "", client: str = ""
    ) -> tuple[Mailbox, list[Snapshot]]:
        """As `Watches.watch`."""
        return await self._watching.watch(interest, wake, after, client)

    def unwatch(self, mailbox: Mailbox) -> bool:
        """Ends what `watch` began; harmless when done before. Whether it was not."""
        return self._watching.unwatch(mailbox)

    # commit

    def follow(self, name: str, follower: Follower) -> None:
        """Call `follower` for each change, after those that followed before it. It must not await."""
        self._followers[name] = follower

    def _commit(self, change: Change | None) -> None:
        if change is None:
            return
        Counts.add(self.counts.changes, change.source)
        for name, follower in self._followers.items():
            self.supervisor.call(name, follower, change)

    def _outcome(self, call: Call[Any], error: ProxyError | None) -> None:
        breaker, now = self.catalog.breaker, self.clock.now()
        if not telling(error, fetching=isinstance(call, Fetch)):
            return
        if away(error):
            self.suspect()
            if breaker.failed(now, str(error), slow=isinstance(error, TooSlow)):
                log.warning("upstream lost: %s", error)
                self.catalog.hub.publish(Notice("down", str(error)))
        elif not isinstance(error, BadCall) and breaker.succeeded(now):
            log.warning("upstream is back")
            self.suspect()
            self.catalog.cache.recovered(now)
            self.catalog.hub.publish(Notice("up", ""))
            for listener in self.on_recovery:
                self.supervisor.call("recovery", listener)

    @property
    def suspicious(self) -> bool:
        """Whether lists that shrink a lot are held back."""
        return self.clock.now() < self._suspicious_until

    def suspect(self) -> None:
        """The upstream may have lost its memory: lists that shrink a lot are held back for a while."""
        self._suspicious_until = self.clock.now() + self._policy.suspicious_for

    def restored(self, confirm_within: float) -> None:
        """The cache was filled from disk; for so many seconds reads of it wait for the upstream to confirm it."""
        self.suspect()
        self.confirm_until = self.clock.now() + confirm_within

    def stood_still(self, gap: float) -> None:
        """For so long this process did not run: nobody could be heard, and the upstream heard of nobody from here."""
        self.catalog.registrations.shift(gap, self.clock.now())
        self.suspect()

    def _wall_ms(self) -> int:
        return int(self.clock.wall() * 1000)

    async def close(self, tasks: Iterable[asyncio.Task[Any]] = ()) -> None:
        """Ends what is under way and the registry."""
        await self._reregistration.close()
        for task in (*self.fetching.values(), *tasks):
            await stop(task)
        await self.registry.close()

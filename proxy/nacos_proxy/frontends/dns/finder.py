"""Finds what a question is answered with, in the cache, or by a read as any other reader would make it.

What cannot be found out is SERVFAIL and never NXDOMAIN: HAProxy drops its servers after an NXDOMAIN and keeps them
after a SERVFAIL (decision 0024).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import dns.name
import dns.rcode
from cachetools import LRUCache
from dns.rdatatype import AAAA, ANY, PTR, SRV, TXT, A, RdataType

from nacos_proxy.catalog.freshness import CacheResult, Freshness
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.errors import ABSENT, ProxyError, Refused, is_denied
from nacos_proxy.model.services import DEFAULT_GROUP, DEFAULT_NAMESPACE, ServiceKey, Snapshot
from nacos_proxy.model.views import Preference, View
from nacos_proxy.runtime import in_turns
from nacos_proxy.wire.dns import records
from nacos_proxy.wire.dns.messages import REFUSED, SERVFAIL, Answer
from nacos_proxy.wire.dns.names import (
    Address,
    Apex,
    Between,
    Index,
    Names,
    OfAddress,
    OfService,
    Outside,
    Question,
    service_name,
)
from nacos_proxy.wire.dns.records import Record

log = logging.getLogger("nacos_proxy.dns")

MAX_RECORDS = 1000  # of one answer: as many as TCP carries
MAX_VALID = 5.0  # seconds for which an answer is repeated
STALE_VALID = 1.0  # the same for a stale one: then the cache may have a fresh one
MIN_INDEX = 20_000  # services; a larger index is made anew when it has become twice as large as the cache
MAX_MADE = 50_000  # records that are kept, to be written again into other messages
SCAN_COST = 10  # a reverse lookup looks through the whole cache: it counts as that many reads
SCAN_TURN = 200  # services that it looks at in a row

Outcome = Literal["", "hit", "stale", "none"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FinderPolicy:
    """`zones`: names that we make up are in the first one. `ttl`: the longest TTL, in seconds.

    `namespace`, `group`: those of short names. `prefer`: instances that are answered first.
    """

    zones: tuple[dns.name.Name, ...]
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP
    aliases: Mapping[str, ServiceKey] = field(default_factory=lambda: {})
    ttl: int = 5
    prefer: Preference | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An answer; its records are sent in any order within each of the `tiers`.

    It may be repeated for `valid_for` seconds, while none of the `keys` changes. `outcome`: how it counts as a read of
    the cache; '' if it says nothing about a service.
    """

    answer: Answer
    tiers: tuple[Sequence[Record], ...] = ()
    valid_for: float = 0.0
    keys: tuple[ServiceKey, ...] = ()
    outcome: Outcome = ""


class Finder:
    """`rng()` draws from [0, 1): which records are left out if there are more than `MAX_RECORDS`."""

    def __init__(self, agent: Agent, policy: FinderPolicy, rng: Callable[[], float]) -> None:
        self._agent = agent
        self._cache = agent.catalog.cache
        self._policy = policy
        self._rng = rng
        self._names = self._named()
        self._made: LRUCache[Hashable, tuple[Snapshot, tuple[Sequence[Record], ...]]] = LRUCache(MAX_MADE, _size)
        self._clashes: LRUCache[tuple[ServiceKey, ...], bool] = LRUCache(100)

    def ask(self, name: dns.name.Name) -> Question:
        return self._names.read(name)

    def restored(self) -> None:
        """The cache was filled from disk."""
        self._names = self._named()

    def changed(self, key: ServiceKey) -> None:
        """A service has changed, so it has or had instances."""
        self._names.index.add(key)
        if len(self._names.index) > max(MIN_INDEX, 2 * len(self._cache)):
            self._names = self._named()

    def _named(self) -> Names:
        policy, index = self._policy, Index()
        for entry in self._cache.entries():
            if entry.ever_nonempty:
                index.add(entry.key)
        return Names(policy.zones, policy.namespace, policy.group, policy.aliases, index)

    def at_once(self, question: Question, rdtype: RdataType) -> Found | None:
        """The answer, if no service has to be read for it, else None."""
        zone = question.zone
        match question.asked:
            case OfService() as asked:
                return self._of_service(asked, zone, rdtype, fresh=True)
            case OfAddress(address, reverse=False):
                record = records.address_record(address)
                return _fixed(zone, [record] if rdtype in (record.rdtype, ANY) else [], self._policy.ttl)
            case OfAddress():
                return None if rdtype in (PTR, ANY) else Found(REFUSED, valid_for=MAX_VALID)
            case Apex():
                return _fixed(zone, records.zone_records(zone, rdtype), self._policy.ttl)
            case Between():
                return _fixed(zone, [], 0)
            case Outside():
                return Found(REFUSED, valid_for=MAX_VALID)
            case _:
                return Found(Answer(dns.rcode.NXDOMAIN, zone=zone), valid_for=MAX_VALID)

    def unknown(self, question: Question) -> int:
        """How many services may be asked of the upstream only because of this question."""
        if not isinstance(question.asked, OfService):
            return SCAN_COST
        now = self._agent.clock.now()
        return sum(
            key not in self._names.index or _is_missing(self._cache.lookup(key, now)) for key in question.asked.services
        )

    async def read(self, question: Question, rdtype: RdataType) -> Found:
        """The answer, after its services were read."""
        if isinstance(question.asked, OfAddress):
            return await self._pointers(question.asked.address)
        assert isinstance(question.asked, OfService)
        outcomes = await asyncio.gather(*map(self._error_of, question.asked.services))
        return self.known(question, rdtype) or _failed([error for error in outcomes if error], question)

    async def _error_of(self, key: ServiceKey) -> ProxyError | None:
        try:
            await self._agent.read(key)
        except ProxyError as error:
            return error
        return None

    def known(self, question: Question, rdtype: RdataType) -> Found | None:
        """The answer from what is known now, fresh or stale; None if nothing is known."""
        asked = question.asked
        return self._of_service(asked, question.zone, rdtype, fresh=False) if isinstance(asked, OfService) else None

    def _of_service(self, asked: OfService, zone: dns.name.Name, rdtype: RdataType, *, fresh: bool) -> Found | None:
        if asked.clashing:
            self._log_clash(asked.services)
            return Found(REFUSED, valid_for=MAX_VALID)
        now, valid_for = self._agent.clock.now(), MAX_VALID
        outcome: Outcome = "hit"
        for key in asked.services:
            result = self._cache.lookup(key, now)
            if result.snapshot is None or _is_missing(result) or (fresh and result.stale):
                return None
            outcome = "stale" if result.stale else outcome
            if self._exists(key, result.snapshot):
                self._agent.confirmed(result.snapshot, now)  # it counts as read
                ttl, valid_for = self._lifetime(result)
                tiers = self._tiers(asked, result.snapshot, zone, rdtype)
                return Found(Answer(ttl=ttl, zone=zone), tiers, valid_for, (key,), outcome)
            if result.stale and (result.error is not None or not self._agent.catalog.breaker.up):
                return None  # it may exist by now
            valid_for = min(valid_for, max(result.ttl, STALE_VALID))
        rcode = dns.rcode.NOERROR if asked.between else dns.rcode.NXDOMAIN
        return Found(Answer(rcode, zone=zone), (), valid_for, asked.services, outcome)

    def _exists(self, key: ServiceKey, snapshot: Snapshot) -> bool:
        return bool(snapshot.instances) or key in self._names.index

    def _lifetime(self, result: CacheResult) -> tuple[int, float]:
        """The TTL, and how long the answer may be repeated, so that both together do not outlast the freshness."""
        if result.stale:
            return min(self._policy.ttl, 1), STALE_VALID
        ttl = min(self._policy.ttl, max(1, int(result.ttl)))
        return ttl, min(MAX_VALID, max(STALE_VALID, result.ttl - ttl))

    def _tiers(
        self, asked: OfService, snapshot: Snapshot, zone: dns.name.Name, rdtype: RdataType
    ) -> tuple[Sequence[Record], ...]:
        place = snapshot.key, asked.selector, rdtype, zone
        of, tiers = self._made.get(place, (None, ()))
        if of is not snapshot:
            tiers = self._make(asked, snapshot, zone, rdtype)
            self._made[place] = snapshot, tiers
        return tiers

    def _make(
        self, asked: OfService, snapshot: Snapshot, zone: dns.name.Name, rdtype: RdataType
    ) -> tuple[Sequence[Record], ...]:
        hosts = View(selector=asked.selector, prefer=self._policy.prefer).tiers(snapshot)
        tiers = [found for tier in hosts if (found := self._some(records.carried(tier)))]
        if rdtype == SRV:
            return tuple(filter(None, records.service_records(tiers, zone)))
        # ANY: one type is enough (RFC 8482 4.1)
        near = tiers[0] if tiers else []
        if rdtype in (A, AAAA, ANY):
            return (records.address_records(near, A if rdtype == ANY else rdtype),)
        return (records.text_records(near),) if rdtype == TXT else ()

    def _some(self, hosts: list[T]) -> list[T]:
        if len(hosts) <= MAX_RECORDS:
            return hosts
        first = int(self._rng() * len(hosts))
        return [*hosts[first:], *hosts[:first]][:MAX_RECORDS]

    def _log_clash(self, services: tuple[ServiceKey, ...]) -> None:
        if services not in self._clashes:
            self._clashes[services] = True
            names = ", ".join(map(str, services))
            log.warning("DNS cannot tell these services apart, so their name is refused: %s; give them aliases", names)

    async def _pointers(self, address: Address) -> Found:
        """The services with an instance at an address. We are no authority for others."""
        text, zone, names = str(address), self._policy.zones[0], list[dns.name.Name]()
        async for entry in in_turns(list(self._cache.entries()), SCAN_TURN):
            if entry.visible is not None and any(plain_ip(i.ip) == text for i in entry.visible.instances):
                if (name := service_name(entry.key, zone)) is not None:
                    names.append(name)
        if not names:
            return Found(REFUSED, valid_for=STALE_VALID)
        pointers = records.pointer_records(names[:MAX_RECORDS])
        return Found(Answer(ttl=min(self._policy.ttl, 1), zone=zone), (pointers,), STALE_VALID)


def _size(made: tuple[Snapshot, tuple[Sequence[Record], ...]]) -> int:
    return 1 + sum(map(len, made[1]))


def _fixed(zone: dns.name.Name, found: Sequence[Record], ttl: int) -> Found:
    return Found(Answer(ttl=ttl, zone=zone), (found,) if found else (), MAX_VALID)


def _is_missing(result: CacheResult) -> bool:
    return result.snapshot is None or result.freshness is Freshness.EXPIRED


def _failed(errors: Sequence[ProxyError], question: Question) -> Found:
    """What the errors of all reads of a question mean."""
    if errors and all(isinstance(error, Refused) and error.reason in ABSENT for error in errors):
        return Found(Answer(dns.rcode.NXDOMAIN, zone=question.zone))
    if any(is_denied(error) for error in errors):
        return Found(REFUSED)
    return Found(SERVFAIL)

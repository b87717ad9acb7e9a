"""Answers queries: at once from what is fresh in the cache, or by a task that reads it, of which there are not many.

How many tasks run, and how many reads of unknown services they may make, is bounded for each client and for all.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import dns.rcode

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.frontends.dns.budget import Budget
from nacos_proxy.frontends.dns.finder import Finder, Found
from nacos_proxy.frontends.dns.prepared import PreparedAnswer, PreparedAnswers
from nacos_proxy.model.histogram import Histogram
from nacos_proxy.model.services import Change, ServiceKey
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.wire.dns import messages
from nacos_proxy.wire.dns.messages import SERVFAIL, Faulty, Query
from nacos_proxy.wire.dns.records import Record

VARIANTS = 8  # orders in which the records of an answer are sent

Reply = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class ResponderPolicy:
    """`max_waiting`: tasks at the same time. `reads_per_client`, `reads`: a second, of services that are unknown here;
    `burst` seconds of them can be saved up. `prepared`, `prepared_unknown`: bytes of prepared answers.
    """

    max_waiting: int = 1000
    reads_per_client: float = 100.0
    reads: float = 200.0
    burst: float = 5.0
    prepared: int = 16 << 20
    prepared_unknown: int = 1 << 20


@dataclass(slots=True)
class Counts:
    """Answers by code, of which `repeated` and `truncated`; queries without an answer, by reason.

    `reads`: those of them that are reads of the cache, by outcome; the agent counts others. `waited`: how long those
    took that waited for a read, by code.
    """

    answers: Counter[str] = field(default_factory=lambda: Counter())
    reads: Counter[str] = field(default_factory=lambda: Counter())
    waited: defaultdict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    dropped: Counter[str] = field(default_factory=lambda: Counter())
    repeated: int = 0
    truncated: int = 0


class Repeatable:
    """The prepared answers for UDP sockets that send at most `limit` bytes."""

    def __init__(self, limit: int, policy: ResponderPolicy) -> None:
        self.limit = limit
        self.known = PreparedAnswers(policy.prepared)
        self.unknown = PreparedAnswers(policy.prepared_unknown)

    def get(self, query: bytes) -> PreparedAnswer | None:
        """By the bytes of the query behind its id."""
        return self.known.get(query) or self.unknown.get(query)

    def forget(self, key: ServiceKey) -> None:
        self.known.forget(key)
        self.unknown.forget(key)

    def __len__(self) -> int:
        return len(self.known) + len(self.unknown)


class Responder:
    """`shuffle` puts a list into another order, in place."""

    def __init__(
        self,
        finder: Finder,
        policy: ResponderPolicy,
        clock: Clock,
        supervisor: Supervisor,
        shuffle: Callable[[list[Record]], None] = random.shuffle,
    ) -> None:
        self.counts = Counts()
        self.waiting: Shares[str] = Shares(policy.max_waiting)
        self.tables: dict[int, Repeatable] = {}
        self._finder = finder
        self._policy = policy
        self._clock = clock
        self._supervisor = supervisor
        self._shuffle = shuffle
        self._budget = Budget(policy.reads_per_client, policy.reads, policy.burst)

    def repeatable(self, limit: int) -> Repeatable:
        return self.tables.setdefault(limit, Repeatable(limit, self._policy))

    def restored(self) -> None:
        """The cache was filled from disk."""
        self._finder.restored()

    def changed(self, change: Change) -> None:
        """Follows the changes of services."""
        self._finder.changed(change.key)
        self.forget(change.key)

    def forget(self, key: ServiceKey) -> None:
        for table in self.tables.values():
            table.forget(key)

    def answer(self, packet: bytes, client: str, reply: Reply, store: Repeatable | None = None) -> bool:
        """Calls `reply` with the answer once, now or later; returns False if there will be none.

        `store`: the query came by UDP, and its answer may be repeated from there.
        """
        try:
            query = messages.read(packet)
        except Faulty as faulty:
            if faulty.rcode is None:
                self.counts.dropped["no query"] += 1
                return False
            self.counts.answers[dns.rcode.to_text(faulty.rcode)] += 1
            reply(messages.refusal(packet, faulty))
            return True
        question = self._finder.ask(query.name)
        found = self._finder.at_once(question, query.rdtype)
        if found is None and not self._may_wait(client, self._finder.unknown(question)):
            self.counts.dropped["budget"] += 1
            found = self._finder.known(question, query.rdtype) or Found(SERVFAIL, outcome="none")
        if found is not None:
            self.counts.reads[found.outcome] += 1
            self._send(packet, query, found, reply, store)
            return True
        began = self._clock.now()

        async def wait() -> None:
            found = Found(SERVFAIL)
            try:
                found = await self._finder.read(question, query.rdtype)
            finally:
                self.waiting.give_back(client)
                self.counts.waited[dns.rcode.to_text(found.answer.rcode)].add(self._clock.now() - began)
                self._send(packet, query, found, reply, store)

        self.waiting.take(client)
        self._supervisor.once(wait(), name="dns")
        return True

    def _may_wait(self, client: str, reads: int) -> bool:
        room = self.waiting.room(client)
        return room and (not reads or self._budget.take(client, reads, self._clock.now()))

    def _send(self, packet: bytes, query: Query, found: Found, reply: Reply, store: Repeatable | None) -> None:
        limit = messages.MAX_TCP if store is None else min(store.limit, query.payload)
        code, counts = dns.rcode.to_text(found.answer.rcode), self.counts
        tiers = [self._shuffled(tier) for tier in found.tiers]
        message, truncated = _write(query, found, tiers, limit)
        counts.answers[code] += 1
        counts.truncated += truncated
        reply(message)
        if store is None or query.optioned or not found.valid_for:  # a cookie differs in each query
            return
        turns = min(VARIANTS, max((len(tier) for tier in tiers), default=1))
        turned = ([_turned(tier, turn, turns) for tier in tiers] for turn in range(1, turns))
        variants = [message[2:], *(_write(query, found, tiers, limit)[0][2:] for tiers in turned)]
        table = store.known if found.answer.rcode == dns.rcode.NOERROR and found.keys else store.unknown
        table.add(packet[2:], variants, code, self._clock.now() + found.valid_for, found.keys, found.outcome)

    def _shuffled(self, tier: Sequence[Record]) -> list[Record]:
        records = list(tier)
        self._shuffle(records)
        return records


def _turned(tier: Sequence[Record], turn: int, turns: int) -> list[Record]:
    """The records in a circle, so that each comes first in one of the turns if there are enough turns."""
    begin = turn * len(tier) // turns
    return [*tier[begin:], *tier[:begin]]


def _write(query: Query, found: Found, tiers: Sequence[Sequence[Record]], limit: int) -> tuple[bytes, bool]:
    return messages.write(query, replace(found.answer, records=[r for tier in tiers for r in tier]), limit)

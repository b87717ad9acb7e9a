"""Answers that were given once and may be repeated, by the bytes of the query behind its id. Pure.

Rules:
1. An answer is dropped when a service that it depends on changes, and not repeated after `valid_until`.
2. It has several variants, with the records in other orders, which are sent in turns.
3. The table is bounded in bytes; the oldest go first. Answers about anything but known services have a table of their
   own, so that invented names evict nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nacos_proxy.model.services import ServiceKey

OVERHEAD = 600  # bytes of an entry beside its content


class PreparedAnswer:
    """The `variants` are messages without their id. `code` and `outcome` name the answer in metrics."""

    __slots__ = ("code", "cost", "keys", "outcome", "turn", "valid_until", "variants")

    def __init__(
        self,
        variants: Sequence[bytes],
        code: str,
        outcome: str,
        valid_until: float,
        keys: Sequence[ServiceKey],
        cost: int,
    ) -> None:
        self.variants = variants
        self.code = code
        self.outcome = outcome
        self.valid_until = valid_until
        self.keys = keys
        self.cost = cost
        self.turn = 0

    def next(self) -> bytes:
        self.turn = turn = (self.turn + 1) % len(self.variants)
        return self.variants[turn]


class PreparedAnswers:
    """`get` is that of a dict; what it returns may have expired."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._answers: dict[bytes, PreparedAnswer] = {}
        self._queries: dict[ServiceKey, set[bytes]] = {}
        self.get = self._answers.get

    def add(
        self,
        query: bytes,
        variants: Sequence[bytes],
        code: str,
        valid_until: float,
        keys: Iterable[ServiceKey] = (),
        outcome: str = "",
    ) -> None:
        """The answers to a query (without its id), which depend on the services `keys`."""
        self._drop(query)
        cost = OVERHEAD + len(query) + sum(map(len, variants))
        self._answers[query] = PreparedAnswer(variants, code, outcome, valid_until, tuple(keys), cost)
        self.bytes += cost
        for key in self._answers[query].keys:
            self._queries.setdefault(key, set()).add(query)
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def forget(self, key: ServiceKey) -> None:
        """The service has changed."""
        for query in tuple(self._queries.get(key, ())):
            self._drop(query)

    def _drop(self, query: bytes) -> None:
        answer = self._answers.pop(query, None)
        if answer is None:
            return
        self.bytes -= answer.cost
        for key in answer.keys:
            queries = self._queries[key]
            queries.discard(query)
            if not queries:
                del self._queries[key]

    def __len__(self) -> int:
        return len(self._answers)

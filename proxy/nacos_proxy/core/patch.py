"""Changes only what a call names: read, merge, replace all. Partial calls are none (nacos-http.md, fact 5, modify.jsonl).

Not for: what the upstream makes of it (`registry`), a client's own PUT or PATCH, which is forwarded as it came.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from nacos_proxy.catalog.freshness import CacheControl, CacheResult
from nacos_proxy.catalog.registrations import RegistrationKey, Registrations
from nacos_proxy.core.outage import Written
from nacos_proxy.model.calls import Call, GetInstance, Update
from nacos_proxy.model.effects import completed
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance, ServiceKey

R = TypeVar("R")


class Worker(Protocol):
    """Who reads and writes."""

    async def read(self, key: ServiceKey, wants: CacheControl = ...) -> CacheResult: ...

    async def write(self, call: Update) -> Written[None]: ...

    async def ask(self, call: Call[R]) -> R: ...

    def foresee(self, service: ServiceKey, instance: Instance) -> None:
        """The upstream will list this instance."""
        ...


class Patches:
    """Of one ledger. `len` says of how many instances changes are under way."""

    def __init__(self, ledger: Registrations, worker: Worker) -> None:
        self._ledger = ledger
        self._worker = worker
        self._turns: WeakValueDictionary[RegistrationKey, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._turns)

    async def modify(self, call: Update) -> Written[Instance]:
        """Named metadata is merged by key into what is shown. The result is the instance as it will be shown.

        Of two at once the second reads what the first has put, so that neither is undone by the other.
        """
        turn = self._turns.setdefault((call.service, call.ip, call.port), asyncio.Lock())
        async with turn:
            return await self._modify(call)

    async def _modify(self, call: Update) -> Written[Instance]:
        shown = await self._shown(call, _any_cluster(call))
        known = shown or await self._hidden(call, _any_cluster(call))
        metadata = {**known.metadata, **(call.metadata or {})}
        whole = replace(completed(call, known), cluster=known.cluster, metadata=metadata)
        written = await self._worker.write(whole)
        after = replace(known, weight=whole.weight or 0.0, enabled=bool(whole.enabled), metadata=metadata)
        if shown is None and after.enabled:  # lists hid it while it was disabled; the next one here shows it
            self._worker.foresee(call.service, after)
        return Written(after, written.how)

    async def patch(self, call: Update) -> Any:
        """A client's PATCH, as `write` answers it. It names one cluster, and its metadata replaces what is there."""
        turn = self._turns.setdefault((call.service, call.ip, call.port), asyncio.Lock())
        async with turn:
            known = await self._shown(call, False) or await self._hidden(call, False)
            return await self._worker.write(completed(call, known))

    async def _shown(self, call: Update, any_cluster: bool) -> Instance | None:
        look = await self._worker.read(call.service, CacheControl(no_cache=True))
        assert look.snapshot is not None
        known = look.snapshot.find(call.ip, call.port, call.cluster)
        return look.snapshot.find(call.ip, call.port) if known is None and any_cluster else known

    async def _hidden(self, call: Update, any_cluster: bool) -> Instance:
        """One that no list shows: somebody disabled it, which not every server tells."""
        owned = self._ledger.find(call.service, call.ip, call.port)
        if owned is not None and (any_cluster or owned.instance.cluster == call.cluster):
            return replace(owned.instance, enabled=False)
        asked = GetInstance(call.service, call.ip, call.port, call.cluster)
        return replace(await self._worker.ask(asked), enabled=False)


def _any_cluster(call: Update) -> bool:
    """Where no cluster is named, any is meant."""
    return call.cluster == DEFAULT_CLUSTER

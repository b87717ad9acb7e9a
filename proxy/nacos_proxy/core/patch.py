"""Patch: read an instance, change only the fields that a call names, and write the whole instance.

Real servers have no partial update: they reset the fields that a call leaves out (nacos-http.md, fact 5, modify.jsonl).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from nacos_proxy.catalog.freshness import CacheControl
from nacos_proxy.catalog.registrations import RegistrationKey, Registrations
from nacos_proxy.core.commit import Committer, Written
from nacos_proxy.core.queries import Queries
from nacos_proxy.core.read import Reader
from nacos_proxy.core.write import Writer
from nacos_proxy.model.calls import GetInstance, Update
from nacos_proxy.model.effects import completed
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance


@dataclass(slots=True, eq=False, repr=False)
class Patches:
    """One call at a time patches an instance. `len` is the number of instances being patched."""

    _registrations: Registrations
    _reader: Reader
    _queries: Queries
    _writer: Writer
    _committer: Committer
    _locks: WeakValueDictionary[RegistrationKey, asyncio.Lock] = field(default_factory=lambda: WeakValueDictionary())

    def __len__(self) -> int:
        return len(self._locks)

    def _lock(self, call: Update) -> asyncio.Lock:
        """Makes a second patch wait until the first is written, so that it does not undo the first."""
        return self._locks.setdefault((call.service, call.ip, call.port), asyncio.Lock())

    async def modify(self, call: Update) -> Written[Instance]:
        """Change the named fields, merge metadata by key, and return the instance as readers will see it.

        The default cluster matches any cluster.
        """
        any_cluster = call.cluster == DEFAULT_CLUSTER
        async with self._lock(call):
            listed = await self._listed(call, any_cluster)
            known = listed or await self._unlisted(call, any_cluster)
            metadata = {**known.metadata, **(call.metadata or {})}
            whole = replace(completed(call, known), cluster=known.cluster, metadata=metadata)
            written = await self._writer.write(whole)
            after = replace(known, weight=whole.weight or 0.0, enabled=bool(whole.enabled), metadata=metadata)
            if listed is None and after.enabled:
                self._committer.enabled(call.service, after)
            return Written(after, written.how)

    async def patch(self, call: Update) -> Written[Any]:
        """A client's PATCH, answered as by `Writer.write`. It names one cluster; its metadata replaces the old."""
        async with self._lock(call):
            known = await self._listed(call, any_cluster=False) or await self._unlisted(call, any_cluster=False)
            return await self._writer.write(completed(call, known))

    async def _listed(self, call: Update, any_cluster: bool) -> Instance | None:
        result = await self._reader.read(call.service, CacheControl(no_cache=True))
        assert result.snapshot is not None
        known = result.snapshot.find(call.ip, call.port, call.cluster)
        return result.snapshot.find(call.ip, call.port) if known is None and any_cluster else known

    async def _unlisted(self, call: Update, any_cluster: bool) -> Instance:
        """An instance that lists do not show because it is disabled. Not every server reports it as disabled."""
        registration = self._registrations.find(call.service, call.ip, call.port)
        if registration is not None and (any_cluster or registration.instance.cluster == call.cluster):
            return replace(registration.instance, enabled=False)
        known = await self._queries.ask(GetInstance(call.service, call.ip, call.port, call.cluster))
        return replace(known, enabled=False)

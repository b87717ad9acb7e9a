"""Patch: change only what a call names: read, merge, write the whole instance.

Real servers know no partial update: they reset what a call leaves out (nacos-http.md, fact 5, modify.jsonl).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from nacos_proxy.catalog.freshness import CacheControl
from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.core.commit import Catalog, Committer, Written
from nacos_proxy.core.queries import Queries
from nacos_proxy.core.read import Reader
from nacos_proxy.core.write import Writer
from nacos_proxy.model.calls import GetInstance, Update
from nacos_proxy.model.effects import completed
from nacos_proxy.model.services import DEFAULT_CLUSTER, Instance


class Patches:
    """One instance is patched by one call at a time. `len` is the number of instances being patched."""

    def __init__(
        self, catalog: Catalog, reader: Reader, queries: Queries, writer: Writer, committer: Committer
    ) -> None:
        self._registrations = catalog.registrations
        self._reader = reader
        self._queries = queries
        self._writer = writer
        self._committer = committer
        self._locks: WeakValueDictionary[RegistrationKey, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._locks)

    def _lock(self, call: Update) -> asyncio.Lock:
        """The second of two patches reads what the first has written, so that neither undoes the other."""
        return self._locks.setdefault((call.service, call.ip, call.port), asyncio.Lock())

    async def modify(self, call: Update) -> Written[Instance]:
        """Change what the call names; named metadata is merged by key. The result is the instance as it will be shown.

        The default cluster stands for any cluster.
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
        """A client's PATCH, answered as `write` answers. It names one cluster; its metadata replaces the old one."""
        async with self._lock(call):
            known = await self._listed(call, any_cluster=False) or await self._unlisted(call, any_cluster=False)
            return await self._writer.write(completed(call, known))

    async def _listed(self, call: Update, any_cluster: bool) -> Instance | None:
        result = await self._reader.read(call.service, CacheControl(no_cache=True))
        assert result.snapshot is not None
        known = result.snapshot.find(call.ip, call.port, call.cluster)
        return result.snapshot.find(call.ip, call.port) if known is None and any_cluster else known

    async def _unlisted(self, call: Update, any_cluster: bool) -> Instance:
        """An instance that no list shows, because it is disabled; not every server says so."""
        registration = self._registrations.find(call.service, call.ip, call.port)
        if registration is not None and (any_cluster or registration.instance.cluster == call.cluster):
            return replace(registration.instance, enabled=False)
        known = await self._queries.ask(GetInstance(call.service, call.ip, call.port, call.cluster))
        return replace(known, enabled=False)

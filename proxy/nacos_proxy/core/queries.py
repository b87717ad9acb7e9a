"""What the upstream is asked beside its lists, made to agree with the writes that it accepted from here.

A real server shows a write half a second later in every call, not in its lists alone (nacos-http.md, fact 13), a node of a
cluster up to two seconds later. Not for: whole services (the cache lays pending writes over each list).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

from nacos_proxy.catalog.cache import Cache
from nacos_proxy.catalog.pending_writes import apply_pending
from nacos_proxy.model.calls import (
    Call,
    DetailPage,
    GetInstance,
    ListDetails,
    ListServices,
    ServiceDetail,
    ServiceInfo,
    ServiceNames,
    ServicePage,
)
from nacos_proxy.model.errors import ABSENT, Reason, Refused
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot
from nacos_proxy.runtime import Clock

R = TypeVar("R")


class Sender(Protocol):
    """Who sends a call to the upstream."""

    async def send(self, call: Call[R]) -> R: ...


class Queries:
    """Over one cache. `ask` is `send` for every call that reads."""

    def __init__(self, cache: Cache, upstream: Sender, clock: Clock) -> None:
        self._cache = cache
        self._upstream = upstream
        self._clock = clock

    async def ask(self, call: Call[R]) -> R:
        """The upstream's answer with the pending writes on top. Raises what `send` raises."""
        return cast(R, await self._ask(call))

    async def _ask(self, call: Call[Any]) -> Any:
        match call:
            case GetInstance():
                return await self._instance(call)
            case ListDetails():
                return self._details(call, await self._upstream.send(call))
            case ListServices():
                return self._page(call, await self._upstream.send(call))
            case ServiceNames():
                return self._names(call, await self._upstream.send(call))
            case _:
                return await self._upstream.send(call)

    async def _instance(self, call: GetInstance) -> Instance:
        refused = Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
        word = Snapshot(call.service)
        try:
            word = word.with_instances([await self._upstream.send(call)])
        except Refused as error:
            if error.reason not in ABSENT:
                raise
            refused = error
        found = self._agreed(word).find(call.ip, call.port, call.cluster)
        if found is None:
            raise refused
        return found

    def _details(self, call: ListDetails, page: DetailPage) -> DetailPage:
        rows = [replace(row, snapshot=self._agreed(row.snapshot)) for row in page.rows]
        kept = [row for row in rows if row.snapshot.instances] if call.ignore_empty else rows
        count = page.count + len(kept) - len(rows)
        if call.page <= 1 and page.count <= len(rows):
            known = {row.info.key for row in rows}
            new = self._new(call.namespace, lambda key: call.group_part in key.group and call.name_part in key.name)
            more = [ServiceDetail(ServiceInfo(s.key, s.threshold), s) for s in new if s.key not in known]
            kept, count = [*kept, *more][: max(call.size, len(kept))], count + len(more)
        return DetailPage(count, tuple(kept))

    def _page(self, call: ListServices, page: ServicePage) -> ServicePage:
        if call.page > 1 or page.count > len(page.names):
            return page
        new = self._new(call.namespace, lambda key: key.group == call.group)
        more = [shown.key.name for shown in new if shown.key.name not in page.names]
        return ServicePage(page.count + len(more), (*page.names, *more)[: max(call.size, len(page.names))])

    def _names(self, call: ServiceNames, names: Any) -> dict[str, tuple[str, ...]]:
        found = dict(names)
        for shown in self._new(call.namespace, lambda _: True):
            known = found.get(shown.key.namespace, ())
            if shown.key.grouped not in known:
                found[shown.key.namespace] = (*known, shown.key.grouped)
        return found

    def _new(self, namespace: str, wanted: Callable[[ServiceKey], bool]) -> Sequence[Snapshot]:
        """Services with instances that were written to just now; those that the upstream names already among them.

        A page that does not hold all names does not tell whether one is missing: only whole ones are added to.
        """
        entries = (self._cache.get(key) for key in self._cache.recent_writes.keys(self._clock.now()))
        shown = (entry.visible for entry in entries if entry is not None and entry.visible is not None)
        return [s for s in shown if s.instances and namespace in ("", s.key.namespace) and wanted(s.key)]

    def _agreed(self, word: Snapshot) -> Snapshot:
        """What the upstream tells of a service elsewhere than in its list, with the pending writes on top."""
        entry = self._cache.get(word.key)
        if entry is None or not entry.pending:
            return word
        oldest = self._clock.now() - self._cache.recent_writes.grace
        word = replace(word, by_cluster=entry.upstream_snapshot is not None and entry.upstream_snapshot.by_cluster)
        return apply_pending(word, (p for p in entry.pending if p.since > oldest))

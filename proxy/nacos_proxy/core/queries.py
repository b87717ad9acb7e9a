"""Query: send any other reading call to the upstream, and apply the pending writes to the answer.

A real server shows a write half a second late in every call, not only in lists (nacos-http.md, fact 13). Another node
of a cluster shows it up to two seconds late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from nacos_proxy.catalog.freshness import CacheResult
from nacos_proxy.catalog.pending_writes import apply_pending
from nacos_proxy.core.commit import Catalog
from nacos_proxy.core.read import Reader
from nacos_proxy.core.send import Sender
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


@dataclass(slots=True, eq=False, repr=False)
class Queries:
    """Use `ask` instead of `Sender.send` for every call that reads."""

    _catalog: Catalog
    _reader: Reader
    _sender: Sender
    _clock: Clock

    async def instance(self, call: GetInstance) -> tuple[Instance, CacheResult | None]:
        """Looks in the cached service, then asks the upstream, which also knows disabled instances."""
        result = await self._reader.read(call.service)
        assert result.snapshot is not None
        known = result.snapshot.find(call.ip, call.port, call.cluster)
        if known is not None:
            return known, result
        if not self._catalog.breaker.up:
            raise _not_found()
        return await self.ask(call), None

    async def ask(self, call: Call[R]) -> R:
        """The upstream's answer with the pending writes applied. Raises what `send` raises."""
        return cast(R, await self._ask(call))

    async def _ask(self, call: Call[Any]) -> Any:
        if isinstance(call, GetInstance):
            return await self._instance(call)
        answer = await self._sender.send(call)
        match call:
            case ListDetails():
                return self._details(call, answer)
            case ListServices():
                return self._page(call, answer)
            case ServiceNames():
                return self._names(call, answer)
            case _:
                return answer

    async def _instance(self, call: GetInstance) -> Instance:
        refused = _not_found()
        upstream_snapshot = Snapshot(call.service)
        try:
            upstream_snapshot = upstream_snapshot.with_instances([await self._sender.send(call)])
        except Refused as error:
            if error.reason not in ABSENT:
                raise
            refused = error
        found = self._with_pending(upstream_snapshot).find(call.ip, call.port, call.cluster)
        if found is None:
            raise refused
        return found

    def _details(self, call: ListDetails, page: DetailPage) -> DetailPage:
        rows = [replace(row, snapshot=self._with_pending(row.snapshot)) for row in page.rows]
        kept = [row for row in rows if row.snapshot.instances] if call.ignore_empty else rows
        count = page.count + len(kept) - len(rows)
        if call.page <= 1 and page.count <= len(rows):
            known = {row.info.key for row in rows}
            new = self._recent(call.namespace, lambda key: call.group_part in key.group and call.name_part in key.name)
            more = [ServiceDetail(ServiceInfo(s.key, s.threshold), s) for s in new if s.key not in known]
            kept, count = [*kept, *more][: max(call.size, len(kept))], count + len(more)
        return DetailPage(count, tuple(kept))

    def _page(self, call: ListServices, page: ServicePage) -> ServicePage:
        if call.page > 1 or page.count > len(page.names):
            return page
        new = self._recent(call.namespace, lambda key: key.group == call.group)
        more = [snapshot.key.name for snapshot in new if snapshot.key.name not in page.names]
        return ServicePage(page.count + len(more), (*page.names, *more)[: max(call.size, len(page.names))])

    def _names(self, call: ServiceNames, names: Any) -> dict[str, tuple[str, ...]]:
        found = dict(names)
        for snapshot in self._recent(call.namespace, lambda _: True):
            key = snapshot.key
            known = found.get(key.namespace, ())
            if key.grouped not in known:
                found[key.namespace] = (*known, key.grouped)
        return found

    def _recent(self, namespace: str, wanted: Callable[[ServiceKey], bool]) -> Sequence[Snapshot]:
        """Services with instances and a recent write. Whether the upstream lists them already is not checked.

        Callers add them to complete lists only, because one page of many does not tell whether a name is missing.
        """
        cache = self._catalog.cache
        entries = (cache.get(key) for key in cache.recent_writes.keys(self._clock.now()))
        visible = (entry.visible for entry in entries if entry is not None and entry.visible is not None)
        return [s for s in visible if s.instances and namespace in ("", s.key.namespace) and wanted(s.key)]

    def _with_pending(self, upstream_snapshot: Snapshot) -> Snapshot:
        """Applies the recent pending writes to the answer of a call that is not a list."""
        entry = self._catalog.cache.get(upstream_snapshot.key)
        if entry is None or not entry.pending:
            return upstream_snapshot
        oldest = self._clock.now() - self._catalog.cache.recent_writes.grace
        by_cluster = entry.upstream_snapshot is not None and entry.upstream_snapshot.by_cluster
        recent = tuple(p for p in entry.pending if p.since > oldest)
        return apply_pending(replace(upstream_snapshot, by_cluster=by_cluster), recent)


def _not_found() -> Refused:
    return Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)

"""Pushed lists: commit what the upstream pushed, as if it had been fetched, if it says all that a fetch says."""

from __future__ import annotations

from dataclasses import dataclass

from nacos_proxy.core.commit import Catalog, Committer, Counts
from nacos_proxy.core.reregistration import Reregistration
from nacos_proxy.core.send import Sender
from nacos_proxy.model.services import Snapshot
from nacos_proxy.runtime import Clock


@dataclass(frozen=True, slots=True)
class PushedLists:
    """Does not await, so a pushed list cannot overtake a younger one."""

    _catalog: Catalog
    _sender: Sender
    _reregistration: Reregistration
    _committer: Committer
    _clock: Clock

    def accept(self, pushed: Snapshot, *, fetch_shows_more: bool = False, whole: bool = False) -> bool:
        """Commit a pushed list. False: a fetch is needed (`catalog.pushed_lists`), if the list is not `whole`.

        It is also needed if the list lacks an instance that is registered here: before that is registered again, the
        upstream is asked whether it is only disabled.
        """
        suspicious, counts = self._sender.suspicious, self._committer.counts
        accepted, change = False, None
        if not self._reregistration.expects_more(pushed, suspicious=suspicious):
            accepted, change = self._catalog.cache.accept_pushed(
                pushed,
                self._clock.now(),
                suspicious=suspicious,
                fetch_shows_more=fetch_shows_more,
                whole=whole,
                now_ms=self._committer.now_ms(),
            )
        Counts.add(counts.pushes, "used" if accepted else "fetched")
        self._committer.commit(change)
        return accepted

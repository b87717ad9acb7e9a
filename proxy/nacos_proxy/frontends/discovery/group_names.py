"""The names of whole groups, at a bounded cost for the upstream."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace

from cachetools import LRUCache

from nacos_proxy.core.agent import Agent
from nacos_proxy.frontends.rest.reads import known_names
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import NothingKnown, UpstreamError, is_unavailable
from nacos_proxy.runtime import at_most, spawn

log = logging.getLogger("nacos_proxy.discovery")

LIST_EVERY = 5.0  # seconds between two lists of a group's names, as for event streams of a group
MAX_SERVICES = 1_000  # in one answer
_LIST_WAIT = 2.5
_KEPT_GROUPS = 1_000


class GroupNames:
    """The names of groups, asked of the upstream at most every `LIST_EVERY` seconds for all requests together."""

    def __init__(self, agent: Agent, max_services: int = MAX_SERVICES) -> None:
        self._agent = agent
        self._max_services = max_services
        self._listed: LRUCache[ListServices, frozenset[str]] = LRUCache(_KEPT_GROUPS)  # also while the upstream is away
        self._failed: LRUCache[ListServices, UpstreamError] = LRUCache(_KEPT_GROUPS)
        self._due: LRUCache[ListServices, float] = LRUCache(_KEPT_GROUPS)
        self._listing: dict[ListServices, asyncio.Task[None]] = {}

    async def names(self, group: ListServices) -> tuple[frozenset[str], bool]:
        """The names that the upstream listed, and those with instances in the cache; whether it ever listed them.

        Raises `NothingKnown`, or the upstream's refusal to show the group.
        """
        clock, breaker = self._agent.clock, self._agent.catalog.breaker
        if breaker.up and clock.now() >= self._due.get(group, -math.inf):
            if group not in self._listing:
                self._listing[group] = spawn(self._list(group), name="names of a group")
                self._listing[group].add_done_callback(lambda _: self._listing.pop(group))
            await at_most(clock, _LIST_WAIT, self._listing[group])
        listed, known, failed = self._listed.get(group), known_names(self._agent, group), self._failed.get(group)
        if failed is not None and not is_unavailable(failed):
            raise failed.with_traceback(None)
        if listed is None and not known:
            why = failed or breaker.reason or "it has not answered in time"
            raise NothingKnown(f"no services are known here and the upstream cannot be asked: {why}")
        return (listed or frozenset()).union(known), listed is not None

    async def _list(self, group: ListServices) -> None:
        names: set[str] = set()
        try:
            for page in range(1, self._max_services // group.size + 2):
                found = await self._agent.ask(replace(group, page=page))
                names.update(found.names)
                if len(names) >= found.count or not found.names:
                    break
            self._listed[group] = frozenset(names)
            self._failed.pop(group, None)
        except UpstreamError as error:
            self._failed[group] = error
            log.info("the services of %s %s could not be listed: %s", group.namespace, group.group, error)
        finally:
            self._due[group] = self._agent.clock.now() + LIST_EVERY

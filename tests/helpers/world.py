"""An agent on a registry whose answers can be delayed, with the changes that it published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nacos_proxy.catalog.freshness import CacheControl, CacheResult
from nacos_proxy.core.agent import AgentPolicy
from nacos_proxy.model.calls import Call, Fetch, Metrics
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.model.services import Change
from tests.helpers.build import KEY, agent, instance, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import BeginningRegistry, ScriptedRegistry, Shelf

A, B, C = (instance(f"10.0.0.{number}") for number in (1, 2, 3))
AWAY = Unreachable("connection refused", arrived=False)
NO_CACHE = CacheControl(no_cache=True)


class World:
    """An agent on a registry whose answers can be delayed, and the changes that it published."""

    def __init__(self, *followers: Callable[[Change], None], strict: bool = False, begins: bool = False) -> None:
        """`begins`: the registry begins beats and registrations without a task of the agent's."""
        self.clock = FakeClock()
        self.shelf = Shelf(snapshot(A, B))
        self.registry = (BeginningRegistry if begins else ScriptedRegistry)(self.shelf)
        self.changes: list[Change] = []
        self.agent = agent(
            self.registry, self.clock, self.changes.append, *followers, policy=AgentPolicy(strict=strict)
        )

    def hold(self, kind: type[Call[Any]] = Fetch) -> Held:
        """Delays calls of this kind from now on."""
        held = Held(self.registry.script, kind)
        self.registry.script = held
        return held

    def fail(self, error: Exception) -> None:
        self.registry.script = lambda call: error

    def heal(self) -> None:
        self.registry.script = self.shelf

    async def lose(self) -> None:
        """Makes the upstream unreachable and lets the agent notice."""
        self.fail(AWAY)
        while self.agent.catalog.breaker.up:
            with pytest.raises(Unreachable):
                await self.agent.send(Metrics())

    async def read(self, *wants: CacheControl) -> CacheResult:
        return await self.agent.read(KEY, *wants)

    def fetches(self) -> int:
        return len(self.registry.sent(Fetch))


class Held:
    """Delays calls of one kind until `release`; each result is computed when the call arrives."""

    def __init__(self, script: Callable[[Call[Any]], Any], kind: type[Call[Any]]) -> None:
        self._script = script
        self._kind = kind
        self.waiting: list[tuple[asyncio.Future[Any], Any]] = []

    def __call__(self, call: Call[Any]) -> Any:
        if not isinstance(call, self._kind):
            return self._script(call)
        return self._answer(self._script(call))

    async def _answer(self, result: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((future, result))
        return await future

    async def release(self) -> None:
        for future, result in self.waiting:
            future.set_result(result)
        self.waiting.clear()
        await settle()

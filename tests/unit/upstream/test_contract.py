from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest

from nacos_proxy.upstream.contract import Registry, Watchable
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry


def registries() -> list[Registry]:
    """Assigned as the contract, so that a type checker holds it too."""
    clock = FakeClock()
    return [
        EmbeddedRegistry(clock),
        NacosRegistry(NacosPolicy(ServersPolicy(("127.0.0.1:1",))), clock),
        ScriptedRegistry(lambda call: None),
    ]


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]


async def test_registry_contract_is_kept_by_every_registry() -> None:
    for registry in registries():
        for name in ("send", "close"):
            ours, contract = getattr(type(registry), name), getattr(Registry, name)
            assert inspect.iscoroutinefunction(ours)
            assert parameters(ours) == parameters(contract)
        await registry.close()


async def test_registry_close_may_be_called_twice() -> None:
    for registry in registries():
        await registry.close()
        await registry.close()


@pytest.mark.parametrize("lacking", ["watch", "changes", "alive", "covers", ""])
def test_watchable_requires_every_member(lacking: str) -> None:
    members: dict[str, Any] = {
        "watch": lambda self, services: None,
        "changes": lambda self: None,
        "alive": True,
        "covers": lambda self, key: True,
    }
    members.pop(lacking, None)
    assert isinstance(type("Watcher", (), members)(), Watchable) is (lacking == "")


def test_registry_contract_has_only_send_and_close() -> None:
    assert [name for name in vars(Registry) if not name.startswith("_")] == ["send", "close"]
    assert "return" in get_type_hints(Registry.close)

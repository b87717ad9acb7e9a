"""A registry that is a function of the call, and the simplest such function: services in a dict."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from nacos_proxy.model.calls import (
    BEAT_NOT_FOUND,
    BEAT_OK,
    Beat,
    BeatResult,
    Call,
    Fetch,
    GetInstance,
    ListServices,
    Register,
    ServiceNames,
    ServicePage,
    Write,
)
from nacos_proxy.model.effects import apply
from nacos_proxy.model.errors import ProxyError, Reason, Refused
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.contract import Sent

R = TypeVar("R")


class ScriptedRegistry:
    """Answers each call with `script(call)`: a result, an awaitable of one, or an error to raise.

    A test may replace `script` at any time; `calls` lists all calls sent.
    """

    def __init__(self, script: Callable[[Call[Any]], Any]) -> None:
        self.script = script
        self.calls: list[Call[Any]] = []
        self.closed = False

    async def send(self, call: Call[R]) -> R:
        self.calls.append(call)
        result = self.script(call)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, ProxyError):
            raise result
        return result

    async def close(self) -> None:
        self.closed = True

    def sent(self, kind: type[Call[Any]]) -> list[Any]:
        """The calls of one kind."""
        return [call for call in self.calls if isinstance(call, kind)]


class Shelf:
    """A script that keeps services in a dict; writes are visible at once."""

    def __init__(self, *snapshots: Snapshot) -> None:
        self.services: dict[ServiceKey, Snapshot] = {snapshot.key: snapshot for snapshot in snapshots}

    def __call__(self, call: Call[Any]) -> Any:
        match call:
            case Fetch():
                return self.of(call.service)
            case ServiceNames(namespace):
                return {
                    space: tuple(key.grouped for key in self.services if key.namespace == space)
                    for space in {key.namespace for key in self.services}
                    if namespace in ("", space)
                }
            case ListServices():
                keys = (k for k, s in self.services.items() if s.instances)
                names = sorted(k.name for k in keys if (k.namespace, k.group) == (call.namespace, call.group))
                first = (call.page - 1) * call.size
                return ServicePage(len(names), tuple(names[first : first + call.size]))
            case GetInstance():
                found = self.of(call.service).find(call.ip, call.port, call.cluster)
                return found or Refused(Reason.INSTANCE_NOT_FOUND, "no matched ip found!", status=404)
            case Write():
                return self._write(call)
            case _:
                return None

    def _write(self, call: Write[Any]) -> object:
        before = self.of(call.service)
        if isinstance(call, Beat) and call.full is None and before.find(call.ip, call.port) is None:
            return BeatResult(BEAT_NOT_FOUND)
        self.services[call.service] = apply(before, call)
        return BeatResult() if isinstance(call, Beat) else None

    def of(self, key: ServiceKey) -> Snapshot:
        return self.services.get(key, Snapshot(key))


class BeginningRegistry(ScriptedRegistry):
    """Begins each beat and registration, as a registry does with those that came before. `begun` counts them."""

    begun = 0

    def begin(self, call: Call[Any], answered: Callable[[Sent], object]) -> bool:
        if not isinstance(call, Beat | Register):
            return False
        self.begun += 1
        spawn(self.send(call), name="begun").add_done_callback(lambda sending: answered(_Begun(sending)))
        return True


class _Begun:
    """Implements `Sent`."""

    def __init__(self, sending: asyncio.Future[Any]) -> None:
        self._sending = sending
        failed = sending.cancelled() or sending.exception() is not None
        self.usual = not failed and getattr(sending.result(), "code", BEAT_OK) == BEAT_OK
        self.result = sending.result() if self.usual else None

    async def finish(self) -> Any:
        return await self._sending

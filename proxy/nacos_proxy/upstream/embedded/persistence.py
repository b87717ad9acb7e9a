"""The state of the embedded registry that outlives the process, and its changes that are not written yet.

The state has the persistent instances with their overrides, the data of services (metadata, threshold, selector, the
health checks of their clusters), and the switches. Clients register ephemeral instances again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.embedded.state import PersistentService
from nacos_proxy.upstream.embedded.switches import SWITCHES

PersistentValue = PersistentService | Mapping[str, Any]
"""A service, or the switches."""

SWITCHES_KEY = ServiceKey("", "", "")  # the key of the switches; no service has it


class PersistentState:
    """The state to persist, by service. `unwritten` has the changes that are not written yet (None: removed)."""

    def __init__(self) -> None:
        self.unwritten: dict[ServiceKey, PersistentValue | None] = {}
        self._values: dict[ServiceKey, PersistentValue] = {SWITCHES_KEY: SWITCHES}
        self._writes_under_way = 0
        self._writer: Callable[[], Awaitable[None]] | None = None

    def set_writer(self, writer: Callable[[], Awaitable[None]]) -> None:
        """`writer` must call `write_changes`; a write call is not answered before it returns."""
        self._writer = writer

    def restore(self, key: ServiceKey, value: PersistentValue) -> None:
        """Adds a value that was read back."""
        self._values[key] = value

    def update(self, key: ServiceKey, value: PersistentValue | None) -> None:
        """Sets or (None) removes a value."""
        if self._values.get(key) == value:
            return
        self.unwritten[key] = value
        if value is None:
            del self._values[key]
        else:
            self._values[key] = value

    async def flush(self) -> None:
        """Waits until all changes are written, if there is a writer."""
        if (self.unwritten or self._writes_under_way) and self._writer is not None:
            await self._writer()

    async def write_changes(
        self, write: Callable[[list[tuple[ServiceKey, PersistentValue | None]]], Awaitable[bool]]
    ) -> bool:
        """Passes the unwritten changes to `write`, and returns its result. Unless that is True, they stay unwritten.

        `write` must write in the order of its calls. While a call of it is under way, another is made even without
        changes, so that waiting for the later call includes the earlier one.
        """
        if not self.unwritten and not self._writes_under_way:
            return True
        taken, self.unwritten = self.unwritten, {}
        self._writes_under_way += 1
        written = False
        try:
            written = await write(list(taken.items()))
        finally:
            self._writes_under_way -= 1
            if not written:
                self.unwritten = {**taken, **self.unwritten}
        return written

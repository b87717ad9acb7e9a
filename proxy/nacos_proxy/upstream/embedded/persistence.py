"""What of the embedded registry outlives the process, and which changes of it are not written yet.

That is: persistent instances with their overrides, the data of services (metadata, threshold, selector, the health
checks of their clusters), and the switches. Ephemeral instances are registered again by their clients.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nacos_proxy.model.calls import (
    BatchMetadata,
    Beat,
    CreateService,
    DeleteService,
    Deregister,
    Register,
    SetHealth,
    Update,
    UpdateService,
)
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.embedded.state import PersistentService
from nacos_proxy.upstream.embedded.switches import SWITCHES
from nacos_proxy.wire.nacos.administration import SetCluster

PersistentValue = PersistentService | Mapping[str, Any]
"""A service, or the switches."""

SWITCHES_KEY = ServiceKey("", "", "")  # the key of the switches; no service has it
SERVICE_WRITES = (
    *(Register, Deregister, Update, Beat, BatchMetadata, SetHealth),
    *(CreateService, UpdateService, DeleteService, SetCluster),
)


class PersistentState:
    """What is to outlive the process, by service. `unwritten` are the changes that are not written yet (None: gone)."""

    def __init__(self) -> None:
        self.unwritten: dict[ServiceKey, PersistentValue | None] = {}
        self._values: dict[ServiceKey, PersistentValue] = {SWITCHES_KEY: SWITCHES}
        self._writes_under_way = 0
        self._writer: Callable[[], Awaitable[None]] | None = None

    def set_writer(self, writer: Callable[[], Awaitable[None]]) -> None:
        """`writer` is to call `write_changes`; the answer to a write waits for it."""
        self._writer = writer

    def restore(self, key: ServiceKey, value: PersistentValue) -> None:
        """Adds a value that was read back."""
        self._values[key] = value

    def update(self, key: ServiceKey, value: PersistentValue | None) -> None:
        """Sets the current value; None: nothing of it is to outlive the process."""
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
        """Hands the unwritten changes to `write`; they stay unwritten unless it returns True. Returns whether it did.

        `write` must write in the order of its calls. It is called without changes while another call is under way, so
        that its end is the end of that one, too.
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

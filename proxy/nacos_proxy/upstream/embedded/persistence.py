"""What of the embedded registry outlives its process, and which of it is not written yet. Not for: rows (`rows`).

Kept are persistent instances with what was laid over them, what a service says of itself (metadata, threshold,
selector, how its clusters are checked), and the switches. An ephemeral instance is registered again by its client.
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
from nacos_proxy.upstream.embedded.state import Kept
from nacos_proxy.upstream.embedded.switches import SWITCHES
from nacos_proxy.wire.nacos.administration import SetCluster

Lasting = Kept | Mapping[str, Any]
"""A service, or the switches."""

OF_SWITCHES = ServiceKey("", "", "")  # the place of the switches among the services; none is named so
OF_SERVICES = (
    *(Register, Deregister, Update, Beat, BatchMetadata, SetHealth),
    *(CreateService, UpdateService, DeleteService, SetCluster),
)


class Keeping:
    """`unwritten` is for whoever writes it (None: it is gone), who sets `write`: what is answered waits for that."""

    def __init__(self) -> None:
        self.unwritten: dict[ServiceKey, Lasting | None] = {}
        self.writing = 0  # writes under way
        self.write: Callable[[], Awaitable[None]] | None = None
        self._known: dict[ServiceKey, Lasting] = {OF_SWITCHES: SWITCHES}

    def known(self, key: ServiceKey, lasting: Lasting) -> None:
        """It is written."""
        self._known[key] = lasting

    def found(self, key: ServiceKey, lasting: Lasting | None) -> None:
        """So it is now (None: nothing of it is to last)."""
        if self._known.get(key) == lasting:
            return
        self.unwritten[key] = lasting
        if lasting is None:
            del self._known[key]
        else:
            self._known[key] = lasting

    async def settled(self) -> None:
        """What is not written yet is, as far as it can be."""
        if (self.unwritten or self.writing) and self.write is not None:
            await self.write()

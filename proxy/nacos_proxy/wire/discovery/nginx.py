"""`server` lines to include in an `upstream` block of nginx."""

from __future__ import annotations

from collections.abc import Sequence

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.addresses import lines, weighted_servers


def render(hosts: Sequence[Instance]) -> bytes:
    """Weights are whole numbers from 1 to 100."""
    return lines(f"server {address} weight={weight};" for address, weight in weighted_servers(hosts, 100))

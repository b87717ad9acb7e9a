"""`server` lines for a backend of HAProxy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.addresses import lines, weighted_servers

_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_.:-]")


def render(hosts: Sequence[Instance]) -> bytes:
    """Weights are whole numbers from 1 to 256 (HAProxy's own limit).

    `init-addr` makes a server whose name cannot be resolved count as down; without it HAProxy would not start.
    """
    return lines(
        f"server {_NOT_IN_NAMES.sub('_', address)} {address} weight {weight} check{_init_addr(address)}"
        for address, weight in weighted_servers(hosts, 256)
    )


def _init_addr(address: str) -> str:
    ip = address.startswith("[") or address.rpartition(":")[0].rpartition(".")[2].isdecimal()
    return "" if ip else " init-addr last,libc,none"

"""`server` lines for a backend of HAProxy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nacos_proxy.wire.discovery.addresses import OMITTED, lines, usable, weighted_servers
from nacos_proxy.wire.discovery.base import Format, Shown
from nacos_proxy.wire.http import TEXT_TYPE

_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_.:-]")


def _write(shown: Sequence[Shown]) -> bytes:
    """Weights are whole numbers from 1 to 256 (HAProxy's own limit).

    `init-addr` makes a server whose name cannot be resolved count as down; without it HAProxy would not start.
    """
    return lines(
        f"server {_NOT_IN_NAMES.sub('_', address)} {address} weight {weight} check{_init_addr(address)}"
        for address, weight in weighted_servers(shown, 256)
    )


def _init_addr(address: str) -> str:
    ip = address.startswith("[") or address.rpartition(":")[0].rpartition(".")[2].isdecimal()
    return "" if ip else " init-addr last,libc,none"


FORMAT = Format(
    name="haproxy",
    summary="`server` lines for HAProxy",
    description=f"Lines for a backend, with weights from 1 to 256. Without a server it answers 503. {OMITTED}",
    example="server 10.0.0.5:8080 10.0.0.5:8080 weight 1 check\n",
    write=_write,
    carries=usable,
    media=TEXT_TYPE,
    needs_server=True,
)

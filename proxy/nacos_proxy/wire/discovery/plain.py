"""`ip:port` on each line."""

from __future__ import annotations

from collections.abc import Sequence

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.addresses import lines, servers


def render(hosts: Sequence[Instance]) -> bytes:
    return lines(servers(hosts))

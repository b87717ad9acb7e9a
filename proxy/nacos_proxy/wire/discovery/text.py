"""`ip:port` on each line, for scripts and for anything without a format of its own."""

from __future__ import annotations

from nacos_proxy.wire.discovery.addresses import OMITTED, lines, servers, usable
from nacos_proxy.wire.discovery.base import Format
from nacos_proxy.wire.http import TEXT_TYPE

FORMAT = Format(
    name="text",
    summary="Instances as `ip:port` on each line",
    description=OMITTED,
    example="10.0.0.5:8080\n10.0.0.6:8080\n",
    write=lambda shown: lines(servers(shown)),
    carries=usable,
    media=TEXT_TYPE,
)

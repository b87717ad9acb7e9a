"""`server` lines to include in an `upstream` block of nginx."""

from __future__ import annotations

from collections.abc import Sequence

from nacos_proxy.wire.discovery.addresses import OMITTED, lines, usable, weighted_servers
from nacos_proxy.wire.discovery.base import Format, Shown
from nacos_proxy.wire.http import TEXT_TYPE


def _write(shown: Sequence[Shown]) -> bytes:
    return lines(f"server {address} weight={weight};" for address, weight in weighted_servers(shown, 100))


FORMAT = Format(
    name="nginx",
    summary="`server` lines for nginx",
    description="Lines to include in an `upstream` block, with weights from 1 to 100. nginx needs at least one server: "
    f"otherwise 503. If one host name does not resolve, it refuses the whole file: register IP addresses. {OMITTED}",
    example="server 10.0.0.5:8080 weight=1;\nserver 10.0.0.6:8080 weight=2;\n",
    write=_write,
    carries=usable,
    media=TEXT_TYPE,
    needs_server=True,
)

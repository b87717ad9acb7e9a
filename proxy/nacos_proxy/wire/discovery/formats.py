"""Line formats by name. For a new one, add a module beside this one and a row: the route is made from the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery import haproxy, nginx
from nacos_proxy.wire.discovery.addresses import lines, servers


class Format(NamedTuple):
    """`needs_server`: the program refuses an empty file, so it gets an error instead."""

    render: Callable[[Sequence[Instance]], bytes]
    needs_server: bool


def text(hosts: Sequence[Instance]) -> bytes:
    """`ip:port` on each line."""
    return lines(servers(hosts))


FORMATS = {
    "text": Format(text, needs_server=False),
    "nginx": Format(nginx.render, needs_server=True),
    "haproxy": Format(haproxy.render, needs_server=True),
}

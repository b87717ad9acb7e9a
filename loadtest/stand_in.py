"""A stand-in for Nacos 1.x that has every service that it is asked for, and counts what it is asked."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from ipaddress import IPv4Address
from urllib.parse import parse_qs, urlsplit

METADATA = {"zone": "a", "version": "1.4.2"}


@lru_cache
def hosts(number: int, weight: int = 1, first: int = 0) -> str:
    """The JSON of that many instances. The `first` sets their addresses apart from those of other services."""
    addresses = (IPv4Address("10.7.0.1") + n for n in range(first, first + number))
    return json.dumps(
        [{"ip": str(ip), "port": 8080, "weight": weight, "metadata": METADATA} for ip in addresses],
    )


class StandIn:
    """`hosts_of` gives the JSON of a service's instances; answers come `delay` seconds late. Lives in one event loop.

    `asked`: the lists that were asked for, by service. `requests`: everything that was asked.
    """

    def __init__(self, hosts_of: Callable[[str], str], delay: float = 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.requests = 0
        self._hosts_of = hosts_of
        self._delay = delay

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[str]:
        """Its URL."""
        server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    def answer(self, head: bytes, write: Callable[[bytes], None]) -> None:
        """Answers a request, later if there is a delay."""
        target = urlsplit(head.split(b" ", 2)[1].decode())
        self.requests += 1
        body = b'{"status":"UP"}' if head.startswith(b"GET ") else b"ok"
        if target.path.endswith("/instance/list"):
            name = parse_qs(target.query)["serviceName"][0].rpartition("@@")[2]
            self.asked[name] += 1
            body = f'{{"name":"DEFAULT_GROUP@@{name}","clusters":"","hosts":{self._hosts_of(name)}}}'.encode()
        reply = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, write, reply + body)
        else:
            write(reply + body)


class _Connection(asyncio.Protocol):
    def __init__(self, server: StandIn) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for head in data.split(b"\r\n\r\n"):
            if head.startswith((b"GET", b"POST", b"PUT")):
                self._server.answer(head, self._transport.write)

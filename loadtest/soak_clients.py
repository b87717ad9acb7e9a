"""The clients of a soak, and what they see. An error is explained if an outage of the upstream explains it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from loadtest.contenders import LIST
from loadtest.wire import Connection, close_streams, open_streams
from tests.helpers.sse import Decoder

INSTANCE = "/nacos/v1/ns/instance"
SERVICES = 50
STREAMS = 20
SEED = 7
GRACE = 10.0  # seconds after an outage until everything works again

Hosts = dict[str, tuple[Any, ...]]  # what counts of each instance, by its address


class Error(NamedTuple):
    """An answer of 400 or more, in seconds since the start."""

    at: float
    text: str


class Outage(NamedTuple):
    """In seconds since the start: from just before the kill until the upstream answered again."""

    since: float
    until: float


def unexplained(errors: list[Error], outages: list[Outage]) -> list[str]:
    """The errors that did not come during an outage or shortly after it."""
    explained = [(outage.since, outage.until + GRACE) for outage in outages]
    return [f"{e.text} after {e.at:.1f} s" for e in errors if not any(a <= e.at <= b for a, b in explained)]


def differences(name: str, seen: dict[str, Hosts], truth: dict[str, Hosts]) -> list[str]:
    """The services of which somebody saw something else than there is."""
    wrong: list[str] = []
    for service, hosts in truth.items():
        found = seen.get(service, {})
        if found != hosts:
            addresses = sorted(a for a in found.keys() | hosts.keys() if found.get(a) != hosts.get(a))
            wrong.append(f"{name}: {service} differs in {', '.join(addresses)}")
    return wrong


def hosts_of(data: dict[str, Any]) -> Hosts:
    """The instances of a list or an event."""
    counts = ("healthy", "enabled", "weight", "ephemeral")
    return {
        f"{host['ip']}:{host['port']}": (*(host[field] for field in counts), sorted(host["metadata"].items()))
        for host in data["hosts"]
    }


def services() -> list[str]:
    return [f"soak-{n}" for n in range(SERVICES)]


class Clients:
    """All clients of one proxy. `stay` are those that go on until the end of the run, `churn` those that change it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.counts: Counter[str] = Counter()
        self.errors: list[Error] = []
        self.followed: dict[str, Hosts] = {}
        self.begun = time.perf_counter()
        self._luck = random.Random(SEED)
        self._numbers = itertools.count()

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        connection = Connection(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def _ask(self, connection: Connection, kind: str, method: str, target: str) -> bytes:
        status, body = await connection.ask(method, target)
        text = kind if status < 400 else f"{kind}, status {status}"
        self.counts[text] += 1
        if status >= 400:
            self.errors.append(Error(time.perf_counter() - self.begun, text))
        await asyncio.sleep(0.002)
        return body

    def _service(self) -> str:
        return f"soak-{self._luck.randrange(SERVICES)}"

    def churn(self) -> list[Coroutine[Any, Any, None]]:
        return [
            *(self.read() for _ in range(4)),
            *(self.write() for _ in range(2)),
            self.read_unknown(),
            self.come_and_go(),
        ]

    def stay(self) -> list[Coroutine[Any, Any, None]]:
        return [self.beat(), self.follow()]

    async def beat(self) -> None:
        """One instance of each service lives all the time."""
        async with self._connection() as connection:
            place = "serviceName={}&ip=10.5.255.1&port=80"
            for service in services():
                await self._ask(connection, "registrations", "POST", f"{INSTANCE}?{place.format(service)}")
            for service in itertools.cycle(services()):
                await self._ask(connection, "beats", "PUT", f"{INSTANCE}/beat?{place.format(service)}")
                await asyncio.sleep(2 / SERVICES)

    async def follow(self) -> None:
        """One event stream of all services, which is never closed."""
        decoder = Decoder()
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=None) as http:
            async with http.stream("GET", "/api/v1/events", params={"service": services()}) as stream:
                stream.raise_for_status()
                async for piece in stream.aiter_bytes():
                    for message in decoder.feed(piece):
                        data = json.loads(message.data)
                        if "hosts" in data:
                            self.followed[data["name"].rpartition("@@")[2]] = hosts_of(data)
        raise ConnectionError("the event stream that should stay open was closed")

    async def read(self) -> None:
        while True:  # a new connection now and then, as short-lived processes make them
            async with self._connection() as connection:
                for _ in range(self._luck.randrange(1, 200)):
                    await self._ask(connection, "reads", "GET", LIST + self._service())

    async def read_unknown(self) -> None:
        async with self._connection() as connection:
            while True:
                await self._ask(connection, "reads of unknown services", "GET", f"{LIST}none-{next(self._numbers)}")
                await asyncio.sleep(0.01)

    async def write(self) -> None:
        async with self._connection() as connection:
            while True:
                n = next(self._numbers)
                place = f"serviceName={self._service()}&ip=10.5.{n // 250 % 250}.{n % 250 + 1}&port=80"
                await self._ask(connection, "registrations", "POST", f"{INSTANCE}?{place}&metadata=n%3D{n}")
                for _ in range(self._luck.randrange(3)):
                    await self._ask(connection, "beats", "PUT", f"{INSTANCE}/beat?{place}")
                await self._ask(connection, "deregistrations", "DELETE", f"{INSTANCE}?{place}")

    async def come_and_go(self) -> None:
        while True:
            target = "/api/v1/events?" + "&".join(f"service={self._service()}" for _ in range(3))
            streams = await open_streams(self.url, target, STREAMS, lambda: b"event: change", self._seen)
            await asyncio.sleep(self._luck.uniform(1, 5))
            close_streams(streams)
            self.counts["streams"] += STREAMS

    def _seen(self, moment: float) -> None:
        self.counts["events"] += 1

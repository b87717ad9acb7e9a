"""Everything at once for a while: do memory and open files stay constant?

Readers, writers, beaters, event streams that come and go, and clients that ask for unregistered services use one proxy,
while its resident memory and open files are sampled. They are constant if the last quarter of the samples has no more
than the second quarter, apart from what `MEMORY` and `FILES` allow. It does not measure speed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import psutil

from loadtest import contenders
from loadtest.contenders import Contender, Missing
from loadtest.wire import Connection, close_streams, open_streams

LIST = "/nacos/v1/ns/instance/list?serviceName="
INSTANCE = "/nacos/v1/ns/instance"
SERVICES = 50
STREAMS = 20
MEMORY = (0.05, 6.0)  # the share and the MiB by which memory may differ; the larger one counts
FILES = 8  # connections that happen to be open
LOOKS = 120
SEED = 7


class Look(NamedTuple):
    """Seconds since the start, resident MiB, open files, and the calls made so far."""

    at: float
    memory: float
    files: int
    counts: dict[str, int]


class Verdict(NamedTuple):
    """Medians of the second and the last quarter, and whether they are about equal."""

    name: str
    early: float
    late: float
    flat: bool


def judge(looks: list[Look]) -> list[Verdict]:
    """Whether a run was flat. The first quarter does not count: caches fill. Needs eight samples."""
    quarter = len(looks) // 4
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    verdicts: list[Verdict] = []
    for name, of in (("memory", lambda look: look.memory), ("files", lambda look: float(look.files))):
        before, after = statistics.median(map(of, early)), statistics.median(map(of, late))
        room = max(MEMORY[0] * before, MEMORY[1]) if name == "memory" else FILES
        verdicts.append(Verdict(name, before, after, after - before <= room))
    return verdicts


class _Soak:
    """The clients of one run."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.counts: Counter[str] = Counter()
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
        self.counts[kind if status < 400 else f"{kind}, status {status}"] += 1
        await asyncio.sleep(0.002)
        return body

    def _service(self) -> str:
        return f"soak-{self._luck.randrange(SERVICES)}"

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

    async def follow(self) -> None:
        while True:
            target = "/api/v1/events?" + "&".join(f"service={self._service()}" for _ in range(3))
            streams = await open_streams(self.url, target, STREAMS, lambda: b"event: change", self._seen)
            await asyncio.sleep(self._luck.uniform(1, 5))
            close_streams(streams)
            self.counts["streams"] += STREAMS

    def _seen(self, moment: float) -> None:
        self.counts["events"] += 1

    async def run(self, process: psutil.Process, seconds: float, say: Callable[[str], None]) -> list[Look]:
        actors = [
            *(self.read() for _ in range(4)),
            *(self.write() for _ in range(2)),
            self.read_unknown(),
            self.follow(),
        ]
        tasks = [asyncio.get_running_loop().create_task(actor) for actor in actors]
        looks: list[Look] = []
        begun = time.perf_counter()
        try:
            for number in range(1, LOOKS + 1):
                await asyncio.sleep(max(0.0, begun + seconds * number / LOOKS - time.perf_counter()))
                for task in tasks:
                    if task.done():
                        task.result()
                memory, files = process.memory_info().rss / (1 << 20), process.num_fds()
                looks.append(Look(time.perf_counter() - begun, memory, files, dict(self.counts)))
                if number % (LOOKS // 12) == 0:
                    say(f"{looks[-1].at:6.0f} s  {memory:7.1f} MiB  {files:4d} files  {sum(self.counts.values())} done")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return looks


def _upstream(url: str | None, say: Callable[[str], None]) -> tuple[str, list[Contender]]:
    if url is not None:
        return url, []
    try:
        server = contenders.rnacos()
    except Missing as error:
        say(f"{error}; a second proxy with the embedded registry stands in for it")
        server = contenders.proxy("embedded", name="upstream")
    return server.url, [server]


def run(minutes: float, upstream: str | None, say: Callable[[str], None]) -> int:
    """Prints the calls made and what they cost; the exit code is 1 if memory or files grew."""
    url, servers = _upstream(upstream, say)
    with contenders.running(*servers):
        proxy = contenders.proxy(url, "--push", "off")
        with contenders.running(proxy):
            soak = _Soak(proxy.url)
            looks = asyncio.run(soak.run(psutil.Process(proxy.process.pid), 60 * minutes, say))
    verdicts = judge(looks)
    for name, number in sorted(soak.counts.items()):
        print(f"{number:10d} {name}")
    for verdict in verdicts:
        state = "flat" if verdict.flat else "NOT FLAT"
        print(f"{verdict.name:>10} {verdict.early:.1f} in the second quarter, {verdict.late:.1f} in the last: {state}")
    print(json.dumps({v.name: {"early": v.early, "late": v.late, "flat": v.flat} for v in verdicts}))
    return 0 if all(verdict.flat for verdict in verdicts) else 1

"""Everything at once for a while: do memory and open files stay constant, and do all see the truth in the end?

Readers, writers, beaters, event streams that come and go, and clients that ask for unregistered services use one proxy,
while its resident memory and open files are sampled. They are constant if the last quarter of the samples has no more
than the second quarter, apart from what `MEMORY` and `FILES` allow; the slope is that of the last half. It does not
measure speed.

Each minute is a round: the actors of `tests/faults` run, the upstream is killed and comes back, and their invariants
must hold. At the end, every list read through the proxy must equal the upstream's, and so must the last state that an
event stream of all services, open all the time, has shown. Only outages may explain errors.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil

from loadtest import contenders
from loadtest.contenders import LIST, Contender, Missing
from loadtest.rounds import Sample, Series
from loadtest.soak_clients import Clients, Hosts, Outage, differences, hosts_of, services, unexplained
from loadtest.wire import Connection
from nacos_proxy.runtime import spawn, stop
from tests.faults.load import Load

MEMORY = (0.05, 6.0)  # the share and the MiB by which memory may differ; the larger one counts
FILES = 8  # connections that happen to be open
FULL = "2000"  # services: the cache is full after a minute, and memory constant from then on
LOOKS = 120
ROUND = 60.0  # seconds: a kill, an upstream that is away, and the time in which all agree again
NAMES = 4  # used again, so that what the rounds leave behind does not grow
KILL_AT, BACK_AT, SETTLE_AT = 10.0, 16.0, 40.0  # in each round
READ_AFTER = 3.0  # seconds after its start, until the upstream has read its own log; its lists grow meanwhile
SETTLE = 90.0  # seconds: longer than an instance without beats stays listed


class Look(NamedTuple):
    """Seconds since the start, resident MiB, open files, and the calls made so far."""

    at: float
    memory: float
    files: int
    counts: dict[str, int]


class Verdict(NamedTuple):
    """Medians of the second and the last quarter, whether they are about equal, and the slope of the last half."""

    name: str
    early: float
    late: float
    flat: bool
    per_hour: float


MEASURED: dict[str, Callable[[Look], float]] = {"memory": lambda look: look.memory, "files": lambda look: look.files}


def judge(looks: list[Look]) -> list[Verdict]:
    """Whether a run was flat. The first quarter does not count: caches fill. Needs eight samples."""
    quarter = len(looks) // 4
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    verdicts: list[Verdict] = []
    for name, of in MEASURED.items():
        before, after = statistics.median(map(of, early)), statistics.median(map(of, late))
        room = max(MEMORY[0] * before, MEMORY[1]) if name == "memory" else FILES
        per_hour = slope([(look.at, of(look)) for look in looks[len(looks) // 2 :]])
        verdicts.append(Verdict(name, before, after, after - before <= room, per_hour))
    return verdicts


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much the values grow in an hour (least squares), from at least two (seconds, value)."""
    times, values = zip(*points, strict=True)
    return 3600 * statistics.linear_regression(times, values).slope


class Soak:
    """One run against a proxy. `server` is None if the upstream is not ours to kill."""

    def __init__(self, proxy: Contender, upstream: str, server: Contender | None, say: Callable[[str], None]) -> None:
        self.clients = Clients(proxy.url)
        self.wrong: list[str] = []
        self._process = psutil.Process(proxy.process.pid)
        self._upstream = upstream
        self._server = server
        self._outages: list[Outage] = []
        self._say = say

    async def run(self, seconds: float) -> list[Look]:
        """Raises whatever ended one of the clients early."""
        self.clients.begun = time.perf_counter()
        stay = [spawn(actor, name="stays") for actor in self.clients.stay()]
        churn = [spawn(actor, name="churns") for actor in self.clients.churn()]
        rounds = spawn(self._rounds(seconds), name="rounds")
        try:
            looks = await self._watch(seconds, [*stay, *churn])
            await rounds
            for task in churn:
                await stop(task)
            await self._agree()
        finally:
            for task in (*stay, *churn, rounds):
                await stop(task)
        self.wrong += unexplained(self.clients.errors, self._outages)
        return looks

    def _now(self) -> float:
        return time.perf_counter() - self.clients.begun

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self._now()))

    async def _watch(self, seconds: float, tasks: list[asyncio.Task[None]]) -> list[Look]:
        looks: list[Look] = []
        for number in range(1, LOOKS + 1):
            await self._until(seconds * number / LOOKS)
            for task in tasks:
                if task.done():
                    task.result()
            memory, files = self._process.memory_info().rss / (1 << 20), self._process.num_fds()
            looks.append(Look(self._now(), memory, files, dict(self.clients.counts)))
            if number % (LOOKS // 12) == 0:
                done = sum(self.clients.counts.values())
                self._say(f"{looks[-1].at:6.0f} s  {memory:7.1f} MiB  {files:4d} files  {done} done")
        return looks

    async def _rounds(self, seconds: float) -> None:
        for number in range(int(seconds // ROUND)):
            begun = number * ROUND
            await self._until(begun)
            try:
                async with Load(self.clients.url, f"invariants-{number % NAMES}", pause=0.2) as load:
                    await self._until(begun + KILL_AT)
                    await self._outage(load, begun + BACK_AT)
                    await self._until(begun + SETTLE_AT)
                    await load.stop_writing()
                    await load.settled(self._upstream)
                    found = load.violations()
            except AssertionError as error:
                found = [repr(error)]
            for text in found:
                self._say(f"round {number + 1}: VIOLATION: {text}")
            self.wrong += [f"round {number + 1}: {text}" for text in found]
            self._say(f"round {number + 1}: {len(self.wrong)} violations so far")

    async def _outage(self, load: Load, back_at: float) -> None:
        """r-nacos loses some of the writes that it acknowledged just before a kill; which ones, its own list tells."""
        if self._server is None:
            return
        since = self._now()
        await asyncio.to_thread(self._server.kill)
        before = load.acknowledged.copy()
        await self._until(back_at)
        load.rebuilding = True
        await asyncio.to_thread(self._server.start)
        self._outages.append(Outage(since, self._now()))
        await asyncio.sleep(READ_AFTER)
        load.rebuilding = False
        load.lost = load.acknowledged.lost_by(await load.shown(self._upstream, load.changing), before)
        if load.lost:
            self._say(f"the upstream itself lost {len(load.lost)} writes in the kill")

    async def _agree(self) -> None:
        """Waits until the proxy and the event stream show what the upstream lists; says what still differs."""
        until = self._now() + SETTLE
        while True:
            truth, listed = await _lists(self._upstream), await _lists(self.clients.url)
            wrong = differences("a list", listed, truth) + differences("the event stream", self.clients.followed, truth)
            if not wrong or self._now() > until:
                self.wrong += wrong
                return
            await asyncio.sleep(1.0)


async def _lists(url: str) -> dict[str, Hosts]:
    connection = Connection(url)
    lists = {service: json.loads((await connection.ask("GET", LIST + service))[1]) for service in services()}
    await connection.close()
    return {service: hosts_of(data) for service, data in lists.items()}


def _upstream(url: str | None, say: Callable[[str], None]) -> tuple[str, list[Contender]]:
    if url is not None:
        return url, []
    try:
        server = contenders.rnacos()
    except Missing as error:
        say(f"{error}; a second proxy with the embedded registry stands in for it")
        server = contenders.proxy("embedded", name="upstream")
    return server.url, [server]


def run(minutes: float, upstream: str | None, say: Callable[[str], None]) -> tuple[Series, bool]:
    """Prints the calls made, what they cost and what was wrong. The series, and whether all was as it must be."""
    url, servers = _upstream(upstream, say)
    with contenders.running(*servers):
        proxy = contenders.proxy(url, "--cache-max-services", FULL)
        with contenders.running(proxy):
            soak = Soak(proxy, url, next(iter(servers), None), say)
            looks = asyncio.run(soak.run(60 * minutes))
    memory, files = verdicts = judge(looks)
    for name, number in sorted(soak.clients.counts.items()):
        print(f"{number:10d} {name}")
    for verdict in verdicts:
        state = "flat" if verdict.flat else "NOT FLAT"
        print(f"{verdict.name:>10} {verdict.early:.1f} in the second quarter, {verdict.late:.1f} in the last: {state};"
              f" {verdict.per_hour:+.2f} an hour over the last half")  # fmt: skip
    for text in soak.wrong:
        print(f"     WRONG {text}")
    figures = {
        "memory": memory.late,
        "memory_per_hour": memory.per_hour,
        "files": files.late,
        "files_per_hour": files.per_hour,
        "calls": float(sum(soak.clients.counts.values())),
        "violations": float(len(soak.wrong)),
    }
    series = Series(f"soak, {minutes:g} minutes", [Sample(proxy.name, figures)])
    return series, not soak.wrong and all(verdict.flat for verdict in verdicts)

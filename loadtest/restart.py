"""A proxy that knows 10,000 services of 10 instances: its memory, and its start with all of them on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from loadtest import contenders
from loadtest.contenders import LIST, Contender, pause
from loadtest.load import Usage
from loadtest.rounds import Sample, Series, interleave
from loadtest.stand_in import StandIn, hosts
from loadtest.wire import Caller, at_once

OURS = "nacos-proxy"
EMPTY = "nacos-proxy, nothing on disk"
INSTANCES = 10
WITHIN = 60.0  # seconds to the first answer


def _of_its_own(service: str) -> str:
    """No two services share an address, so nothing that the proxy keeps is smaller than in reality."""
    return hosts(INSTANCES, first=INSTANCES * int(service.rpartition("-")[2]))


def _start(contender: Contender) -> dict[str, float]:
    """Seconds from the start of its process to the first open connection and to the first list."""
    begun = time.perf_counter()
    contender.spawn()
    usage, connected = Usage(contender.process.pid), 0.0
    while True:
        try:
            caller = Caller(contender.url)
            connected = connected or time.perf_counter() - begun
            caller.get(f"{LIST}loadtest-7")
            answered = time.perf_counter() - begun
            caller.close()
            return {"answer_s": answered, "connect_s": connected, "cpu_s": usage.cpu_seconds()}
        except (OSError, RuntimeError) as error:
            if time.perf_counter() - begun > WITHIN:
                raise RuntimeError(f"{contender.name} did not answer") from error
            pause(0.002)


def _rounds(field: dict[str, Contender], rounds: int, series: Series, say: Callable[[str], None]) -> None:
    for contender in field.values():
        contender.end()
    for number, name in interleave(list(field), rounds):
        series.add(Sample(name, figures := _start(field[name])))
        field[name].end()
        say(f"{series.question}, round {number + 1}, {name}: {figures['answer_s']:.2f} s")


async def _measure(services: int, rounds: int, say: Callable[[str], None]) -> tuple[Series, Series]:
    options = ("--upstream-dialect", "v1", "--push", "off")
    memory, start = (
        Series(f"memory, {services:,} services of {INSTANCES}"),
        Series(f"start, {services:,} services on disk"),
    )
    async with StandIn(_of_its_own).serving() as upstream:
        full = await asyncio.to_thread(contenders.proxy, upstream, *options)
        empty = await asyncio.to_thread(contenders.proxy, upstream, *options, name=EMPTY)
        with contenders.running(full, empty):
            for name, contender in ((EMPTY, empty), (OURS, full)):
                if contender is full:
                    for _ in range(3):  # so that each has a prepared answer, too
                        await at_once(full.url, [("GET", f"{LIST}loadtest-{n}") for n in range(services)])
                memory.add(Sample(name, {"memory": Usage(contender.process.pid).resident()}))
                say(f"{memory.question}, {name}: {memory.values(name, 'memory')[0]:.0f} MiB")
            await asyncio.to_thread(_rounds, {EMPTY: empty, OURS: full}, rounds, start, say)
    return memory, start


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts. The upstream is a stand-in."""
    services, rounds = (1_000, 2) if quick else (10_000, 5)
    memory, start = asyncio.run(_measure(services, rounds, say))
    yield memory, EMPTY, "memory"
    yield start, EMPTY, "answer_s"

"""Rate and latency of reads: one hot service, random ones, many connections, unique headers, concurrent writes."""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loadtest import contenders, goals
from loadtest.contenders import LIST, Contender, Missing, register_all, request
from loadtest.load import Usage, random_targets, unique_headers, wrk
from loadtest.rounds import Sample, Series, interleave

HOT = "loadtest-hot"
MANY = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load: Lua for wrk, connections, and what happens at the same time.

    `against_hot`: compared with our own hot rate, which is measured in the same rounds.
    """

    question: str
    script: str = ""
    connections: int = 32
    path: str = LIST + HOT
    writes_a_second: int = 0
    against_hot: bool = False


def loads(many: int) -> list[Load]:
    targets = [f"{LIST}loadtest-{n}" for n in range(many)]
    return [
        Load("reads, one hot service"),
        Load(f"reads, {many} services at random", random_targets(targets), against_hot=True),
        Load("reads, 200 connections", connections=200),
        Load("reads, unique header per request", unique_headers()),
        Load("reads, 100 writes a second beside", writes_a_second=100, against_hot=True),
    ]


def measure(load: Load, contender: Contender, seconds: float) -> Sample:
    usage = Usage(contender.process.pid)
    stop = threading.Event()
    writer = _writer(contender, load.writes_a_second, stop)
    try:
        figures = wrk(contender.url + load.path, seconds=seconds, connections=load.connections, script=load.script)
    finally:
        stop.set()
        if writer is not None:
            writer.join()
    return Sample(contender.name, {**figures, **usage.figures(figures["requests"])})


def _writer(contender: Contender, rate: int, stop: threading.Event) -> threading.Thread | None:
    """Modifies an instance of another service `rate` times per second, as other clients of the same host would."""
    if not rate or not contender.name.startswith("nacos-proxy"):
        return None

    def run() -> None:
        n = 0
        while not stop.wait(1 / rate):
            n += 1
            query = f"serviceName=loadtest-beside&ip=10.9.9.{n % 200 + 1}&port=80&ephemeral=false&weight={n % 9 + 1}"
            try:
                request("POST", f"{contender.url}/nacos/v1/ns/instance?{query}")
            except urllib.error.URLError:
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    seconds, rounds, many = (2.0, 2, 100) if quick else (6.0, 5, MANY)
    left_out: list[str] = []
    started: list[Contender] = []
    try:
        if upstream is None:
            server = contenders.rnacos()
            started.append(server)
            upstream = server.url
        else:
            server = None
        register_all(upstream, [HOT, *(f"loadtest-{n}" for n in range(many))], 10)
        say(f"upstream ready at {upstream}: {HOT} and {many} services of 10 instances")
        field: list[Contender] = [] if server is None else [server]
        body = request("GET", upstream + LIST + HOT)
        for start in (
            lambda: contenders.nginx(upstream or ""),
            lambda: contenders.raw_asgi(body),
            lambda: contenders.proxy(upstream or ""),
        ):
            try:
                contender = start()
            except Missing as error:
                left_out.append(str(error))
                say(f"left out: {error}")
                continue
            started.append(contender)
            field.append(contender)
        for load in loads(many):
            yield _question(load, field, seconds, rounds, say), "nginx proxy_cache", "rate"
    finally:
        for contender in started:
            contender.stop()


def _question(load: Load, field: list[Contender], seconds: float, rounds: int, say: Callable[[str], None]) -> Series:
    series = Series(load.question)
    runs = {contender.name: (load, contender) for contender in field}
    if load.against_hot:
        runs |= {f"{c.name}, one hot service": (loads(0)[0], c) for c in field if c.name == goals.OURS}
    for what, contender in runs.values():
        measure(what, contender, 1.0)
    for number, name in interleave(list(runs), rounds):
        figures = measure(*runs[name], seconds).figures
        series.add(Sample(name, figures))
        say(f"{load.question}, round {number + 1}, {name}: {figures['rate']:,.0f}/s, p99 {figures['p99']:.2f} ms")
    return series

"""Rate and latency of reads: as SDKs send them, of one service, of many, over many connections, beside writes."""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from loadtest import bare, contenders, nginx, sdks
from loadtest.contenders import LIST, Contender, Missing, register_all, request
from loadtest.load import Usage, in_turn, random_targets, wrk
from loadtest.rounds import Sample, Series, interleave
from loadtest.wire import Caller

HOT = "loadtest-hot"
OURS = "nacos-proxy"
OURS_HOT = f"{OURS}, one hot service"
SDK_SERVICES = 20  # what one host uses
SDK_PORTS = (46_001, 46_002, 46_003, 46_004)  # of the UDP sockets of four processes on that host
ALL = ("r-nacos", nginx.CACHE, OURS)


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load: Lua for wrk, connections, who takes part, and what happens at the same time.

    `against_hot`: compared with our own hot rate, which is measured in the same rounds.
    """

    question: str
    script: str = ""
    connections: int = 32
    field: Sequence[str] = ALL
    writes_a_second: int = 0
    against_hot: bool = False


def _as_sdk(read: Callable[[str, int], list[str]], ports: Sequence[int]) -> str:
    services = [f"loadtest-{n}" for n in range(SDK_SERVICES)]
    return in_turn([head for service in services for port in ports for head in read(service, port)])


HOT_LOAD = Load("reads, one hot service", field=("r-nacos", nginx.CACHE, bare.NAME, OURS))


def loads(many: int) -> list[Load]:
    """A client polls what it subscribes to, with its own UDP port; without a subscription it asks with port 0."""
    targets = [f"{LIST}loadtest-{n}" for n in range(many)]
    return [
        Load("reads, as the Java SDK polls", _as_sdk(sdks.java_read, SDK_PORTS), field=(*ALL, nginx.CONSTANT)),
        Load("reads, as the Java SDK asks once", _as_sdk(sdks.java_read, [0])),
        Load("reads, as the Go SDK polls", _as_sdk(sdks.go_read, SDK_PORTS)),
        Load("reads, as the Node SDK polls", _as_sdk(sdks.node_read, SDK_PORTS)),
        Load("reads, as the Python SDK asks", _as_sdk(sdks.python_read, [0])),
        HOT_LOAD,
        replace(HOT_LOAD, question="reads, 200 connections", connections=200),
        Load(f"reads, {many} services at random", random_targets(targets), against_hot=True),
        Load("reads, 100 writes a second beside", writes_a_second=100, against_hot=True),
    ]


def measure(load: Load, contender: Contender, seconds: float) -> Sample:
    usage = Usage(contender.process.pid)
    stop = threading.Event()
    writer = _writer(contender, load.writes_a_second, stop)
    try:
        figures = wrk(contender.url + LIST + HOT, seconds=seconds, connections=load.connections, script=load.script)
    finally:
        stop.set()
        if writer is not None:
            writer.join()
    return Sample(contender.name, {**figures, **usage.figures(figures["requests"])})


def _writer(contender: Contender, rate: int, stop: threading.Event) -> threading.Thread | None:
    """Modifies an instance of another service `rate` times per second, as other clients of the same host would."""
    if not rate or contender.name != OURS:
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


def _start(upstream: str, started: list[Contender], say: Callable[[str], None]) -> None:
    """The contenders in front of that server. The bare protocol writes what our proxy answers."""
    try:
        started += [nginx.cache(upstream), nginx.constant()]
    except Missing as error:
        say(f"left out: {error}")
    ours = contenders.proxy(upstream)
    started.append(ours)
    caller = Caller(ours.url)
    started.append(bare.protocol(caller.get(LIST + HOT)))
    caller.close()


def run(
    quick: bool, upstream: str | None, say: Callable[[str], None], only: str = ""
) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    seconds, rounds, many = (1.0, 2, 100) if quick else (3.0, 5, 1000)
    started: list[Contender] = []
    try:
        if upstream is None:
            started.append(contenders.rnacos())
            upstream = started[0].url
        register_all(upstream, [HOT, *(f"loadtest-{n}" for n in range(many))], 10)
        say(f"upstream ready at {upstream}: {HOT} and {many} services of 10 instances")
        _start(upstream, started, say)
        for load in (load for load in loads(many) if only in load.question):
            yield _question(load, started, seconds, rounds, say), nginx.CACHE, "rate"
    finally:
        for contender in started:
            contender.stop()


def _question(load: Load, started: list[Contender], seconds: float, rounds: int, say: Callable[[str], None]) -> Series:
    series = Series(load.question)
    runs = {contender.name: (load, contender) for contender in started if contender.name in load.field}
    if load.against_hot:
        runs[OURS_HOT] = (HOT_LOAD, runs[OURS][1])
    for what, contender in runs.values():
        measure(what, contender, 1.0)
    for number, name in interleave(list(runs), rounds):
        figures = measure(*runs[name], seconds).figures
        series.add(Sample(name, figures))
        say(f"{load.question}, round {number + 1}, {name}: {figures['rate']:,.0f}/s, p99 {figures['p99']:.2f} ms")
    return series

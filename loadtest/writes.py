"""Beats and registrations as the Java SDK sends them: what a write costs, over 1 and over 32 connections."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

from loadtest import contenders, nginx, sdks
from loadtest.contenders import Contender, Missing
from loadtest.load import Usage, in_turn, wrk
from loadtest.rounds import Sample, Series, interleave
from loadtest.wire import at_once

INSTANCES = [(f"loadtest-w{n}", f"10.3.{n}.{m}") for n in range(100) for m in range(1, 11)]
CALLS = {"registrations": sdks.java_register, "beats": sdks.java_beat}


def _register(url: str) -> None:
    """A beat is of an instance that was registered the same way."""
    targets = [sdks.java_register(*instance).split(" ", 2)[1] for instance in INSTANCES]
    asyncio.run(at_once(url, [("POST", target) for target in targets]))


def run(
    quick: bool, upstream: str | None, say: Callable[[str], None], only: str = ""
) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    seconds, rounds = (1.0, 2) if quick else (3.0, 5)
    started: list[Contender] = []
    try:
        if upstream is None:
            started.append(contenders.rnacos())
        url = upstream or started[0].url
        try:
            started.append(nginx.reverse(url))
        except Missing as error:
            say(f"left out: {error}")
        started.append(contenders.proxy(url))
        field = {contender.name: contender for contender in started}
        for kind, connections in itertools.product(CALLS, (1, 32)):
            question = f"writes, {kind} as the Java SDK, {connections} connection{'s'[: connections - 1]}"
            if only in question:
                yield _question(question, kind, connections, field, seconds, rounds, say), nginx.REVERSE, "rate"
    finally:
        for contender in started:
            contender.stop()


def _question(question: str, kind: str, connections: int, field: dict[str, Contender], seconds: float, rounds: int,
              say: Callable[[str], None]) -> Series:  # fmt: skip
    script = in_turn([CALLS[kind](*instance) for instance in INSTANCES])
    series = Series(question)
    for contender in field.values():
        _register(contender.url)
    for number, name in interleave(list(field), rounds):
        usage = Usage(field[name].process.pid)
        figures = wrk(field[name].url, seconds=seconds, connections=connections, script=script)
        series.add(Sample(name, {**figures, **usage.figures(figures["requests"])}))
        found = f"{figures['rate']:,.0f}/s, p50 {figures['p50']:.2f} ms, p99 {figures['p99']:.2f} ms"
        say(f"{question}, round {number + 1}, {name}: {found}")
    return series

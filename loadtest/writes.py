"""Register and beat, through the proxy and directly: what a write costs, with 1 and with 32 callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from loadtest import contenders
from loadtest.contenders import Contender
from loadtest.load import Usage
from loadtest.rounds import Sample, Series, interleave
from loadtest.wire import Connection, percentile


def _register(n: int) -> tuple[str, str]:
    address = f"10.3.{n // 250 % 250}.{n % 250 + 1}"
    return "POST", f"/nacos/v1/ns/instance?serviceName=loadtest-w{n % 20}&ip={address}&port=80&ephemeral=true"


def _beat(n: int) -> tuple[str, str]:
    method_target = _register(n)[1].replace("/instance?", "/instance/beat?")
    return "PUT", method_target


async def _load(url: str, call: Callable[[int], tuple[str, str]], callers: int, seconds: float) -> dict[str, float]:
    taken: list[float] = []
    errors = 0
    until = time.perf_counter() + seconds
    numbers = iter(range(10_000_000))

    async def caller() -> None:
        nonlocal errors
        connection = Connection(url)
        while time.perf_counter() < until:
            method, target = call(next(numbers) % 2000)
            begun = time.perf_counter()
            status, _ = await connection.ask(method, target)
            taken.append(1000 * (time.perf_counter() - begun))
            errors += status != 200
        await connection.close()

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    rate = len(taken) / (time.perf_counter() - begun)
    shares = {"p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99), "p999": percentile(taken, 0.999)}
    return {"rate": rate, **shares, "errors": float(errors), "requests": float(len(taken))}


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    seconds, rounds = (1.5, 2) if quick else (5.0, 5)
    started: list[Contender] = []
    try:
        server = contenders.rnacos() if upstream is None else None
        started += [server] if server else []
        url = upstream or started[0].url
        started.append(contenders.proxy(url))
        field = {c.name: c for c in started}
        for name, call in (("register", _register), ("beat", _beat)):
            for callers in (1, 32):
                series = Series(f"writes, {name}, {callers} caller{'s' if callers > 1 else ''}")
                for number, contender in interleave(list(field), rounds):
                    usage = Usage(field[contender].process.pid)
                    figures = asyncio.run(_load(field[contender].url, call, callers, seconds))
                    series.add(Sample(contender, {**figures, **usage.figures(figures["requests"])}))
                    rate, p50 = figures["rate"], figures["p50"]
                    say(f"{series.question}, round {number + 1}, {contender}: {rate:,.0f}/s, p50 {p50:.2f} ms")
                yield series, started[0].name, "rate"
    finally:
        for contender in started:
            contender.stop()

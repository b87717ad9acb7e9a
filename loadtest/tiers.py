"""Hosts under three site proxies: requests to Nacos, a change at the last host, and a site proxy that is killed.

The server pushes at once; a real one waits for half a second first. The hosts share a process, and all processes the
machine, so a change arrives later than at hosts of their own.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial

from loadtest import contenders
from loadtest.contenders import Contender, register_all, request
from loadtest.relay import Relay
from loadtest.rounds import Sample, Series
from loadtest.tier_hosts import MARK, Host, Hosts, most_in_a_bucket, truth
from loadtest.wire import percentile

SITES = 3
SERVICES = [f"loadtest-tier-{n}" for n in range(20)]
AWAY = 2.0  # seconds for which a site proxy is away
WITHIN = 60.0  # seconds in which all hosts must be right again
LIMITS = ("--subscribers-per-client", "20000", "--max-connections", "30000")


def _change(server: str, number: int) -> Callable[[], bytes]:
    service = SERVICES[number % len(SERVICES)]
    query = f"serviceName={service}&ip=10.1.0.1&port=8080&ephemeral=false&metadata={MARK}%3D{number}"
    return partial(request, "POST", f"{server}/nacos/v1/ns/instance?{query}")


class Tiers:
    """A server, a relay that counts, and the site proxies behind it."""

    def __init__(self, server: str, relay: Relay, sites: list[Contender], say: Callable[[str], None]) -> None:
        self._server = server
        self._relay = relay
        self._sites = sites
        self._say = say
        self._changes = 0

    def hosts(self, number: int) -> Hosts:
        return Hosts([site.url for site in self._sites], number, SERVICES)

    async def rate(self, number: int, settle: float, seconds: float) -> dict[str, float]:
        """What reaches the server while nothing changes. `seconds`: a multiple of the 30 s between polls of a list."""
        async with self.hosts(number).following():
            await asyncio.sleep(settle)
            before, begun = self._relay.requests, time.perf_counter()
            await asyncio.sleep(seconds)
            return {"requests_a_second": (self._relay.requests - before) / (time.perf_counter() - begun)}

    async def changes(self, number: int, times: int) -> dict[str, float]:
        """How long changes take to the median and to the last host."""
        hosts = self.hosts(number)
        last: list[float] = []
        median: list[float] = []
        async with hosts.following():
            for _ in range(times):
                await asyncio.sleep(0.3)
                self._changes += 1
                taken = await hosts.hear(str(self._changes), _change(self._server, self._changes))
                last.append(max(taken))
                median.append(percentile(taken, 0.5))
        return {
            "last_p50_ms": percentile(last, 0.5),
            "last_p99_ms": percentile(last, 0.99),
            "median_ms": percentile(median, 0.5),
        }

    async def killed(self, number: int) -> dict[str, float]:
        """A site proxy is killed, services change, and it comes back: do its hosts end with what there is?"""
        hosts, site = self.hosts(number), self._sites[0]
        async with hosts.following():
            hosts.http[0].moments.clear()
            await asyncio.to_thread(site.kill)
            for _ in range(len(SERVICES) // 2):
                self._changes += 1
                await asyncio.to_thread(_change(self._server, self._changes))
            await asyncio.sleep(AWAY)
            there = await truth(self._server, SERVICES)
            end, mine = time.perf_counter() + WITHIN, hosts.of_site[0]

            def wrong() -> Iterator[Host]:
                """Lazily, because all processes share the machine."""
                return (host for host in mine if any(host.shows(name) != there[name] for name in SERVICES))

            await asyncio.to_thread(site.start)
            begun = time.perf_counter()
            while next(wrong(), None) is not None and time.perf_counter() < end:
                await asyncio.sleep(0.05)
            most = most_in_a_bucket(hosts.http[0].moments)
            return {
                "right_within_s": time.perf_counter() - begun,
                "wrong": float(sum(1 for _ in wrong())),
                "attempts_in_100_ms": float(most),
                "attempts_in_100_ms_percent": 100 * most / len(mine),
            }


async def _all(quick: bool, server: str, say: Callable[[str], None]) -> list[tuple[Series, str, str]]:
    sizes, settle, seconds, times = ((10, 50), 1.0, 5.0, 3) if quick else ((10, 100, 1000), 12.0, 60.0, 30)
    rates = Series("tiers, requests to Nacos by hosts")
    changes = Series("tiers, a change to the last of the hosts")
    killed = Series("tiers, a site proxy killed and back")
    relay, sites = Relay(server), list[Contender]()
    async with relay.serving() as url:
        try:
            for n in range(SITES):
                sites.append(await asyncio.to_thread(contenders.proxy, url, *LIMITS, name=f"site {n}"))
            tiers = Tiers(server, relay, sites, say)
            for number in sizes:
                name = f"{number} hosts"
                rates.add(Sample(name, await tiers.rate(number, settle, seconds)))
                changes.add(Sample(name, await tiers.changes(number, times)))
                killed.add(Sample(name, await tiers.killed(number)))
                for series in (rates, changes, killed):
                    found = ", ".join(f"{what} {value:.1f}" for what, value in series.samples[-1].figures.items())
                    say(f"{series.question}, {name}: {found}")
        finally:
            for site in sites:
                await asyncio.to_thread(site.stop)
    first = f"{sizes[0]} hosts"
    return [(rates, first, "requests_a_second"), (changes, first, "last_p99_ms"), (killed, first, "right_within_s")]


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    logging.getLogger("nacos_proxy").setLevel(logging.ERROR)  # each host would say that its site is away
    server = contenders.proxy(name="server") if upstream is None else None
    url = upstream or (server.url if server else "")
    try:
        register_all(url, SERVICES, 10)
        yield from asyncio.run(_all(quick, url, say))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if server is not None:
            server.stop()

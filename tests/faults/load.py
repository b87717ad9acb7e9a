"""Clients of a proxy while something breaks, and the invariants that must hold in any case.

Readers, writers, beaters and followers of event streams run concurrently against one URL and record what they see.
`violations` lists what must never happen:

- a read that fails although the service was read before, or that lacks an instance;
- an acknowledged write that is lost;
- a refused beat of a registered instance;
- a gap, a repeat or an id that does not grow in an event stream, also across reconnects.

Nothing is timed. A step of an actor is one request and its answer; tests wait for steps, not for seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from nacos_proxy.runtime import SystemClock, spawn, stop
from tests.helpers.sse import Decoder, Message

LIST = "/nacos/v1/ns/instance/list"
INSTANCE = "/nacos/v1/ns/instance"
BEAT = "/nacos/v1/ns/instance/beat"

# A proxy may start slowly on a busy machine; these tests look for lost instances, not for missed beats.
METADATA = '{"n":"%d","preserved.heart.beat.timeout":"60000","preserved.ip.delete.timeout":"120000"}'

CLOCK = SystemClock()

Address = str


async def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Waits for a condition that must become true; the limit is for a program that hangs."""
    end = CLOCK.now() + seconds
    while not condition():
        if CLOCK.now() > end:
            raise AssertionError(f"this never came: {what}")
        await CLOCK.sleep_until(CLOCK.now() + 0.01)


def addresses(hosts: list[dict[str, Any]]) -> frozenset[Address]:
    return frozenset(f"{host['ip']}:{host['port']}" for host in hosts)


@dataclass
class Read:
    """One read: what it had to contain when it began, and the answer. `status` 0: no answer.

    `rebuilding`: the upstream itself did not list everything yet.
    """

    service: str
    must: frozenset[Address]
    must_not: frozenset[Address]
    status: int
    hosts: frozenset[Address] = frozenset()
    cache: str = ""
    text: str = ""
    broken: bool = False
    rebuilding: bool = False

    @property
    def missing(self) -> frozenset[Address]:
        """What it lacks. While the upstream rebuilds its lists, only a loss of more than half counts: a smaller one is
        what the upstream says (docs/reliability.md, `empty_list_share`)."""
        missing = self.must - self.hosts
        return frozenset() if self.rebuilding and 2 * len(missing) <= len(self.must | self.hosts) else missing

    @property
    def ghosts(self) -> frozenset[Address]:
        """What it still shows. While the upstream rebuilds its lists, it shows deregistered instances itself."""
        return frozenset() if self.rebuilding else self.must_not & self.hosts


@dataclass
class Acknowledged:
    """The answers to writers. `unknown`: addresses whose last write had no answer, or an error."""

    there: set[Address] = field(default_factory=set)
    gone: set[Address] = field(default_factory=set)
    unknown: set[Address] = field(default_factory=set)
    refused: int = 0

    def copy(self) -> Acknowledged:
        return Acknowledged(set(self.there), set(self.gone))

    def lost_by(self, kept: frozenset[Address], before: Acknowledged) -> frozenset[Address]:
        """A server was killed and has `kept`. The writes acknowledged `before` that it lost itself become unknown."""
        lost = (before.there & self.there) - kept | (before.gone & self.gone & kept)
        self.there -= lost
        self.gone -= lost
        self.unknown |= lost
        return frozenset(lost)


def number_of(id: str) -> int:
    """The number of an event in its epoch."""
    return int(id.rpartition("-")[2])


class Follower:
    """A reader of an event stream that reconnects again and again with `Last-Event-ID`."""

    def __init__(self, http: httpx.AsyncClient, services: list[str], rng: random.Random) -> None:
        self.states: dict[str, dict[Address, dict[str, Any]]] = {}
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self.upstream: list[str] = []
        self.faults: list[str] = []
        self.connects = 0
        self.resets = 0
        self.last_id = ""
        self._http = http
        self._services = services
        self._rng = rng

    async def run(self) -> None:
        while True:
            try:
                await self._read_some(self._rng.randint(3, 20))
            except httpx.HTTPError:
                await CLOCK.sleep_until(CLOCK.now() + 0.05)

    async def _read_some(self, number: int) -> None:
        decoder = Decoder(self.last_id)
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        params = [("service", service) for service in self._services]
        async with self._http.stream("GET", "/api/v1/events", params=params, headers=headers, timeout=60) as stream:
            if stream.status_code != 200:
                await CLOCK.sleep_until(CLOCK.now() + 0.05)
                return
            self.connects += 1
            taken = 0
            async for piece in stream.aiter_bytes():
                for message in decoder.feed(piece):
                    self._take(message, message.id != self.last_id)
                    taken += 1
                if taken >= number:
                    return

    def _take(self, message: Message, numbered: bool) -> None:
        data = json.loads(message.data)
        if numbered:
            self._follow(message.id, message.event)
        self.seen.append((message.event, message.id, data))
        if message.event == "upstream":
            self.upstream.append(data["state"])
        elif message.event == "snapshot":
            self.resets += bool(data.get("reset"))
            self.states[data["name"]] = by_address(data["hosts"])
        else:
            self._change(message.id, data)

    def _follow(self, id: str, event: str) -> None:
        """Ids grow; a new epoch (the proxy started again) begins with snapshots."""
        epoch, old_epoch = (text.rpartition("-")[0].partition(".")[0] for text in (id, self.last_id))
        if self.last_id and epoch == old_epoch and number_of(id) <= number_of(self.last_id):
            self.faults.append(f"{event} {id} came behind {self.last_id}")
        if self.last_id and epoch != old_epoch and event == "change":
            self.faults.append(f"a change {id} of another run came behind {self.last_id} without a snapshot")
        self.last_id = id

    def _change(self, id: str, data: dict[str, Any]) -> None:
        known = self.states.get(data["name"], {})
        after = by_address(data["hosts"])
        added, removed = addresses(data["added"]), by_address(data["removed"])
        modified = addresses(data["modified"])
        before = {a: h for a, h in after.items() if a not in added} | removed
        same = {a: h for a, h in before.items() if a not in modified}
        if before.keys() != known.keys() or any(known[a] != h for a, h in same.items()):
            self.faults.append(f"change {id} of {data['name']}: before it {sorted(before)}, here was {sorted(known)}")
        if after == known:
            self.faults.append(f"change {id} of {data['name']} changes nothing here: a repeat")
        self.states[data["name"]] = after


def by_address(hosts: list[dict[str, Any]]) -> dict[Address, dict[str, Any]]:
    return {f"{host['ip']}:{host['port']}": host for host in hosts}


class Load:
    """`async with Load(url, "name")`: the actors run from their first good answers until the end."""

    def __init__(
        self, url: str, name: str, *, seed: int = 7, beaters: int = 4, writers: int = 2, pause: float = 0.01
    ) -> None:
        self.beating, self.changing = f"{name}-beating", f"{name}-changing"
        self.rng = random.Random(seed)
        self.http = httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=None)
        )
        self.beaters = [f"10.1.0.{n + 1}:80" for n in range(beaters)]
        self.acknowledged = Acknowledged()
        self.lost: frozenset[Address] = frozenset()  # by a killed server itself, which no proxy can know
        self.reads: list[Read] = []
        self.beats: list[tuple[int, str, str]] = []
        self.followers = [Follower(self.http, [f"DEFAULT_GROUP@@{s}" for s in self.services], self.rng) for _ in "ab"]
        self.steps = {"reader": 0, "writer": 0, "beater": 0}
        self.may_break = False  # broken connections are no violation while the test kills the proxy
        self.rebuilding = False  # a killed server has come back, and reads its own state
        self._writers = writers
        self._pause = pause
        self._names = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def services(self) -> list[str]:
        return [self.beating, self.changing]

    async def __aenter__(self) -> Load:
        for number, address in enumerate(self.beaters):
            assert (await self._register(self.beating, address, METADATA % number, 2.0)) == 200
        assert await self._write(self.changing, "10.3.0.1:80") == 200
        for service in self.services:
            for path in (LIST + f"?serviceName={service}", f"/api/v1/services/{service}"):
                assert (await self.http.get(path)).status_code == 200
        actors = [self._reader(0), self._reader(1), self._beater(), *(self._writer() for _ in range(self._writers))]
        self._tasks = [spawn(actor, name="actor") for actor in actors]
        self._tasks += [spawn(follower.run(), name="follower") for follower in self.followers]
        await self.until_followed()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.rest()
        await self.http.aclose()

    async def rest(self) -> None:
        """Stops all actors."""
        for task in self._tasks:
            await stop(task)

    async def stop_writing(self) -> None:
        """Stops the writers, so that everybody can come to the same state."""
        for task in self._tasks[3 : 3 + self._writers]:
            await stop(task)

    async def more(self, steps: int) -> None:
        """Waits until each kind of actor has taken `steps` more steps."""
        wanted = {actor: number + steps for actor, number in self.steps.items()}
        await until(lambda: all(self.steps[a] >= n for a, n in wanted.items()), f"{steps} more steps of {self.steps}")

    async def until_followed(self) -> None:
        await until(lambda: all(len(f.states) == 2 for f in self.followers), "the followers' first snapshots")

    # actors

    async def _wait(self) -> None:
        await CLOCK.sleep_until(CLOCK.now() + self._pause)

    async def _reader(self, number: int) -> None:
        for turn in itertools.count(number):
            await self._read(self.services[turn % 2], rest=number == 1)
            self.steps["reader"] += 1
            await self._wait()

    async def _read(self, service: str, *, rest: bool) -> None:
        path = f"/api/v1/services/{service}" if rest else f"{LIST}?serviceName={service}"
        there, not_there = self.expected(service)
        rebuilding = self.rebuilding
        # the Java SDK sends a unique RequestId; the other reader always sends the same bytes
        headers = {"RequestId": str(len(self.reads))} if len(self.reads) % 2 else {}
        try:
            reply = await self.http.get(path, headers=headers)
        except httpx.HTTPError as error:
            self.reads.append(Read(service, there, not_there, 0, text=repr(error), broken=self.may_break))
            return
        read = Read(service, there, not_there, reply.status_code, cache=reply.headers.get("cache-status", ""))
        if reply.status_code == 200:
            read.hosts = addresses(reply.json()["hosts"])
        else:
            read.text = reply.text
        # writes during the read may or may not show
        still, still_not = self.expected(service)
        read.must, read.must_not = read.must & still, read.must_not & still_not
        read.rebuilding = rebuilding or self.rebuilding
        self.reads.append(read)

    def expected(self, service: str) -> tuple[frozenset[Address], frozenset[Address]]:
        """What a list of the service must and must not contain now."""
        if service == self.beating:
            return frozenset(self.beaters), frozenset()
        return frozenset(self.acknowledged.there), frozenset(self.acknowledged.gone)

    async def _writer(self) -> None:
        """It rests while a server rebuilds its lists: r-nacos undoes some of what it acknowledges meanwhile."""
        while True:
            while self.rebuilding:
                await self._wait()
            there = sorted(self.acknowledged.there)
            if len(there) > 5 and self.rng.random() < 0.6:
                await self._remove(self.changing, self.rng.choice(there))
            else:
                number = next(self._names)
                await self._write(self.changing, f"10.2.{number // 250}.{number % 250 + 1}:80")
            self.steps["writer"] += 1
            await self._wait()

    async def _write(self, service: str, address: Address) -> int:
        self.acknowledged.unknown.add(address)
        # persistent, so that a missing beat does not remove it
        status = await self._register(service, address, "{}", 1.0, ephemeral="false")
        if status == 200:
            self.acknowledged.unknown.discard(address)
            self.acknowledged.there.add(address)
        else:
            self.acknowledged.refused += 1
        return status

    async def _remove(self, service: str, address: Address) -> None:
        self.acknowledged.there.discard(address)
        self.acknowledged.unknown.add(address)
        ip, _, port = address.partition(":")
        params = {"serviceName": service, "ip": ip, "port": port, "ephemeral": "false"}
        try:
            reply = await self.http.delete(INSTANCE, params=params)
        except httpx.HTTPError:
            self.acknowledged.refused += 1
            return
        if reply.status_code == 200 and reply.text == "ok":
            self.acknowledged.unknown.discard(address)
            self.acknowledged.gone.add(address)
        else:
            self.acknowledged.refused += 1

    async def _register(
        self, service: str, address: Address, metadata: str, weight: float, *, ephemeral: str = "true"
    ) -> int:
        ip, _, port = address.partition(":")
        form = {"serviceName": service, "ip": ip, "port": port, "weight": weight, "metadata": metadata}
        try:
            reply = await self.http.post(INSTANCE, data={**form, "ephemeral": ephemeral})
        except httpx.HTTPError:
            return 0
        return 200 if reply.status_code == 200 and reply.text == "ok" else reply.status_code or 1

    async def _beater(self) -> None:
        for turn in itertools.count():
            await self.beat(self.beaters[turn % len(self.beaters)])
            self.steps["beater"] += 1
            await self._wait()

    async def beat(self, address: Address) -> None:
        ip, _, port = address.partition(":")
        try:
            reply = await self.http.put(BEAT, params={"serviceName": self.beating, "ip": ip, "port": port})
        except httpx.HTTPError as error:
            if not self.may_break:
                self.beats.append((0, "", repr(error)))
            return
        self.beats.append((reply.status_code, reply.headers.get("nacos-proxy-answer", "upstream"), reply.text))

    # afterwards

    async def shown(self, url: str, service: str) -> frozenset[Address]:
        """What a server (or the proxy, for '') lists now."""
        reply = await self.http.get(f"{url}{LIST}", params={"serviceName": service})
        return addresses(reply.json()["hosts"])

    def violations(self) -> list[str]:
        """Everything seen that must never happen."""
        return [
            *self._wrong_reads(),
            *self._wrong_beats(),
            *(f for follower in self.followers for f in follower.faults),
        ]

    def _wrong_reads(self) -> list[str]:
        wrong: list[str] = []
        for number, read in enumerate(self.reads):
            if read.broken:
                continue
            if read.status != 200:
                wrong.append(f"read {number} of {read.service} failed: {read.status} {read.text[:200]}")
            elif missing := read.missing - self.lost:
                wrong.append(
                    f"read {number} of {read.service} ({read.cache}) lacks {sorted(missing)} of {len(read.must)}"
                )
            elif ghosts := read.ghosts - self.lost:
                wrong.append(f"read {number} of {read.service} ({read.cache}) still shows {sorted(ghosts)}")
        return wrong

    def _wrong_beats(self) -> list[str]:
        good = (b for b in self.beats if b[0] == 200 and json.loads(b[2]).get("code") == 10200)
        bad = len(self.beats) - sum(1 for _ in good)
        first = next((b for b in self.beats if b[0] != 200 or json.loads(b[2]).get("code") != 10200), None)
        return [f"{bad} beats were refused, the first with {first}"] if bad else []

    async def settled(self, *urls: str) -> None:
        """Waits until the servers, the proxy and the followers show every acknowledged write."""
        for url in ("", *urls):
            for service in self.services:
                await self._settles(url, service)
        for follower in self.followers:
            for service in self.services:
                shown = await self.shown("", service)
                await until(
                    lambda f=follower, s=service, h=shown: f.states[f"DEFAULT_GROUP@@{s}"].keys() == h,
                    f"a follower that has of {service} {sorted(shown)}: "
                    f"{sorted(follower.states[f'DEFAULT_GROUP@@{service}'])}, connected {follower.connects} times",
                )

    async def _settles(self, url: str, service: str) -> None:
        end = CLOCK.now() + 60.0
        while True:
            there, gone = self.expected(service)
            shown = await self.shown(url, service)
            if there <= shown and not shown & gone:
                return
            if CLOCK.now() > end:
                text = f"lacks {sorted(there - shown)}, still has {sorted(shown & gone)}"
                raise AssertionError(f"{url or 'the proxy'} {text} of {service}")
            await CLOCK.sleep_until(CLOCK.now() + 0.05)

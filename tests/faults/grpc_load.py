"""Clients over gRPC beside those of `load.py`, under the same invariants.

They behave as SDKs: after the loss of a connection they connect again, and repeat what they subscribed and published.
More must never happen:

- a query or a subscription that fails although the service was read before;
- a list that differs from the one before but is not newer (`lastRefTime`): SDKs would drop it (nacos-grpc.md 6);
- an acknowledged publication that is lost, or one that was replaced and stays.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc.aio

from nacos_proxy.runtime import spawn, stop
from tests.faults.load import CLOCK, LIST, METADATA, Acknowledged, Address, Load, Read, addresses, until
from tests.helpers.grpcio_client import GrpcClient, Lost, Packed

LONG = {"preserved.heart.beat.timeout": "60000", "preserved.ip.delete.timeout": "120000"}
assert all(name in METADATA for name in LONG)


class Sdk:
    """One connection that is always made again. `redo` repeats what belongs to it, as soon as it is set up."""

    def __init__(self, target: Callable[[], str], redo: Callable[[GrpcClient], Awaitable[None]]) -> None:
        self.client: GrpcClient | None = None
        self.connects = 0
        self._target = target
        self._redo = redo

    async def run(self) -> None:
        while True:
            async with GrpcClient(self._target()) as client:
                try:
                    await asyncio.wait_for(client.connect(abilities={}), 10.0)
                    await self._redo(client)
                    self.client = client
                    self.connects += 1
                    await client.ended
                except (Lost, asyncio.TimeoutError, grpc.aio.UsageError):
                    pass
                finally:
                    self.client = None
            await CLOCK.sleep_until(CLOCK.now() + 0.05)

    async def connected(self) -> GrpcClient:
        await until(lambda: self.client is not None, "a connection over gRPC")
        assert self.client is not None
        return self.client


class Lists:
    """What a subscriber has been told, by service. `faults`: lists that an SDK would have dropped."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[dict[str, Any]]] = {}
        self.faults: list[str] = []
        self.taken = 0
        self._times: dict[str, int] = {}

    def take(self, info: Mapping[str, Any], *, of_answer: bool = False) -> None:
        """An answer may be overtaken by a newer push, because this client reads the two in different tasks."""
        name, moment = info["name"], info["lastRefTime"]
        if of_answer and moment < self._times.get(name, 0):
            return
        hosts = sorted(info["hosts"], key=lambda host: (host["ip"], host["port"]))
        self.taken += 1
        if moment > self._times.get(name, 0):
            self.hosts[name], self._times[name] = hosts, moment
        elif hosts != self.hosts[name]:
            before = sorted(addresses(self.hosts[name]))
            self.faults.append(f"{name} of {moment} is not newer, but {before} became {sorted(addresses(hosts))}")

    def hear(self, asked: Packed) -> bool:
        if asked.type == "NotifySubscriberRequest":
            self.take(asked.body["serviceInfo"])
        return True


class GrpcLoad:
    """`async with GrpcLoad(load, target)`: gRPC clients that share the services and the bookkeeping of a `Load`.

    `target()` is where to connect; it may change with a restart.
    """

    def __init__(self, load: Load, target: Callable[[], str], *, writers: int = 2) -> None:
        self.load = load
        self.publishing = f"{load.changing}-by-grpc"  # a service of persistent instances takes none of connections
        self.acknowledged = Acknowledged()
        self.lists = Lists()
        self.steps = {"reader": 0, "writer": 0}
        self.refused: list[str] = []
        self.published: list[Address | None] = [None] * writers
        self.unsure: list[set[Address]] = [set() for _ in range(writers)]
        self.reader = Sdk(target, self._nothing)
        self.subscriber = Sdk(target, self._subscribe)
        self.writers = [Sdk(target, lambda client, n=n: self._republish(client, n)) for n in range(writers)]
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> GrpcLoad:
        await self.load.http.get(LIST, params={"serviceName": self.publishing})
        for sdk in (self.reader, self.subscriber, *self.writers):
            self._tasks.append(spawn(sdk.run(), name="SDK over gRPC"))
        for sdk in (self.reader, self.subscriber, *self.writers):
            await sdk.connected()
        self._tasks.append(spawn(self._read(), name="reader over gRPC"))
        for number in range(len(self.writers)):
            self._writing.append(spawn(self._write(number), name="writer over gRPC"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._writing, *self._tasks):
            await stop(task)

    @property
    def services(self) -> list[str]:
        return [*self.load.services, self.publishing]

    def _expected(self, service: str) -> tuple[frozenset[Address], frozenset[Address]]:
        if service == self.publishing:
            return frozenset(self.acknowledged.there), frozenset(self.acknowledged.gone)
        return self.load.expected(service)

    async def stop_writing(self) -> None:
        """Stops the writers; their connections stay, and so does what they publish."""
        for task in self._writing:
            await stop(task)

    async def more(self, steps: int) -> None:
        wanted = {actor: number + steps for actor, number in self.steps.items()}
        await until(lambda: all(self.steps[a] >= n for a, n in wanted.items()), f"{steps} more steps of {self.steps}")

    async def settled(self, upstream: str) -> None:
        """Waits until the server lists what was acknowledged, and the subscriber has heard what HTTP readers see."""
        there, gone = self._expected(self.publishing)
        for url in (upstream, ""):
            shown: frozenset[Address] = frozenset()
            end = CLOCK.now() + 60.0
            while not there <= shown or shown & gone:
                assert CLOCK.now() < end, f"{url or 'the proxy'} shows {sorted(shown)} instead of {sorted(there)}"
                shown = await self.load.shown(url, self.publishing)
        for service in self.services:
            shown = await self.load.shown("", service)
            await until(
                lambda s=service, h=shown: addresses(self.lists.hosts.get(s, [])) == h,
                f"a gRPC subscriber that has of {service} {sorted(shown)}: {self.lists.hosts.get(service)}",
            )

    def violations(self) -> list[str]:
        return [*self.lists.faults, *self.refused]

    # actors

    async def _nothing(self, client: GrpcClient) -> None:
        pass

    async def _subscribe(self, client: GrpcClient) -> None:
        client.acknowledges = self.lists.hear
        for service in self.services:
            answer = await client.subscribe(service)
            if answer.code:
                self._refuse(f"subscribing {service}", answer)
                raise Lost("refused")
            self.lists.take(answer.body["serviceInfo"], of_answer=True)

    def _refuse(self, what: str, answer: Packed) -> None:
        # A call of grpcio may reach a process that has just started, on a connection without a setup.
        if not (self.load.may_break and answer.code == 301):
            self.refused.append(f"{what}: {answer.type} {answer.raw[:200]!r}")

    async def _read(self) -> None:
        for turn in itertools.count():
            client, service = await self.reader.connected(), self.services[turn % 3]
            there, gone = self._expected(service)
            read = Read(service, there, gone, 0, broken=self.load.may_break)
            try:
                answer = await client.query(service)
            except Lost as error:
                read.text, read.broken = f"over gRPC: {error}", self.load.may_break
            else:
                still, still_gone = self._expected(service)
                read.must, read.must_not = read.must & still, read.must_not & still_gone
                read.status, read.text = answer.code or 200, answer.raw.decode()
                if answer.code:
                    read.broken = self.load.may_break and answer.code == 301
                else:
                    read.hosts, read.broken = addresses(answer.body["serviceInfo"]["hosts"]), False
            self.load.reads.append(read)
            self.steps["reader"] += 1
            await CLOCK.sleep_until(CLOCK.now() + 0.02)

    async def _write(self, number: int) -> None:
        while True:
            client = await self.writers[number].connected()
            count = next(self._numbers)
            await self._publish(client, number, f"10.4.{number}.{count % 250 + 1}:{80 + count // 250}")
            self.steps["writer"] += 1
            await CLOCK.sleep_until(CLOCK.now() + 0.05)

    async def _publish(self, client: GrpcClient, number: int, address: Address) -> None:
        """A connection has one value per service: the new address replaces the old one."""
        known, before = self.acknowledged, self.published[number]
        unsure = self.unsure[number]
        unsure |= {address} if before is None else {address, before}
        known.there.difference_update(unsure)
        known.unknown |= unsure
        ip, _, port = address.partition(":")
        try:
            answer = await client.register(self.publishing, ip, int(port), metadata=LONG)
        except Lost:
            return  # what the lost connection may have published lapses later: it counts as neither there nor gone
        if answer.code:
            known.refused += 1
            if answer.type != "InstanceResponse" and answer.code != 301:
                self._refuse("publishing", answer)
            return
        self.published[number] = address
        known.unknown.difference_update(unsure)
        known.there.add(address)
        known.gone |= unsure - {address}
        unsure.clear()

    async def _republish(self, client: GrpcClient, number: int) -> None:
        address, self.unsure[number] = self.published[number], set()
        if address is not None:
            await self._publish(client, number, address)

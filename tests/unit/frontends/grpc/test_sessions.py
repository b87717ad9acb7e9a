"""Any sequence of what clients, the network and the upstream do: no session leaves anything, every reader converges."""

from __future__ import annotations

import random

import pytest

from nacos_proxy.background.poller import Poller, PollPolicy
from nacos_proxy.model.calls import Deregister, Register
from nacos_proxy.model.errors import Unreachable
from tests.helpers.build import instance, key
from tests.helpers.clock import settle
from tests.helpers.grpc_client import GrpcWorld, Sdk, grpc_world, ips

SERVICES = ("orders", "stock", "users")
DOWN = Unreachable("nobody is there", arrived=False)


class Crowd:
    """Clients that do random things; `steps` are the names of what they do."""

    def __init__(self, world: GrpcWorld, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.sdks: list[Sdk] = []
        self.subscribed: dict[int, set[str]] = {}
        self.steps = (
            "connect", "leave", "subscribe", "subscribe", "unsubscribe", "publish", "publish", "withdraw", "http",
            "acknowledge", "jam", "drain", "down", "up", "revoke", "wait", "wait",
        )  # fmt: skip

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await getattr(self, self.rng.choice(self.steps))()
            self.sdks = [sdk for sdk in self.sdks if not sdk.connection.closed]

    def any(self) -> Sdk | None:
        return self.rng.choice(self.sdks) if self.sdks else None

    def service(self) -> str:
        return self.rng.choice(SERVICES)

    async def connect(self) -> None:
        if len(self.sdks) < 8:
            self.sdks.append(self.world.sdk(f"10.0.1.{self.rng.randrange(3)}", token=self.rng.choice("ab")))
            self.subscribed[id(self.sdks[-1])] = set()

    async def leave(self) -> None:
        if (sdk := self.any()) is not None:
            if self.rng.random() < 0.5:
                self.send(sdk, "SubscribeServiceRequest", subscribe=True)
                self.publish_from(sdk)
            sdk.connection.lose()

    def send(self, sdk: Sdk, kind: str, **fields: object) -> None:
        named = {"namespace": "public", "groupName": "DEFAULT_GROUP", "serviceName": self.service()}
        sdk.send(kind, **{**named, **fields})

    def publish_from(self, sdk: Sdk) -> None:
        addresses = [{"ip": f"10.0.0.{n}", "port": 80} for n in self.rng.sample(range(4), self.rng.randrange(4))]
        self.send(sdk, "BatchInstanceRequest", type="batchRegisterInstance", instances=addresses)

    async def subscribe(self) -> None:
        if (sdk := self.any()) is not None:
            name = self.service()
            _, answer = await sdk.subscribe(name)
            if answer["success"]:
                self.subscribed[id(sdk)].add(name)

    async def unsubscribe(self) -> None:
        if (sdk := self.any()) is not None:
            name = self.service()
            await sdk.subscribe(name, subscribe=False)
            self.subscribed[id(sdk)].discard(name)

    async def publish(self) -> None:
        if (sdk := self.any()) is not None:
            self.publish_from(sdk)

    async def withdraw(self) -> None:
        if (sdk := self.any()) is not None:
            self.send(sdk, "InstanceRequest", type="deregisterInstance", instance={"ip": "10.0.0.1", "port": 80})

    async def http(self) -> None:
        """Another client writes over HTTP."""
        service, at = key(self.service()), instance(f"10.0.2.{self.rng.randrange(3)}")
        call = Register(service, at) if self.rng.random() < 0.6 else Deregister(service, at.ip, at.port)
        if not self.world.registry.script(call):
            await self.world.agent.write(call)

    async def acknowledge(self) -> None:
        if (sdk := self.any()) is not None and sdk.connection.pushed:
            sdk.acknowledge()

    async def jam(self) -> None:
        if (sdk := self.any()) is not None:
            sdk.connection.unsent = 1 << 30

    async def drain(self) -> None:
        for sdk in self.sdks:
            sdk.connection.unsent = 0
            sdk.session.drained()

    async def down(self) -> None:
        self.world.registry.script = lambda call: DOWN

    async def up(self) -> None:
        self.world.registry.script = self.world.shelf

    async def revoke(self) -> None:
        if self.rng.random() < 0.2:
            del self.world.tokens["b"]
            self.world.streams.end_revoked()
            self.world.tokens["b"] = "write"

    async def wait(self) -> None:
        await self.world.clock.advance(self.rng.choice((0.01, 0.6, 3.0)))


def last_lists(sdk: Sdk) -> dict[str, list[str]]:
    pushed = (body for kind, body in sdk.connection.pushed if kind == "NotifySubscriberRequest")
    return {body["serviceInfo"]["name"]: ips(body) for body in pushed}


@pytest.mark.parametrize("seed", range(10))
async def test_sessions_converge_and_leave_nothing(seed: int) -> None:
    async with grpc_world() as world:
        world.tokens |= {"a": "write", "b": "write"}
        await world.publications.start()
        poller = Poller(world.agent, PollPolicy())
        poller.start()
        crowd = Crowd(world, random.Random(seed))
        await crowd.run(120)
        await crowd.up()
        await crowd.drain()
        await world.clock.advance(2)
        for _ in range(20):
            for sdk in crowd.sdks:
                sdk.send("HealthCheckRequest")
            await world.clock.advance(2)
        await crowd.drain()
        await settle()
        live = [sdk for sdk in crowd.sdks if not sdk.connection.closed]
        for sdk in live:
            lists = last_lists(sdk)
            for name in crowd.subscribed[id(sdk)]:
                shown = world.agent.catalog.cache.lookup(key(name), world.clock.now()).snapshot
                assert shown is not None and lists[name] == [i.ip for i in shown.instances], (seed, name)
        for _, moments in moments_by_service(live).items():
            assert moments == sorted(set(moments)), (seed, "a list that is not newer is dropped")
        for sdk in live:
            sdk.connection.lose()
        await world.clock.advance(60)  # writes that were accepted while the upstream was away are sent
        assert len(world.server.sessions) == world.quota.open == world.agent.catalog.hub.readers == 0
        assert len(world.streams) == len(world.publications) == 0
        assert "0 waiting, 0 unacknowledged, 0 to repeat" in repr(world.server.pushes)
        left = [i.address for s in world.shelf.services.values() for i in s.instances if i.ip.startswith("10.0.0.")]
        assert (left, len(world.agent.outage.journal)) == ([], 0)
        assert world.agent.supervisor.failures == {}
        await poller.stop()


def moments_by_service(sdks: list[Sdk]) -> dict[tuple[int, str], list[int]]:
    """The moments of the distinct lists that each session got, in order."""
    found: dict[tuple[int, str], list[tuple[int, list[str]]]] = {}
    for sdk in sdks:
        for kind, body in sdk.connection.pushed:
            if kind == "NotifySubscriberRequest":
                info = body["serviceInfo"]
                lists = found.setdefault((id(sdk), info["name"]), [])
                if not lists or lists[-1] != (info["lastRefTime"], ips(body)):
                    lists.append((info["lastRefTime"], ips(body)))
    return {slot: [moment for moment, _ in lists] for slot, lists in found.items()}

"""A responder around a registry in a dict, on a `FakeClock`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dns.message
import dns.name
import pytest

from nacos_proxy.core.agent import AgentPolicy
from nacos_proxy.frontends.dns.finder import Finder, FinderPolicy
from nacos_proxy.frontends.dns.responder import Repeatable, Responder, ResponderPolicy
from nacos_proxy.wire.dns.messages import MAX_LOOPBACK
from nacos_proxy.wire.dns.names import parse_zone
from tests.helpers.build import agent
from tests.helpers.clock import FakeClock, settle
from tests.helpers.scripted import ScriptedRegistry, Shelf

ZONE = parse_zone("nacos")


@dataclass
class World:
    """Asks as a client by UDP; `answers` are all that came."""

    clock: FakeClock
    shelf: Shelf
    registry: ScriptedRegistry
    agent: Any
    responder: Responder
    finder: Finder
    table: Repeatable
    answers: list[dns.message.Message] = field(default_factory=list)

    def ask(
        self,
        name: str = "orders.nacos.",
        rdtype: str = "A",
        *,
        client: str = "127.0.0.1",
        tcp: bool = False,
        **more: Any,
    ) -> bytes:
        """Sends a query, without waiting for its answer. Returns its bytes."""
        packet = dns.message.make_query(name, rdtype, **more).to_wire()
        self.responder.answer(packet, client, self._heard, None if tcp else self.table)
        return packet

    async def answer(self, name: str = "orders.nacos.", rdtype: str = "A", **more: Any) -> dns.message.Message:
        """The answer to a query that needs no time."""
        before = len(self.answers)
        self.ask(name, rdtype, **more)
        await settle()
        assert len(self.answers) == before + 1
        return self.answers[-1]

    async def texts(self, name: str = "orders.nacos.", rdtype: str = "A", **more: Any) -> list[str]:
        """The answer's code and its records, sorted."""
        answer = await self.answer(name, rdtype, **more)
        return [answer.rcode().name, *sorted(str(rdata) for rrset in answer.answer for rdata in rrset)]

    def _heard(self, message: bytes) -> None:
        self.answers.append(dns.message.from_wire(message))


def make_world(finder: FinderPolicy | None = None, responder: ResponderPolicy | None = None) -> World:
    clock, shelf = FakeClock(), Shelf()
    registry = ScriptedRegistry(shelf)
    made = agent(registry, clock, policy=AgentPolicy(cold_wait=2.5))
    found = Finder(made, finder or FinderPolicy((ZONE,)), lambda: 0.5)
    answering = Responder(
        found, responder or ResponderPolicy(), clock, made.supervisor, lambda records: records.reverse()
    )
    made.follow("dns", answering.changed)
    return World(clock, shelf, registry, made, answering, found, answering.repeatable(MAX_LOOPBACK))


@pytest.fixture
async def world():
    made = make_world()
    yield made
    await made.agent.close()

"""Messages between processes of the proxy: whole, in order, errors with all that they carry."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest

from proxy.calls import Register
from proxy.catalog.look import Freshness, Look, Wants
from proxy.errors import BadCall, NothingKnown, Problem, ProxyError, Reason, Refused, TooSlow
from proxy.link import Link, LinkLost, packed, receive
from proxy.model import diff
from tests.helpers.build import KEY, instance, snapshot


class End:
    """One end of a link: what it heard; it answers questions with `answer(name, args)`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.lost = 0
        self.link = Link(lambda name, args: self.heard.append((name, args)), self.serve, self.gone)

    async def serve(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "fail":
            raise args[0]
        return args

    def gone(self) -> None:
        self.lost += 1


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[End, End]]:
    ends = (End(), End())
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await asyncio.get_running_loop().create_connection(lambda end=end: end.link, sock=sock)
    try:
        yield ends
    finally:
        for end in ends:
            end.link.close()
        while not all(end.lost for end in ends):
            await asyncio.sleep(0)


A = instance(metadata=MappingProxyType({"zone": "北"}), extra={"unknown": [1, None]})
VALUES = [
    snapshot(A),
    Register(KEY, A),
    Look(Freshness.STALE, snapshot(A), 3.0, -1.0, TooSlow("slow"), from_disk=True),
    diff(None, snapshot(A), "poll"),
    Wants(no_cache=True),
    b"x" * 3_000_000,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_a_value_arrives_as_it_was(value: Any) -> None:
    async with joined() as (one, _):
        (answer,) = await one.link.ask("echo", value)
        if isinstance(value, Look):
            assert (answer.snapshot, str(answer.error)) == (value.snapshot, "slow")
        else:
            assert answer == value


async def test_what_a_snapshot_has_worked_out_does_not_travel() -> None:
    cold, warm = snapshot(A), snapshot(A)
    assert warm.revision and warm.by_key
    assert packed(warm) == packed(cold)


ERRORS = [
    BadCall("port", Problem.ILLEGAL, "no port", value="x", status=413),
    Refused(Reason.NO_RIGHT, "denied", status=403, dialect="v2", content_type="text/plain", body=b"denied"),
    NothingKnown("nobody knows"),
    TooSlow("late"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_error_is_raised_with_all_that_it_carries(error: ProxyError) -> None:
    async with joined() as (one, _):
        with pytest.raises(type(error)) as caught:
            await one.link.ask("fail", error)
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))


async def test_a_fault_of_the_other_end_is_said_and_logged_there(caplog: pytest.LogCaptureFixture) -> None:
    async with joined() as (one, _):
        with pytest.raises(ProxyError, match="its log says why"):
            await one.link.ask("fail", ZeroDivisionError("oops"))
    assert "oops" in caplog.text


async def test_an_answer_comes_behind_what_was_told_before_it() -> None:
    async with joined() as (one, other):
        for number in range(100):
            other.link.tell("event", number)
        await one.link.ask("echo")
        await other.link.ask("echo")
        assert one.heard == [("event", (number,)) for number in range(100)]


async def test_questions_may_cross_and_are_answered_to_who_asked() -> None:
    async with joined() as (one, other):
        asked = [end.link.ask("echo", name, number) for number in range(50) for name, end in (("a", one), ("b", other))]
        answers = await asyncio.gather(*asked)
        assert answers == [(name, number) for number in range(50) for name in "ab"]


async def test_who_waits_when_the_other_end_goes_is_told_and_who_asks_later_too() -> None:
    one = End()
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().create_connection(lambda: one.link, sock=ours)
    waiting = asyncio.ensure_future(one.link.ask("echo"))  # noqa: TID251
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises(LinkLost):
        await waiting
    with pytest.raises(LinkLost):
        await one.link.ask("echo")
    one.link.tell("said into the void")
    assert one.lost == 1


def test_the_first_message_can_be_waited_for_without_a_loop() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(packed({"a": 1}) + b"more")
            assert receive(ours) == {"a": 1}
            assert ours.recv(100) == b"more"
        with pytest.raises(EOFError):
            receive(ours)

"""A server's link on a transport that keeps what is written, and a loop whose time stands still."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hpack import Encoder

from nacos_proxy.runtime import STOOD_STILL
from nacos_proxy.transport.http2 import FAREWELL, LOW_WATER, EndpointPolicy, EndpointProtocol
from nacos_proxy.wire.http2 import PREFACE, Event, Hold, ServerEndpoint, StreamMessage
from tests.helpers import frames
from tests.unit.fastpath.drive import KeptTransport, StillLoop

POLICY = EndpointPolicy(max_unsent=1_000_000, stall_timeout=30.0, handshake_timeout=5.0)
WINDOWS = frames.settings((4, 2**31 - 1)) + frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.number(2**31 - 65_536))


class ServerLink(EndpointProtocol):
    def __init__(self, loop: StillLoop, hold: Hold | None = None) -> None:
        self.server = ServerEndpoint()
        super().__init__(self.server, POLICY, cast(Any, loop))
        self._hold = hold
        self.events: list[Event] = []
        self.drains = 0
        self.losses = 0

    def push(self, body: bytes) -> None:
        self.server.send(1, body)
        self._touch()

    def _happened(self, event: Event) -> None:
        self.events.append(event)
        if event == StreamMessage(1, b"close"):
            self.close()

    def _drained(self) -> None:
        self.drains += 1

    def _lost(self) -> None:
        self.losses += 1


class Driven:
    """A link whose client has opened the stream; its windows are wide unless `narrow`."""

    def __init__(self, *, narrow: bool = False, shaken: bool = True, hold: Hold | None = None) -> None:
        self.loop = StillLoop()
        self.link = ServerLink(self.loop, hold)
        self.transport = KeptTransport()
        self.encoder = Encoder()
        self.link.connection_made(self.transport)
        if shaken:
            head = PREFACE + (frames.settings() if narrow else WINDOWS)
            self.link.data_received(head + frames.headers(self.encoder, 1, frames.STREAM))

    async def turn(self) -> bytes:
        """What the link writes in one turn of the loop."""
        await asyncio.sleep(0)
        return self.transport.take()

    def say(self, body: bytes) -> None:
        self.link.data_received(frames.frame(frames.DATA, 0, 1, body))

    def open_windows(self, size: int) -> None:
        for stream in (0, 1):
            self.link.data_received(frames.frame(frames.WINDOW_UPDATE, 0, stream, frames.number(size)))

    def fill(self, size: int) -> None:
        """The socket takes no more, and holds so many bytes."""
        self.transport.unsent = size

    def drain(self) -> None:
        self.transport.unsent = 0
        self.link.resume_writing()


async def test_output_of_one_turn_is_written_once() -> None:
    driven = Driven()
    await driven.turn()
    driven.transport.writes = 0
    for _ in range(100):
        driven.link.push(b"x")
    assert driven.transport.writes == 0
    assert frames.kinds(await driven.turn()) == [frames.DATA] * 100
    assert driven.transport.writes == 1


async def test_unsent_counts_what_windows_and_socket_hold() -> None:
    driven = Driven(narrow=True)
    await driven.turn()
    driven.link.push(b"x" * 100_000)
    assert driven.link.unsent == 100_005, "nothing is written yet"
    await driven.turn()
    assert driven.link.unsent == 100_005 - 65_535
    driven.fill(1000)
    assert driven.link.unsent == 100_005 - 65_535 + 1000


async def test_drained_is_called_if_unsent_was_seen_above_low_water() -> None:
    driven = Driven(narrow=True)
    driven.link.push(b"x" * (65_535 + LOW_WATER + 100))
    assert driven.link.unsent > LOW_WATER
    await driven.turn()
    assert driven.link.drains == 0
    driven.open_windows(1_000_000)
    await driven.turn()
    assert (driven.link.drains, driven.link.unsent) == (1, 0)
    await driven.turn()
    driven.link.push(b"x")
    await driven.turn()
    assert driven.link.drains == 1, "it was not above in between"


async def test_drained_is_called_in_the_turn_that_writes_all() -> None:
    driven = Driven()
    driven.link.push(b"x" * (LOW_WATER + 1))
    assert driven.link.unsent > LOW_WATER
    await driven.turn()
    assert driven.link.drains == 1


async def test_drained_waits_for_the_socket() -> None:
    driven = Driven()
    driven.link.push(b"x")
    driven.fill(LOW_WATER + 1)
    await driven.turn()
    assert driven.link.drains == 0
    driven.drain()
    assert driven.link.drains == 1


async def test_a_peer_that_lets_too_much_wait_is_aborted() -> None:
    driven = Driven(narrow=True)
    for _ in range(11):
        driven.link.push(b"x" * 100_000)
    await driven.turn()
    assert driven.transport.aborted
    assert driven.link.cause == "unread"
    driven.link.connection_lost(None)
    assert (driven.link.cause, driven.link.losses, driven.link.unsent) == ("unread", 1, 0)


async def test_shared_budget_counts_what_is_unsent_above_low_water() -> None:
    held: list[int] = []

    def hold(size: int) -> bool:
        held.append(size)
        return sum(held) <= 100_000

    driven = Driven(narrow=True, hold=hold)
    driven.link.push(b"x" * (65_530 + LOW_WATER))
    await driven.turn()
    assert held == []
    driven.link.push(b"x" * 50_000)
    await driven.turn()
    assert sum(held) == 50_005
    driven.open_windows(2_000_000)
    await driven.turn()
    assert sum(held) == 0
    driven.fill(LOW_WATER + 100_001)
    driven.link.push(b"x")
    await driven.turn()
    assert driven.link.cause == "unread"


async def test_shared_budget_gets_all_back_at_the_end() -> None:
    held: list[int] = []

    def hold(size: int) -> bool:
        held.append(size)
        return True

    driven = Driven(narrow=True, hold=hold)
    driven.link.push(b"x" * 900_000)
    await driven.turn()
    assert sum(held) > 700_000
    driven.link.connection_lost(None)
    assert sum(held) == 0


async def test_handshake_must_arrive_in_time() -> None:
    driven = Driven(shaken=False)
    driven.link.data_received(PREFACE[:5])
    driven.loop.advance(4.9)
    assert not driven.transport.aborted
    driven.loop.advance(0.2)
    assert driven.transport.aborted
    assert driven.link.cause == "handshake"


async def test_handshake_may_be_late_if_the_process_stood_still() -> None:
    driven = Driven(shaken=False)
    driven.loop.jump(5.0 + STOOD_STILL + 0.1)
    driven.loop.advance(0.0)
    assert not driven.transport.aborted
    driven.loop.advance(5.0)
    assert driven.transport.aborted


async def test_idle_connection_has_no_timer() -> None:
    driven = Driven()
    await driven.turn()
    driven.loop.advance(5.0)
    assert driven.loop.armed == []
    driven.link.push(b"x")
    await driven.turn()
    assert driven.loop.armed == []


@pytest.mark.parametrize("where", ["windows", "socket"])
async def test_a_peer_that_takes_nothing_is_aborted(where: str) -> None:
    driven = Driven(narrow=True)
    driven.loop.advance(5.0)
    driven.link.push(b"x" * (200_000 if where == "windows" else 1000))
    if where == "socket":
        driven.fill(1000)
    await driven.turn()
    driven.loop.advance(29.0)
    driven.link.push(b"y")  # more output is no progress
    if where == "windows":
        driven.open_windows(1)
    else:
        driven.fill(900)
    await driven.turn()
    driven.loop.advance(1.1)
    assert not driven.transport.aborted, "it took a byte"
    driven.loop.advance(30.0)
    assert driven.transport.aborted
    assert driven.link.cause == "stalled"


async def test_an_incomplete_message_that_does_not_grow_ends_the_connection() -> None:
    driven = Driven()
    driven.loop.advance(5.0)
    whole = frames.message(b"x" * 100)
    driven.say(whole[:50])
    await driven.turn()
    driven.loop.advance(29.0)
    driven.say(whole[50:60])
    driven.loop.advance(2.0)
    assert not driven.transport.aborted
    driven.loop.advance(30.0)
    assert driven.transport.aborted


async def test_an_incomplete_message_may_wait_while_reading_is_paused() -> None:
    driven = Driven()
    driven.loop.advance(5.0)
    whole = frames.message(b"x" * 100)
    driven.say(whole[:50])
    driven.link.pause()
    assert not driven.transport.reading
    await driven.turn()
    driven.loop.advance(1000.0)
    assert not driven.transport.aborted
    driven.link.resume()
    assert driven.transport.reading
    driven.say(whole[50:])
    assert driven.link.events == [StreamMessage(1, b"x" * 100)]


async def test_stalled_peers_get_time_if_the_process_stood_still() -> None:
    driven = Driven(narrow=True)
    driven.loop.advance(5.0)
    driven.link.push(b"x" * 200_000)
    await driven.turn()
    driven.loop.jump(40.0)
    driven.loop.advance(0.0)
    assert not driven.transport.aborted
    driven.loop.advance(30.0)
    assert driven.transport.aborted


async def test_close_writes_what_windows_allow_and_a_goodbye() -> None:
    driven = Driven()
    await driven.turn()
    driven.link.push(b"last")
    driven.link.close()
    assert frames.kinds(driven.transport.take()) == [frames.DATA, frames.GOAWAY]
    assert driven.transport.closing
    assert not driven.transport.aborted
    driven.loop.advance(FAREWELL)
    assert driven.transport.aborted
    driven.link.connection_lost(None)
    assert (driven.link.cause, driven.link.losses) == ("here", 1)


async def test_nothing_happens_after_close() -> None:
    driven = Driven()
    message = frames.frame(frames.DATA, 0, 1, frames.message(b"close"))
    driven.link.data_received(message + message)
    assert driven.link.events == [StreamMessage(1, b"close")]
    driven.link.push(b"x")
    driven.transport.take()
    assert await driven.turn() == b""
    driven.link.close()
    driven.link.pause()
    assert driven.transport.reading


async def test_a_violation_ends_with_goaway() -> None:
    driven = Driven()
    await driven.turn()
    driven.link.data_received(frames.frame(frames.DATA, 0, 0, b"x"))
    assert frames.kinds(driven.transport.take()) == [frames.GOAWAY]
    assert driven.transport.closing
    assert driven.link.cause == "violation"


@pytest.mark.parametrize(("error", "cause"), [(None, "peer"), (ConnectionResetError("reset"), "broken")])
async def test_lost_is_called_once_and_says_why(error: Exception | None, cause: str) -> None:
    driven = Driven()
    driven.link.connection_lost(error)
    driven.link.connection_lost(error)
    assert (driven.link.losses, driven.link.cause) == (1, cause)
    driven.link.push(b"x")
    driven.link.resume()
    driven.link.close()
    driven.link.abort()
    assert driven.link.unsent == 0

"""One TCP connection that speaks gRPC, in either role: the socket of an endpoint of `wire.http2`.

- What one turn of the loop produces is written at once.
- `unsent` counts the bytes that the peer has not taken, whether its windows or the socket hold them.
- The connection ends if the peer breaks a rule, takes or sends nothing for `stall_timeout` although it should, or lets
  more than `max_unsent` bytes wait; and if the shared budget has no room for its bytes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, cast

from h2.errors import ErrorCodes

from nacos_proxy.runtime import stood_still
from nacos_proxy.wire.http2 import DEFAULT, ClientEndpoint, Closing, Event, Hold, Limits, ServerEndpoint

LOW_WATER = 64 * 1024  # unsent bytes
Cause = Literal["peer", "broken", "here", "violation", "unread", "stalled", "handshake", "refused"]
FAREWELL = 1.0  # seconds until a connection that is closed ends, whether or not its last bytes were taken


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """Times in seconds, `max_unsent` in bytes."""

    limits: Limits = DEFAULT
    max_unsent: int = 16 * 1024 * 1024
    stall_timeout: float = 30.0
    handshake_timeout: float = 5.0


class EndpointProtocol(asyncio.Protocol):
    """A subclass implements `_happened`, `_drained` and `_lost`.

    `cause` and `reason` say why the connection ended: one of `Cause`, and words.
    """

    def __init__(
        self, endpoint: ServerEndpoint | ClientEndpoint, policy: EndpointPolicy, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.cause: Cause | None = None
        self.reason = ""
        self._policy = policy
        self._hold: Hold | None = None  # of the shared budget
        self._loop = loop or asyncio.get_running_loop()
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None  # None: not yet connected, or lost
        self._ending = False
        self._flushing = False  # `_flush` will run in this turn
        self._seen_full = False  # somebody has seen `unsent` above LOW_WATER
        self._held = 0  # bytes of the shared budget for what is unsent
        self._paused = False
        self._passed = 0  # bytes of messages that the endpoint has handed out
        self._written = 0  # bytes that the transport got
        self._timer: asyncio.TimerHandle | None = None
        self._progress = (0, 0, 0)  # when the timer was started

    def _happened(self, event: Event) -> None:
        raise NotImplementedError

    def _drained(self) -> None:
        """`unsent` is no longer above LOW_WATER. Called whenever somebody has seen it above."""
        raise NotImplementedError

    def _lost(self) -> None:
        """The connection is gone. Called once, if it was made."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._transport.set_write_buffer_limits(LOW_WATER, LOW_WATER // 4)
        self._timer = self._loop.call_later(self._policy.handshake_timeout, self._shaken)
        self._touch()

    def data_received(self, data: bytes) -> None:
        for event in self._endpoint.receive(data, self._loop.time()):
            if self._ending:
                return
            if isinstance(event, Closing):
                self._end("violation" if event.fault else "peer", event.reason)
            else:
                self._happened(event)
        self._touch()

    def eof_received(self) -> bool:
        return False

    def resume_writing(self) -> None:
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        self._ending = True
        self._because("broken" if exc else "peer", f"the connection broke: {exc}" if exc else "the peer closed it")
        if self._timer is not None:
            self._timer.cancel()
        self._endpoint.close()
        self._account(0)
        self._lost()

    # for subclasses and their users

    @property
    def unsent(self) -> int:
        """Bytes that the peer has not taken yet. If this is above LOW_WATER, `drained` will be called."""
        if self._transport is None:
            return 0
        made = self._endpoint.passed - self._passed
        unsent = self._endpoint.queued + made + self._transport.get_write_buffer_size()
        if unsent > LOW_WATER:
            self._seen_full = True
        return unsent

    def pause(self) -> None:
        """Reads no more, until `resume`."""
        if self._transport is not None and not self._ending and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._ending and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Sends what the windows allow, then ends the connection, at the latest after `FAREWELL`."""
        self._end("here", "closed here")

    def abort(self) -> None:
        """Ends the connection at once."""
        self._because("here", "closed here")
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    def _touch(self) -> None:
        """There may be bytes for the socket: they are written after this turn of the loop."""
        if not self._flushing and self._transport is not None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._ending:
            return
        self._passed = self._endpoint.passed
        if data := self._endpoint.take():
            self._written += len(data)
            self._transport.write(data)
            self._settle()
        elif self._seen_full or self._endpoint.waits:
            self._settle()

    def _settle(self) -> None:
        """`unsent` may have changed."""
        if self._ending:
            return
        unsent = self.unsent
        if unsent > self._policy.max_unsent or not self._account(unsent):
            self._give_up("unread", f"the peer does not read: {unsent} bytes are unsent")
            return
        if self._timer is None and (unsent or self._endpoint.waits):
            self._start_timer(self._policy.stall_timeout)
        if self._seen_full and unsent <= LOW_WATER:
            self._seen_full = False
            self._drained()

    def _account(self, unsent: int) -> bool:
        """Counts what is above LOW_WATER in the shared budget. Whether there was room."""
        held = max(0, unsent - LOW_WATER)
        more, self._held = held - self._held, held
        if more == 0 or self._hold is None or self._hold(more):
            return True
        self._held -= more
        return False

    # time

    def _start_timer(self, seconds: float) -> None:
        self._progress = self._measure()
        self._timer = self._loop.call_later(seconds, self._stalled)

    def _measure(self) -> tuple[int, int, int]:
        transport = self._transport
        gone = self._written - (transport.get_write_buffer_size() if transport is not None else 0)
        return self._endpoint.passed, gone, self._endpoint.received

    def _stood_still(self) -> bool:
        """Whether the process did not run: the timer may then run before input that came in time."""
        timer, self._timer = self._timer, None
        return timer is not None and stood_still(timer.when(), self._loop.time()) > 0

    def _shaken(self) -> None:
        """The time for the handshake is over."""
        if self._stood_still():
            self._timer = self._loop.call_later(self._policy.handshake_timeout, self._shaken)
        elif not self._endpoint.ready:
            self._give_up("handshake", "no handshake of HTTP/2 in time")
        else:
            self._settle()

    def _stalled(self) -> None:
        late, before = self._stood_still(), self._progress
        transport = self._transport
        if transport is None:
            return
        incomplete = self._endpoint.partial > 0 and not self._paused
        waiting = (self._endpoint.queued > 0, transport.get_write_buffer_size() > 0, incomplete)
        stuck = any(wait and old == new for wait, old, new in zip(waiting, before, self._measure(), strict=True))
        if stuck and not late:
            self._give_up("stalled", f"the peer took and sent nothing for {self._policy.stall_timeout:g} s")
        elif any(waiting):
            self._start_timer(self._policy.stall_timeout)

    # the end

    def _because(self, cause: Cause, reason: str) -> None:
        """The first one counts."""
        if self.cause is None:
            self.cause, self.reason = cause, reason

    def _give_up(self, cause: Cause, reason: str) -> None:
        self._because(cause, reason)
        self._endpoint.close(ErrorCodes.ENHANCE_YOUR_CALM)
        self.abort()

    def _end(self, cause: Cause, reason: str) -> None:
        if self._transport is None or self._ending:
            return
        self._because(cause, reason)
        self._flush()
        self._ending = True
        self._endpoint.close()
        self._transport.write(self._endpoint.take())
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(FAREWELL, self.abort)

"""One TCP connection to the gRPC port of a server: unary calls, and the bidirectional stream.

Knows no Payload: messages are bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable

from nacos_proxy.model.errors import Busy, Garbled, Reason, Refused, TooSlow, Unreachable, UpstreamError
from nacos_proxy.transport.http2 import LOW_WATER as LOW_WATER
from nacos_proxy.transport.http2 import EndpointPolicy, EndpointProtocol
from nacos_proxy.wire.http2 import (
    BROKEN,
    GARBLED,
    NOT_HANDLED,
    OK,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Answer,
    ClientEndpoint,
    Ended,
    Event,
    StreamMessage,
)

_DENIED = (7, 16)  # PERMISSION_DENIED, UNAUTHENTICATED
_STATUSES = {UNIMPLEMENTED: 501, UNAVAILABLE: 503, 7: 403, 16: 403}  # HTTP's, for a status of gRPC; else 500

_POLICY = EndpointPolicy()


def _nothing() -> None:
    return


class _Call:
    __slots__ = ("done", "message", "stream")

    def __init__(self, message: bytes, done: asyncio.Future[bytes]) -> None:
        self.message = message
        self.done = done
        self.stream: int | None = None  # None: waits for a free one


class GrpcConnection(EndpointProtocol):
    """Made by `connect`. `lost`: TCP or the bidirectional stream has ended; then every call fails."""

    def __init__(
        self,
        authority: str,
        *,
        tls: bool = False,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        on_drained: Callable[[], None] = _nothing,
        policy: EndpointPolicy = _POLICY,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._client = ClientEndpoint(authority, tls=tls, limits=policy.limits)
        super().__init__(self._client, policy, loop)
        self.lost = False
        self.ready: asyncio.Future[None] = self._loop.create_future()  # the server's SETTINGS have arrived
        self._server = authority
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_drained = on_drained
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._stream: int | None = None

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        on_drained: Callable[[], None] = _nothing,
        timeout: float,
        policy: EndpointPolicy = _POLICY,
    ) -> GrpcConnection:
        """Returns when the server's SETTINGS have arrived. Raises `OSError`, also if they do not in `timeout` seconds.

        `on_message` gets the messages of the bidirectional stream. `on_lost` gets the reason, once, when TCP or that
        stream has ended, also by `close`; it is not called if this raises. `tls` must offer "h2" by ALPN.
        """
        loop = asyncio.get_running_loop()
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = cls(
            authority, tls=tls is not None, on_message=on_message, on_lost=on_lost, on_drained=on_drained, policy=policy
        )

        async def attempt() -> None:
            await loop.create_connection(
                lambda: connection, host, port, ssl=tls, server_hostname=server_hostname if tls else None
            )
            await connection.ready

        try:
            await asyncio.wait_for(attempt(), timeout)
        except asyncio.TimeoutError:  # no `OSError` before Python 3.11
            raise TimeoutError(f"{authority}: no handshake in {timeout:g} s") from None
        finally:
            if not connection.established:
                connection.lost = True
                connection.abort()
        return connection

    async def call(self, message: bytes, *, timeout: float) -> bytes:
        """A unary call. Raises `Unreachable`, `TooSlow`, `Busy` (no stream became free), `Garbled`.

        And `Refused` for a status of gRPC that is not OK; its `status` is the nearest one of HTTP.
        """
        call = _Call(message, self._loop.create_future())
        if self._ending or self._transport is None:
            raise Unreachable(f"{self._server}: {self.reason or 'no connection'}", arrived=False)
        self._waiting.append(call)
        self._start_calls()
        timer = self._loop.call_later(timeout, self._time_out, call)
        try:
            return await call.done
        finally:
            timer.cancel()
            self._drop(call)

    @property
    def established(self) -> bool:
        """Whether the handshake is over and nothing was lost."""
        return self._client.ready and not self.lost

    def open_stream(self) -> None:
        """Opens the bidirectional stream; does nothing if it is open. Its end is the end of the connection."""
        if self._stream is None and self._client.room:
            self._stream = self._client.open()
            self._touch()

    def send(self, message: bytes) -> None:
        """A message on the bidirectional stream. Does nothing if it is not open, or has ended."""
        if self._stream is not None:
            self._client.send(self._stream, message)
            self._touch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._client.ready and not self.ready.done():
            self.ready.set_result(None)
        self._start_calls()

    def _start_calls(self) -> None:
        while self._waiting and self._client.room:
            call = self._waiting.popleft()
            if not call.done.done():
                call.stream = self._client.call(call.message)
                self._calls[call.stream] = call
                self._touch()

    def _time_out(self, call: _Call) -> None:
        if not call.done.done():
            if call.stream is None:
                call.done.set_exception(Busy(f"{self._server}: no stream became free in time"))
            else:
                call.done.set_exception(TooSlow(f"{self._server}: no answer in time"))

    def _drop(self, call: _Call) -> None:
        """Its caller waits no longer."""
        if call.stream is None:
            if call in self._waiting:
                self._waiting.remove(call)
        elif self._calls.pop(call.stream, None) is not None:
            self._client.reset(call.stream)
            self._touch()

    def _happened(self, event: Event) -> None:
        if isinstance(event, StreamMessage):
            self._on_message(event.message)
        elif isinstance(event, Answer):
            call = self._calls.pop(event.stream, None)
            if call is None or call.done.done():
                return
            if event.status == OK:
                call.done.set_result(event.message)
            else:
                call.done.set_exception(self._error(event))
        elif isinstance(event, Ended):
            self._end("peer", f"the server ended the stream{f': {event.text}' if event.text else ''}")
            self._lost()

    def _error(self, answer: Answer) -> UpstreamError:
        text = f"{self._server}: {answer.text}"
        if answer.status in (BROKEN, NOT_HANDLED):
            return Unreachable(text, arrived=answer.status == BROKEN)
        if answer.status == GARBLED:
            return Garbled(text, answered=True)
        reason = Reason.NO_RIGHT if answer.status in _DENIED else Reason.OTHER
        return Refused(reason, f"{text} (status {answer.status} of gRPC)", status=_STATUSES.get(answer.status, 500))

    def _drained(self) -> None:
        self._on_drained()

    def _lost(self) -> None:
        if self.lost:
            return
        self.lost = True
        for call in (*self._calls.values(), *self._waiting):
            if not call.done.done():
                error = Unreachable(f"{self._server}: {self.reason}", arrived=call.stream is not None)
                call.done.set_exception(error)
        self._calls.clear()
        self._waiting.clear()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"{self._server}: {self.reason}"))
        else:
            self._on_lost(self.reason)

"""Messages between processes of this proxy, over a socket that only they hold: tells, and questions with answers.

Not for: what is said (`feed`, `mirror`), anything that comes from elsewhere: the messages are pickles, and whoever can
write to the socket can run code here. Order: what one side says arrives in the order in which it was said, answers
among tells, so that an answer finds all applied that was told before it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import count
from types import MappingProxyType
from typing import Any, cast

from proxy.errors import ProxyError, Unreachable
from proxy.model import Change, Snapshot
from proxy.runtime import spawn

log = logging.getLogger("nacos_proxy.link")

_LENGTH = struct.Struct("!I")

Hear = Callable[[str, tuple[Any, ...]], None]
Serve = Callable[[str, tuple[Any, ...]], Awaitable[Any]]


class LinkLost(Unreachable):
    """The other process is gone."""

    def __init__(self) -> None:
        super().__init__("the process that asks the upstream is gone", arrived=True)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Values without what they have worked out for themselves; errors with all that they carry, but no cause."""
        match obj:
            case MappingProxyType():
                return (_mapping, (dict(cast(MappingProxyType[str, Any], obj)),))
            case Snapshot():
                fields = (obj.key, obj.instances, obj.threshold, obj.masking, obj.cache_millis, obj.extra)
                return (Snapshot, (*fields, obj.last_ref_time, obj.by_cluster))
            case Change():
                return (Change, (obj.before, obj.after, obj.source))
            case ProxyError():
                return (_error, (type(obj), obj.args, dict(obj.__dict__)))
            case _:
                return NotImplemented


def _mapping(items: dict[str, Any]) -> MappingProxyType[str, Any]:
    return MappingProxyType(items)


def _error(kind: type[ProxyError], args: tuple[Any, ...], fields: dict[str, Any]) -> ProxyError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def packed(message: Any) -> bytes:
    """A message as it travels: its length in four bytes, then itself."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    return _LENGTH.pack(buffer.tell()) + buffer.getvalue()


def receive(link: socket.socket) -> Any:
    """The first message on a socket, waited for. Raises `EOFError` where the other end is gone."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = link.recv(size - len(data))
            if not chunk:
                raise EOFError("the other process is gone")
            data += chunk
        return data

    (length,) = _LENGTH.unpack(exactly(_LENGTH.size))
    return pickle.loads(exactly(length))


class Link(asyncio.Protocol):
    """One end. `hear` gets tells and must not block; `serve` answers questions; `on_lost` is called once at the end."""

    def __init__(self, hear: Hear, serve: Serve, on_lost: Callable[[], None]) -> None:
        self.open = False
        self._hear = hear
        self._serve = serve
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1 << 30)  # bounded by what the other end is asked to keep
        self.open = True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        begin = 0
        while len(self._buffer) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, begin)
            end = begin + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            self._take(pickle.loads(bytes(self._buffer[begin + _LENGTH.size : end])))
            begin = end
        del self._buffer[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.open:
            return
        self.open = False
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkLost())
        self._asked.clear()
        self._on_lost()

    # saying

    def tell(self, name: str, *args: Any) -> None:
        """Say something that wants no answer; nothing where the other end is gone."""
        self._say(("tell", name, args))

    def tell_packed(self, message: bytes) -> None:
        """The same, packed before: for several ends."""
        if self.open and self._transport is not None:
            self._transport.write(message)

    async def ask(self, name: str, *args: Any) -> Any:
        """The other end's answer. Raises the `ProxyError` that it met, `LinkLost` where it is gone."""
        if not self.open:
            raise LinkLost
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._say(("ask", number, name, args))
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        """Ends the link; the other end hears of it."""
        if self._transport is not None:
            self._transport.close()

    def _say(self, message: Any) -> None:
        self.tell_packed(packed(message))

    # hearing

    def _take(self, message: Any) -> None:
        match message:
            case ("tell", name, args):
                self._hear(name, args)
            case ("ask", number, name, args):
                spawn(self._answer(number, name, args), name=f"answer to {name}")
            case ("answer", number, value):
                self._answered(number, value)
            case _:
                log.error("a message that nobody understands")

    async def _answer(self, number: int, name: str, args: tuple[Any, ...]) -> None:
        try:
            message = packed(("answer", number, (True, await self._serve(name, args))))
        except ProxyError as error:
            message = packed(("answer", number, (False, error)))
        except Exception:
            log.exception("%s failed", name)
            error = ProxyError("the process that asks the upstream failed; its log says why")
            message = packed(("answer", number, (False, error)))
        self.tell_packed(message)

    def _answered(self, number: int, value: tuple[bool, Any]) -> None:
        answer = self._asked.pop(number, None)
        if answer is None or answer.done():
            return
        good, result = value
        if good:
            answer.set_result(result)
        else:
            answer.set_exception(result)

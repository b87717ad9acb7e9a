"""TLS in front of a connection, so that `ConnectionLimits` hold during the handshake, too.

asyncio reports a TLS connection only after the handshake, so a server could not count those that never finish one. So
this module accepts plain TCP, counts it, and starts TLS itself.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, ClassVar

from nacos_proxy.fastpath.limits import LimitedProtocol
from nacos_proxy.runtime import spawn


class TlsProtocol(asyncio.Protocol):
    """One connection until its handshake is done; then an `inner_class` takes over.

    It is not a `LimitedProtocol`, because there is no HTTP before the handshake. `make_tls` sets the class attributes.
    """

    inner_class: ClassVar[type[LimitedProtocol]]
    context: ClassVar[ssl.SSLContext]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inner = self.inner_class(*args, **kwargs)
        self._connections: set[Any] = self._inner.connections
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []  # bytes that came before TLS, and then before `_inner`, took the transport
        self._lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._transport is not None:
            return
        self._transport = transport
        self._connections.add(self)
        if self._inner.is_over_limit():
            self._connections.discard(self)
            transport.abort()  # a response would need the handshake
            return
        spawn(self._shake_hands(transport), name="TLS handshake")

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        spawn(self._secure(transport), name="TLS")
        await asyncio.sleep(0)  # `start_tls` takes the transport,
        await asyncio.sleep(0)  # and begins to read
        self._hand_over(transport)

    async def _secure(self, transport: asyncio.Transport) -> None:
        loop, timeout = asyncio.get_running_loop(), self._inner.limits.read_timeout
        try:
            secured = await loop.start_tls(
                transport, self, self.context, server_side=True, ssl_handshake_timeout=timeout
            )
        except OSError:  # not TLS, timed out, or disconnected
            transport.abort()
            return
        finally:
            self._connections.discard(self)
        if secured is None or self._lost:
            return
        secured.set_protocol(self._inner)
        self._inner.connection_made(secured)
        if self._early:
            self._inner.data_received(b"".join(self._early))

    def _hand_over(self, transport: asyncio.Transport) -> None:
        """Gives TLS the bytes that came before it took the transport: uvloop always reads from a new transport."""
        early, self._early = b"".join(self._early), []
        tls: Any = transport.get_protocol()  # an `asyncio.BufferedProtocol`
        while early and tls is not self:
            buffer = tls.get_buffer(len(early))
            size = min(len(buffer), len(early))
            buffer[:size] = early[:size]
            tls.buffer_updated(size)
            early = early[size:]

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._connections.discard(self)

    def shutdown(self) -> None:
        """uvicorn calls this when the server stops."""
        if self._transport is not None:
            self._transport.abort()


def make_tls(inner_class: type[LimitedProtocol], context: ssl.SSLContext) -> type[TlsProtocol]:
    """The class for uvicorn's `http=`. uvicorn itself must not be configured for TLS."""
    return type("BoundTlsProtocol", (TlsProtocol,), {"inner_class": inner_class, "context": context})

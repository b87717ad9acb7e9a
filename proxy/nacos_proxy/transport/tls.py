"""TLS in front of a connection, so that bounds on connections hold during the handshake, too.

asyncio reports a TLS connection only after the handshake, so a server could not count those that never finish one. So
this module accepts plain TCP, counts it, and starts TLS itself.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from nacos_proxy.runtime import spawn


class TlsProtocol(asyncio.Protocol):
    """One connection until its handshake is done, within `timeout` seconds; then `inner` takes over.

    A subclass counts handshakes: `_admit` and `_leave`.
    """

    def __init__(self, inner: asyncio.Protocol, context: ssl.SSLContext, timeout: float) -> None:
        self._follower = inner
        self._context = context
        self._timeout = timeout
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []  # bytes that came before TLS, and then before the inner protocol, took over
        self._counted = False
        self._lost = False

    def _admit(self, transport: asyncio.Transport) -> bool:
        """Counts this handshake; False: there are too many connections."""
        raise NotImplementedError

    def _leave(self) -> None:
        """The handshake has ended, one way or the other. The inner protocol counts itself."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._transport is not None:
            return
        self._transport = plain = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        if not self._admit(plain):
            plain.abort()  # a response would need the handshake
            return
        self._counted = True
        spawn(self._shake_hands(plain), name="TLS handshake")

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        spawn(self._secure(transport), name="TLS")
        await asyncio.sleep(0)  # `start_tls` takes the transport,
        await asyncio.sleep(0)  # and begins to read
        self._hand_over(transport)

    async def _secure(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport, self, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except OSError:  # not TLS, timed out, or disconnected
            transport.abort()
            return
        finally:
            self._uncount()
        if secured is None or self._lost:
            return
        secured.set_protocol(self._follower)
        self._follower.connection_made(secured)
        if self._early:
            self._follower.data_received(b"".join(self._early))

    def _hand_over(self, transport: asyncio.Transport) -> None:
        """Gives TLS the bytes that came before it took the transport: uvloop always reads from a new transport."""
        early, self._early = b"".join(self._early), []
        tls: Any = transport.get_protocol()  # an `asyncio.BufferedProtocol`, but for asyncio's own on Python 3.10
        if early and tls is not self and not hasattr(tls, "get_buffer"):
            tls.data_received(early)
            return
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
        self._uncount()

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            self._leave()

    def shutdown(self) -> None:
        """The server stops."""
        if self._transport is not None:
            self._transport.abort()

"""TLS in front of a connection: its handshake counts as a connection, and has an end.

Not for: certificates (`serving`). asyncio tells a protocol of its connection only after the handshake, so a server that
leaves TLS to it counts none of those that never finish one. Here the connection is accepted as plain TCP and counted.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, ClassVar, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from nacos_proxy.fastpath.limits import LimitedProtocol
from nacos_proxy.runtime import spawn


class TlsProtocol(asyncio.Protocol):
    """One connection until its handshake is done; then `made` has it. `make_tls` fills in what connections share."""

    made: ClassVar[type[LimitedProtocol]]
    context: ClassVar[ssl.SSLContext]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._inner = self.made(config, server_state, app_state, _loop)
        self._connections = cast("set[Any]", server_state.connections)
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []  # what came before TLS took the transport; then, before `made` has it
        self._lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._transport is not None:
            return
        self._transport = transport
        self._connections.add(self)
        if self._inner.crowded:
            self._connections.discard(self)
            transport.abort()  # to say why would take the handshake
            return
        spawn(self._shake_hands(transport), name="TLS handshake")

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        spawn(self._secure(transport), name="TLS")
        await asyncio.sleep(0)  # it takes the transport,
        await asyncio.sleep(0)  # is told so, and reads from now on
        self._hand_over(transport)

    async def _secure(self, transport: asyncio.Transport) -> None:
        loop, patience = asyncio.get_running_loop(), self._inner.limits.patience
        try:
            secured = await loop.start_tls(
                transport, self, self.context, server_side=True, ssl_handshake_timeout=patience
            )
        except OSError:  # no TLS, not in time, or gone
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
        """What came before TLS had the transport: under uvloop a new one cannot be kept from reading."""
        early, self._early = b"".join(self._early), []
        taker: Any = transport.get_protocol()  # by the interface of `asyncio.BufferedProtocol`
        while early and taker is not self:
            room = taker.get_buffer(len(early))
            size = min(len(room), len(early))
            room[:size] = early[:size]
            taker.buffer_updated(size)
            early = early[size:]

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._connections.discard(self)

    def shutdown(self) -> None:
        """The server stops."""
        if self._transport is not None:
            self._transport.abort()


def make_tls(made: type[LimitedProtocol], context: ssl.SSLContext) -> type[TlsProtocol]:
    """The class for uvicorn's `http=`, which is to know nothing of TLS itself."""
    return type("BoundTlsProtocol", (TlsProtocol,), {"made": made, "context": context})

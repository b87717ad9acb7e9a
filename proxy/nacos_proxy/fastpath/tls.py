"""TLS in front of a connection of HTTP/1.1, so that `ConnectionLimits` hold during the handshake, too."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, ClassVar

from nacos_proxy.fastpath.limits import LimitedProtocol
from nacos_proxy.transport.tls import TlsProtocol


class HttpsProtocol(TlsProtocol):
    """It is not a `LimitedProtocol`, because there is no HTTP before the handshake. `make_tls` sets the attributes."""

    inner_class: ClassVar[type[LimitedProtocol]]
    context: ClassVar[ssl.SSLContext]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inner = self.inner_class(*args, **kwargs)
        super().__init__(self._inner, self.context, self._inner.limits.read_timeout)
        self._connections: set[Any] = self._inner.connections

    def _admit(self, transport: asyncio.Transport) -> bool:
        self._connections.add(self)
        if self._inner.is_over_limit():
            self._connections.discard(self)
            return False
        return True

    def _leave(self) -> None:
        self._connections.discard(self)


def make_tls(inner_class: type[LimitedProtocol], context: ssl.SSLContext) -> type[HttpsProtocol]:
    """The class for uvicorn's `http=`. uvicorn itself must not be configured for TLS."""
    return type("BoundHttpsProtocol", (HttpsProtocol,), {"inner_class": inner_class, "context": context})

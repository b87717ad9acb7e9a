"""What an exception of httpx means to a caller: which error it becomes, and whether the call may have arrived."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import httpx

from nacos_proxy.model.errors import Busy, Garbled, TooSlow, Unreachable, UpstreamError


class Fault(Enum):
    """How an exchange failed."""

    NEVER_SENT = "no connection"
    NO_ROOM = "no connection became free in time"
    PERHAPS_SENT = "the connection was lost"
    NO_ANSWER = "no answer in time"
    INVALID_ANSWER = "the answer is invalid"


FAULTS: Mapping[type[BaseException], Fault] = {
    httpx.ConnectError: Fault.NEVER_SENT,
    httpx.ConnectTimeout: Fault.NEVER_SENT,
    httpx.PoolTimeout: Fault.NO_ROOM,
    httpx.ProxyError: Fault.NEVER_SENT,
    httpx.UnsupportedProtocol: Fault.NEVER_SENT,
    httpx.LocalProtocolError: Fault.NEVER_SENT,
    httpx.InvalidURL: Fault.NEVER_SENT,
    httpx.CookieConflict: Fault.NEVER_SENT,
    httpx.ReadError: Fault.PERHAPS_SENT,
    httpx.WriteError: Fault.PERHAPS_SENT,
    httpx.CloseError: Fault.PERHAPS_SENT,
    httpx.NetworkError: Fault.PERHAPS_SENT,
    httpx.TransportError: Fault.PERHAPS_SENT,
    httpx.RequestError: Fault.PERHAPS_SENT,
    httpx.HTTPError: Fault.PERHAPS_SENT,
    httpx.RequestNotRead: Fault.PERHAPS_SENT,
    httpx.ResponseNotRead: Fault.PERHAPS_SENT,
    httpx.StreamError: Fault.PERHAPS_SENT,
    httpx.StreamClosed: Fault.PERHAPS_SENT,
    httpx.StreamConsumed: Fault.PERHAPS_SENT,
    OSError: Fault.PERHAPS_SENT,
    httpx.ReadTimeout: Fault.NO_ANSWER,
    httpx.WriteTimeout: Fault.NO_ANSWER,
    httpx.TimeoutException: Fault.NO_ANSWER,
    httpx.ProtocolError: Fault.INVALID_ANSWER,
    httpx.RemoteProtocolError: Fault.INVALID_ANSWER,
    httpx.DecodingError: Fault.INVALID_ANSWER,
    httpx.TooManyRedirects: Fault.INVALID_ANSWER,
    httpx.HTTPStatusError: Fault.INVALID_ANSWER,
}

CAUGHT = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError, OSError)


def upstream_error(error: BaseException, server: str) -> UpstreamError:
    """The error that a caller gets for any of `CAUGHT`; `server` is the address for its text."""
    fault = next((FAULTS[base] for base in type(error).__mro__ if base in FAULTS), Fault.PERHAPS_SENT)
    text = f"{server}: {str(error) or fault.value}"
    match fault:
        case Fault.NEVER_SENT:
            return Unreachable(text, arrived=False)
        case Fault.NO_ROOM:
            return Busy(text)
        case Fault.PERHAPS_SENT:
            return Unreachable(text, arrived=True)
        case Fault.NO_ANSWER:
            return TooSlow(text)
        case Fault.INVALID_ANSWER:
            return Garbled(text)

"""Turns exceptions of httpx into the proxy's errors, which say whether the call may have arrived."""

from __future__ import annotations

import httpx

from nacos_proxy.model.errors import Busy, Garbled, TooSlow, Unreachable, UpstreamError

CAUGHT = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError, OSError)

_NEVER_SENT = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol),
    *(httpx.LocalProtocolError, httpx.InvalidURL, httpx.CookieConflict),
)
_INVALID_ANSWER = (httpx.ProtocolError, httpx.DecodingError, httpx.TooManyRedirects, httpx.HTTPStatusError)


def upstream_error(error: BaseException, server: str) -> UpstreamError:
    """The error that a caller gets for any of `CAUGHT`. `server` is the address for its text."""
    text = str(error)
    if isinstance(error, _NEVER_SENT):
        return Unreachable(f"{server}: {text or 'no connection'}", arrived=False)
    if isinstance(error, httpx.PoolTimeout):
        return Busy(f"{server}: {text or 'no connection became free in time'}")
    if isinstance(error, httpx.TimeoutException):
        return TooSlow(f"{server}: {text or 'no answer in time'}")
    if isinstance(error, _INVALID_ANSWER):
        return Garbled(f"{server}: {text or 'the answer is invalid'}")
    return Unreachable(f"{server}: {text or 'the connection was lost'}", arrived=True)

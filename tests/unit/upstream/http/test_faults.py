from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx
import pytest

from nacos_proxy.model.errors import Busy, Garbled, TooSlow, Unreachable, UpstreamError
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error

NEVER_SENT = (Unreachable, False, 502, "no connection")
PERHAPS_SENT = (Unreachable, True, 502, "the connection was lost")
NO_ROOM = (Busy, False, 503, "no connection became free in time")
NO_ANSWER = (TooSlow, True, 504, "no answer in time")
INVALID_ANSWER = (Garbled, True, 502, "the answer is invalid")

FAULTS: dict[type[BaseException], tuple[type[UpstreamError], bool, int, str]] = {
    httpx.ConnectError: NEVER_SENT,
    httpx.ConnectTimeout: NEVER_SENT,
    httpx.PoolTimeout: NO_ROOM,
    httpx.ProxyError: NEVER_SENT,
    httpx.UnsupportedProtocol: NEVER_SENT,
    httpx.LocalProtocolError: NEVER_SENT,
    httpx.InvalidURL: NEVER_SENT,
    httpx.CookieConflict: NEVER_SENT,
    httpx.ReadError: PERHAPS_SENT,
    httpx.WriteError: PERHAPS_SENT,
    httpx.CloseError: PERHAPS_SENT,
    httpx.NetworkError: PERHAPS_SENT,
    httpx.TransportError: PERHAPS_SENT,
    httpx.RequestError: PERHAPS_SENT,
    httpx.HTTPError: PERHAPS_SENT,
    httpx.RequestNotRead: PERHAPS_SENT,
    httpx.ResponseNotRead: PERHAPS_SENT,
    httpx.StreamError: PERHAPS_SENT,
    httpx.StreamClosed: PERHAPS_SENT,
    httpx.StreamConsumed: PERHAPS_SENT,
    OSError: PERHAPS_SENT,
    httpx.ReadTimeout: NO_ANSWER,
    httpx.WriteTimeout: NO_ANSWER,
    httpx.TimeoutException: NO_ANSWER,
    httpx.ProtocolError: INVALID_ANSWER,
    httpx.RemoteProtocolError: INVALID_ANSWER,
    httpx.DecodingError: INVALID_ANSWER,
    httpx.TooManyRedirects: INVALID_ANSWER,
    httpx.HTTPStatusError: INVALID_ANSWER,
}


def family(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


def of_httpx() -> set[type[BaseException]]:
    """Every exception that httpx defines, public or not, whatever it derives from."""
    found = {kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, BaseException)}
    for kind in list(found):
        found |= {child for child in family(kind) if child.__module__.partition(".")[0] == "httpx"}
    return found


def instance(kind: type[BaseException], text: str = "why") -> BaseException:
    """An exception as httpx raises it, whatever its constructor needs."""
    error = kind.__new__(kind)
    error.args = (text,) if text else ()
    return error


def test_table_of_faults_contains_every_exception_of_httpx() -> None:
    assert len(of_httpx()) > 25
    assert of_httpx() - set(FAULTS) == set()


def test_caught_contains_every_exception_of_the_table() -> None:
    assert [kind for kind in FAULTS if not issubclass(kind, CAUGHT)] == []
    assert [kind for kind in CAUGHT if kind not in FAULTS] == []


@pytest.mark.parametrize("kind", sorted(FAULTS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_upstream_error_follows_the_table(kind: type[BaseException]) -> None:
    error = upstream_error(instance(kind), "http://nacos:8848")
    assert isinstance(error, UpstreamError)
    assert str(error) == "http://nacos:8848: why"
    assert (type(error), error.arrived, error.status) == FAULTS[kind][:3]


def test_upstream_error_allows_repeating_only_what_cannot_have_arrived() -> None:
    """The dangerous mistake would be to call a write unsent that was sent."""
    unsent = {kind for kind in FAULTS if not upstream_error(instance(kind), "http://nacos").arrived}
    assert unsent == {
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.PoolTimeout,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        httpx.InvalidURL,
        httpx.CookieConflict,
    }


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("late"), ssl.SSLError("tls"), OSError()])
def test_upstream_error_of_an_os_error_may_have_arrived(error: OSError) -> None:
    assert upstream_error(error, "http://nacos").arrived


def test_upstream_error_of_an_unknown_exception_may_have_arrived() -> None:
    class New(Exception):
        """Of a future version."""

    assert upstream_error(New("x"), "s").arrived


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_upstream_error_describes_an_exception_without_text(kind: type[BaseException]) -> None:
    assert str(upstream_error(instance(kind, ""), "http://nacos")) == f"http://nacos: {FAULTS[kind][3]}"

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx
import pytest

from nacos_proxy.model.errors import Busy, Garbled, TooSlow, Unreachable, UpstreamError
from nacos_proxy.upstream.http.faults import CAUGHT, FAULTS, Fault, upstream_error


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


def test_faults_contain_every_exception_of_httpx() -> None:
    assert len(of_httpx()) > 25
    assert of_httpx() - set(FAULTS) == set()


def test_faults_and_caught_agree() -> None:
    assert [kind for kind in FAULTS if not issubclass(kind, CAUGHT)] == []
    assert [kind for kind in CAUGHT if kind not in FAULTS] == []


@pytest.mark.parametrize("kind", sorted(FAULTS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_upstream_error_follows_the_table(kind: type[BaseException]) -> None:
    error = upstream_error(instance(kind), "http://nacos:8848")
    assert isinstance(error, UpstreamError)
    assert str(error) == "http://nacos:8848: why"
    expected: dict[Fault, tuple[type[UpstreamError], bool, int]] = {
        Fault.NEVER_SENT: (Unreachable, False, 502),
        Fault.NO_ROOM: (Busy, False, 503),
        Fault.PERHAPS_SENT: (Unreachable, True, 502),
        Fault.NO_ANSWER: (TooSlow, True, 504),
        Fault.INVALID_ANSWER: (Garbled, True, 502),
    }
    assert (type(error), error.arrived, error.status) == expected[FAULTS[kind]]


def test_upstream_error_allows_repeating_only_what_cannot_have_arrived() -> None:
    """The dangerous mistake would be to call a write unsent that was sent."""
    unsent = {kind for kind, fault in FAULTS.items() if fault in (Fault.NEVER_SENT, Fault.NO_ROOM)}
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


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_upstream_error_describes_an_exception_without_text(kind: type[BaseException]) -> None:
    assert str(upstream_error(instance(kind, ""), "http://nacos")) == f"http://nacos: {FAULTS[kind].value}"

"""One browser for the session, and a page of another origin (another port of this host)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.helpers.browser import Browser, browsing, missing
from tests.helpers.live import ProxyProcess

REBOUND, REBOUND_NEARBY = "rebound.example", "rebound"  # the second as in a local network


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!doctype html><title>elsewhere</title><link rel=icon href=data:,><h1>A page of somebody else</h1>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[str]:
    """The origin of a page that is not the proxy's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(f"no browser: {reason}")
    # DNS-rebinding names: they belong to another page's site and resolve to this host.
    rules = ", ".join(f"MAP {name} 127.0.0.1" for name in (REBOUND, REBOUND_NEARBY))
    with browsing([f"--host-resolver-rules={rules}"]) as browser:
        yield browser


@pytest.fixture
def browser(_chromium: Browser) -> Browser:
    """The browser at an empty page, with no requests and no console messages yet."""
    _chromium.go("about:blank")
    _chromium.asked()
    _chromium.complaints()
    return _chromium


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    """A proxy with default settings: no other origin is allowed."""
    with ProxyProcess() as process:
        yield process

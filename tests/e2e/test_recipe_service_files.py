"""Service files, as docs/recipes/service-files.md has them: the real process, a real r-nacos, real servers to check."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from nacos_proxy.wire.service_files import parse
from tests.helpers.live import ProxyProcess, RNacos, free_port, rnacos_binary
from tests.helpers.recipes import block

BEATS = 'metadata = {"preserved.heart.beat.interval" = "1000"}\n'
FAST = BEATS + 'check.interval = "200ms"\ncheck.failures = 1\n'
PATIENCE = 60.0  # seconds


class Legacy:
    """A server that knows nothing of Nacos; `healthy` decides what its check gets."""

    def __init__(self) -> None:
        self.healthy = True
        legacy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if legacy.healthy and self.path == "/health" else 503)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[Legacy]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def hang_up(proxy: ProxyProcess, said: str = "service files declare") -> None:
    before = proxy.log.count("\n")
    proxy.signal(signal.SIGHUP)
    proxy.wait_for(re.compile(said), since=before)


def at(nacos: str, service: str) -> dict[str, bool]:
    """What Nacos itself lists: whether each address is healthy."""
    query = {"serviceName": service, "healthyOnly": "false"}
    listed = httpx.get(f"{nacos}/nacos/v1/ns/instance/list", params=query, trust_env=False).json()
    return {f"{host['ip']}:{host['port']}": host["healthy"] for host in listed["hosts"]}


def until(found: Callable[[], dict[str, bool]], wanted: dict[str, bool]) -> None:
    clock = SystemClock()
    end, pause = clock.now() + PATIENCE, threading.Event()
    while (shown := found()) != wanted:
        assert clock.now() < end, shown
        pause.wait(0.05)


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    """An r-nacos that marks an instance unhealthy some seconds after its last beat."""
    binary = rnacos_binary()
    if binary is None:
        pytest.skip("no r-nacos")
    with RNacos(binary, settings={"RNACOS_NAMING_HEALTH_TIMEOUT_SECOND": "2"}) as server:
        yield server.url


def test_recipe_shows_every_field_and_each_is_accepted() -> None:
    first, second = parse(block("service-files", "shop.toml"))
    assert first.register.service.grouped == "shop@@orders"
    assert (first.register.instance.weight, second.register.instance.weight) == (2.0, 1.0)
    assert first.managed is not None and first.managed["check"] == {"http": "http://10.0.0.7:8080/health"}
    assert second.managed is not None and second.managed["check"] == {"http": "http://[2001:db8::7]:8081/health"}


def test_three_lines_register_and_follow_the_check_and_the_files(quick: str, service: str, tmp_path: Path) -> None:
    files = tmp_path / "services.d"
    files.mkdir()
    with Legacy().serving() as legacy, Legacy().serving() as second:
        first, other = (
            block("service-files", "legacy.toml", {"legacy": service, "127.0.0.1:8080": server.address})
            for server in (legacy, second)
        )
        assert len(first.splitlines()) == 3
        (files / "a.toml").write_text(first + FAST)
        with ProxyProcess("--upstream", quick, "--services-dir", str(files)) as proxy:
            until(lambda: at(quick, service), {legacy.address: True})
            (files / "b.toml").write_text(other + BEATS)
            hang_up(proxy)
            both = {legacy.address: True, second.address: True}
            until(lambda: at(quick, service), both)
            legacy.healthy = False
            until(lambda: at(quick, service), both | {legacy.address: False})
            legacy.healthy = True
            until(lambda: at(quick, service), both)
            (files / "b.toml").write_text('service = "legacy"\nadress = "127.0.0.1:1"\n')
            hang_up(
                proxy, "the service file b.toml is not used, what it declared before stays: adress is not known here"
            )
            status = httpx.get(f"{proxy.url}/status", trust_env=False).json()
            assert "did you mean 'address'?" in status["serviceFiles"]["errors"]["b.toml"]
            assert "nacos_proxy_service_files_broken 1.0" in httpx.get(f"{proxy.url}/metrics", trust_env=False).text
            assert at(quick, service) == both
            (files / "b.toml").unlink()
            hang_up(proxy)
            until(lambda: at(quick, service), {legacy.address: True})
            assert proxy.terminate() == 0
            (files / "a.toml").unlink()
            proxy.start()
            until(lambda: at(quick, service), {})
            assert "Traceback" not in proxy.log


def test_an_instance_is_registered_when_the_upstream_comes_up_after_the_proxy(service: str, tmp_path: Path) -> None:
    port, files = free_port(), tmp_path / "services.d"
    files.mkdir()
    (files / "a.toml").write_text(f'service = "{service}"\naddress = "127.0.0.1:1"\n')
    upstream = ("--upstream", f"http://127.0.0.1:{port}", "--push", "off", "--breaker-longest", "500ms")
    with ProxyProcess("--services-dir", str(files), *upstream) as proxy:
        proxy.wait_for(re.compile("upstream lost"))
        with ProxyProcess("--port", str(port)) as nacos:
            until(lambda: at(nacos.url, service), {"127.0.0.1:1": True})

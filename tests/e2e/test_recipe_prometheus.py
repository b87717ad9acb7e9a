"""docs/recipes/prometheus.md with the real Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.e2e.test_tools import checked, tool
from tests.helpers.live import Process, ProxyProcess, RNacos, free_port, rnacos_binary
from tests.helpers.recipes import block
from tests.helpers.scaling import PATIENCE, Backends


class Prometheus:
    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def targets(self) -> list[dict[str, Any]]:
        """The active targets; none before it is ready."""
        answer = self._http.get("/api/v1/targets?state=active")
        return [] if answer.status_code == 503 else answer.raise_for_status().json()["data"]["activeTargets"]

    def follows(self, addresses: list[str]) -> dict[str, Any]:
        """Waits until these are its targets: it takes a new list at most every 5 s. Returns them by address."""
        clock, pause = SystemClock(), threading.Event()
        end = clock.now() + PATIENCE
        while True:
            found = {target["discoveredLabels"]["__address__"]: target for target in self.targets()}
            if found.keys() == {*addresses}:
                return found
            assert clock.now() < end, f"expected {addresses}, got {found.keys()}"
            pause.wait(0.05)


@contextmanager
def prometheus(directory: Path, config: str, proxy: ProxyProcess) -> Iterator[Prometheus]:
    file, port = directory / "prometheus.yml", free_port()
    often = {"http://127.0.0.1:8840": proxy.url, "15s": "300ms"}
    for old, new in often.items():
        config = config.replace(old, new)
    file.write_text(f"global: {{scrape_interval: 300ms}}\n{config}")
    checked(tool("promtool"), "check", "config", str(file))
    listen = f"--web.listen-address=127.0.0.1:{port}"
    with Process([tool("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={directory}/data", listen]):
        transport = httpx.HTTPTransport(retries=5)  # until it listens
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as http:
            yield Prometheus(http)


def test_prometheus_follows_a_service_even_while_the_upstream_is_away(tmp_path: Path) -> None:
    binary = rnacos_binary()
    if binary is None:
        pytest.skip("no r-nacos here")
    # r-nacos does not list the services of all groups
    config = block("prometheus", "prometheus.yml", {"service=*&group=*": "service=orders"})
    with (
        RNacos(binary) as upstream,
        ProxyProcess("--upstream", upstream.url) as proxy,
        Backends(proxy.url, "orders", lambda number: {"zone": f"z{number}"}) as backends,
        prometheus(tmp_path, config, proxy) as there,
    ):
        backends.scale(3)
        found = there.follows(backends.addresses)
        assert {target["labels"]["zone"] for target in found.values()} == {"z1", "z2", "z3"}
        upstream.kill()
        backends.scale(0)
        there.follows([])


def test_prometheus_scrapes_the_services_of_all_groups_by_our_path_and_by_that_of_nacos(tmp_path: Path) -> None:
    ours = block("prometheus", "prometheus.yml")
    theirs = block("prometheus", "drop-in.yml", {"scrape_configs:\n": "", "job_name: nacos": "job_name: own"})
    clock, pause = SystemClock(), threading.Event()
    with ProxyProcess() as proxy, httpx.Client(base_url=proxy.url, trust_env=False) as http:
        for group, port in (("g1", proxy.port), ("g2", free_port())):
            metadata = {"prometheus.io/path": "/metrics", "team": "web", "e/f": "x", "e.f": "y"}
            body = {"ip": "127.0.0.1", "port": port, "metadata": metadata, "ephemeral": False}
            http.post(f"/api/v1/services/{group}@@proxies/instances", json=body).raise_for_status()
        with prometheus(tmp_path, ours + theirs, proxy) as there:
            end = clock.now() + PATIENCE
            wanted = {("nacos", "up"), ("nacos", "down"), ("own", "up"), ("own", "down")}
            while {(it["scrapePool"], it["health"]) for it in there.targets()} != wanted:
                assert clock.now() < end, there.targets()
                pause.wait(0.05)
            up = {it["scrapePool"]: it["labels"] for it in there.targets() if it["health"] == "up"}
        assert up["nacos"] == {"job": "proxies", "instance": f"127.0.0.1:{proxy.port}"}
        assert up["own"].items() >= {"team": "web", "e_f": "y", "e_f_2": "x", "job": "own"}.items()

"""docs/recipes/traefik.md with the real Traefik, where `TRAEFIK` names its binary: no package of Debian has it."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.helpers.live import Process, ProxyProcess, RNacos, free_port, rnacos_binary
from tests.helpers.recipes import block
from tests.helpers.scaling import Backends, scales, steady


def test_traefik_follows_a_service_up_down_and_to_zero(tmp_path: Path) -> None:
    traefik = os.environ.get("TRAEFIK", "")
    binary = rnacos_binary()
    if not traefik or binary is None:
        pytest.skip("TRAEFIK names no binary of Traefik, or there is no r-nacos")
    port, routes = free_port(), tmp_path / "routes.yml"
    with (
        RNacos(binary) as upstream,
        ProxyProcess("--upstream", upstream.url) as proxy,
        Backends(proxy.url, "orders") as backends,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as http,
    ):
        routes.write_text(block("traefik", "routes.yml"))
        replace = {
            "127.0.0.1:8080": f"127.0.0.1:{port}",
            "http://127.0.0.1:8840": proxy.url,
            "500ms": "100ms",
            "2s": "200ms",
            "/etc/traefik/routes.yml": str(routes),
        }
        config = tmp_path / "traefik.yml"
        config.write_text(
            block("traefik", "traefik.yml", replace) + "global: {checkNewVersion: false, sendAnonymousUsage: false}\n"
        )

        def ask() -> str:
            return http.get("/").raise_for_status().text

        with Process([traefik, f"--configFile={config}"]), steady(ask) as load:
            scales(backends, load)
            upstream.kill()
            scales(backends, load)
            backends.scale(0)
            load.wait_until(lambda _: load.failures != [], "failures while nothing is registered")
            assert "503 Service Unavailable" in load.failures[-1]

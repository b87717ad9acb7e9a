"""A real Envoy, and where it is.

Environment:
    NACOS_PROXY_TEST_ENVOY    path of the binary; unset: build/envoy (.ci/run installs it there), then PATH
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from tests.helpers.live import Process, free_port

INSTALLED = Path(__file__).parents[2] / "build" / "envoy" / "envoy" / "_bin" / "envoy"
READY = re.compile(r"starting main dispatch loop")


def envoy_binary(environ: Mapping[str, str] = os.environ) -> str:
    """The path of Envoy. Skips the test if there is none; fails if the environment names one that cannot be run."""
    named = environ.get("NACOS_PROXY_TEST_ENVOY")
    found = shutil.which(named or str(INSTALLED)) or (None if named else shutil.which("envoy"))
    if found is None:
        if named:
            pytest.fail(f"NACOS_PROXY_TEST_ENVOY names {named}, which cannot be run", pytrace=False)
        pytest.skip("no Envoy here; .ci/run installs it")
    return found


class Envoy(Process):
    """Envoy with a configuration that has the ports 8840 (the proxy), 10000 (its listener) and 9901 (its own API)."""

    def __init__(self, config: str, proxy_port: int, directory: Path) -> None:
        self.port, self.admin = free_port(), free_port()
        for old, new in ((8840, proxy_port), (10000, self.port), (9901, self.admin)):
            text = f"port_value: {old}"
            assert text in config
            config = config.replace(text, f"port_value: {new}")
        path = directory / f"envoy-{self.port}.yaml"
        path.write_text(config)
        # all at level warning but what says that it has started
        levels = ["--log-level", "warning", "--component-log-level", "main:info"]
        super().__init__([envoy_binary(), "-c", str(path), "--use-dynamic-base-id", "--concurrency", "1", *levels])

    def start(self) -> None:
        super().start()
        self.wait_for(READY)

    def ask(self, path: str = "/", headers: Mapping[str, str] | None = None) -> str:
        """The answer of a backend. Raises if the request failed."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, trust_env=False, timeout=20)
        return answer.raise_for_status().text

    def stats(self, prefix: str) -> dict[str, int]:
        """Its counters below `prefix`."""
        url = f"http://127.0.0.1:{self.admin}/stats?format=json&filter=^{re.escape(prefix)}"
        rows = httpx.get(url, trust_env=False, timeout=20).raise_for_status().json()["stats"]
        return {row["name"].removeprefix(prefix): row["value"] for row in rows if "value" in row}

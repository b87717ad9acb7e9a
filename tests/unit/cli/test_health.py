"""The health check of a container."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nacos_proxy.app.settings import Settings
from nacos_proxy.cli.health import LIVE, ready
from tests.helpers.live import ProxyProcess, free_port

CERTIFICATES = Path(__file__).parents[2] / "certificates"
TLS = {"tls_cert": str(CERTIFICATES / "server.pem")}
LONG = 60.0  # a busy machine is not what is looked at
READY_TO_STRANGERS = (True, '{"status":"ready","reasons":["upstream"]}')  # the check sends no token
READY = (True, '{"status":"ready","reasons":["upstream: embedded registry, for development: no Nacos is behind it"]}')


def flags(settings: dict[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "0.0.0.0", "tokens": "read:12345678"},
        {"host": "localhost", "allowed_hosts": "proxy.internal"},
        TLS,
        {"uds": "proxy.sock"},
        {"uds": "proxy.sock", **TLS},
    ],
    ids=str,
)
def test_ready_connects_where_the_settings_say(tmp_path: Path, settings: dict[str, str]) -> None:
    if "uds" in settings:
        settings = {**settings, "uds": str(tmp_path / "p.sock")}
    with ProxyProcess(*flags({"host": "127.0.0.1", **settings})) as proxy:
        given = Settings(**{**settings, "port": proxy.port})  # type: ignore[arg-type]
        assert ready(given, LONG) == (READY_TO_STRANGERS if "tokens" in settings else READY)
    assert not ready(given)[0]


def test_ready_accepts_a_proxy_that_requires_a_client_certificate() -> None:
    settings = {**TLS, "tls_client_ca": str(CERTIFICATES / "ca.pem")}
    with ProxyProcess(*flags(settings)) as proxy:
        given = Settings(**{**settings, "port": proxy.port})  # type: ignore[arg-type]
        assert ready(given, LONG) == (True, "the proxy answers, but requires a client certificate")
    assert not ready(given)[0]


def test_ready_is_false_if_no_read_can_be_answered() -> None:
    with ProxyProcess("--upstream", f"http://127.0.0.1:{free_port()}", "--push", "off") as proxy:
        given = Settings(port=proxy.port)
        while ready(given, LONG)[0]:
            pass
        assert '"unready"' in ready(given, LONG)[1]
        assert ready(given, LONG, LIVE)[0]


def test_ready_is_false_if_nothing_is_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        well, seen = ready(Settings(port=silent.getsockname()[1]), 0.2)
        assert (well, "timed out" in seen) == (False, True)


def test_main_uses_the_variables_and_returns_the_exit_code(running: ProxyProcess) -> None:
    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], "NACOS_PROXY_CONFIG": os.devnull, **variables}
        done = subprocess.run(
            [sys.executable, "-m", "nacos_proxy.cli.health", *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout.strip()

    port = str(running.port)
    assert run(NACOS_PROXY_PORT=port) == (0, READY[1])
    assert run("--live", NACOS_PROXY_PORT=port) == (0, '{"status":"ok"}')
    assert run(NACOS_PROXY_PORT=str(free_port())) == (1, "no answer: Connection refused")
    assert run(NACOS_PROXY_PORT="none")[0] == 1

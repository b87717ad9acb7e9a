"""Webhooks, as docs/recipes/webhooks.md has them: its receiver and its settings, the real process, a real r-nacos."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.live import Process, ProxyProcess, RNacos, free_port
from tests.helpers.recipes import block

SECRET = "s3cret-word"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[Process, int]]:
    """The receiver of the page, and its port. It is not started."""
    port, program = free_port(), tmp_path / "receiver.py"
    program.write_text(block("webhooks", "receiver.py", {"9000": str(port), "change me": SECRET}))
    process = Process([sys.executable, str(program)])
    try:
        yield process, port
    finally:
        process.close()


def settings(directory: Path, service: str, port: int) -> Path:
    (directory / "secret").write_text(f"{SECRET}\n")
    file = directory / "config.toml"
    there = {"orders stock": service, "9000/hook": f"{port}/hook?path=hush"}
    there |= {"/etc/nacos-proxy/webhook-secret": str(directory / "secret")}
    file.write_text(block("webhooks", "config.toml", there))
    return file


def lines(text: str, service: str) -> re.Pattern[str]:
    return re.compile(f"^{text.format(f'DEFAULT_GROUP@@{service}')}$")


def register(proxy: ProxyProcess, service: str, port: int) -> None:
    path = f"{proxy.url}/api/v1/services/{service}/instances"
    httpx.post(path, json={"ip": "10.0.0.1", "port": port}, trust_env=False).raise_for_status()


def test_receiver_gets_snapshot_and_changes_and_the_newest_state_after_it_was_down(
    receiver: tuple[Process, int], rnacos: RNacos, service: str, tmp_path: Path
) -> None:
    process, port = receiver
    process.start()
    with ProxyProcess("--config", str(settings(tmp_path, service, port)), "--upstream", rnacos.url) as proxy:
        process.wait_for(lines("snapshot {}", service))
        register(proxy, service, 1)
        process.wait_for(lines("change {} 10.0.0.1:1", service))
        process.terminate()
        register(proxy, service, 2)
        proxy.wait_for(re.compile(rf"webhook 1 \(127.0.0.1:{port}\) fails and is tried again"))
        register(proxy, service, 3)
        status = httpx.get(f"{proxy.url}/status", trust_env=False).json()
        (hook,) = status["webhooks"]
        assert (hook["host"], hook["state"]) == (f"127.0.0.1:{port}", "failing")
        assert httpx.get(f"{proxy.url}/readyz", trust_env=False).json()["status"] == "ready"
        said = process.log.count("\n")
        process.start()
        process.wait_for(lines("change {} 10.0.0.1:1 10.0.0.1:2 10.0.0.1:3", service), since=said)
        proxy.wait_for(re.compile(r"webhook 1 \(.*\) works again"))
        metrics = httpx.get(f"{proxy.url}/metrics", trust_env=False).text
        assert (
            f'nacos_proxy_webhook_requests_total{{host="127.0.0.1:{port}",outcome="delivered",webhook="1"}}' in metrics
        )
        assert proxy.terminate() == 0
        shown = f"{proxy.log}{status}{metrics}"
        assert "hush" not in shown and SECRET not in shown


def test_receiver_refuses_another_signature(receiver: tuple[Process, int], tmp_path: Path) -> None:
    process, port = receiver
    file = settings(tmp_path, "orders", port)
    (tmp_path / "secret").write_text("another")
    process.start()
    with ProxyProcess("--config", str(file)) as proxy:
        proxy.wait_for(re.compile("webhook 1 .* fails and is given up for this event: it answered 403"))
    assert process.log == ""

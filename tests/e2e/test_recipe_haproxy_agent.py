"""docs/recipes/haproxy-agent.md with the real HAProxy."""

from __future__ import annotations

import csv
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.e2e.test_tools import checked, tool
from tests.helpers.live import Process, ProxyProcess, RNacos, free_port, rnacos_binary
from tests.helpers.recipes import block
from tests.helpers.scaling import PATIENCE, Backends, Load, steady


class Haproxy:
    """HAProxy with two servers, s1 and s2, as the recipe configures it; but it asks ten times as often."""

    def __init__(self, directory: Path, agent_port: int, backends: Backends, asks: str = "") -> None:
        self.port = free_port()
        self._socket = directory / "admin.sock"
        first, second = backends.addresses
        text = block(
            "haproxy-agent",
            "haproxy.cfg",
            {
                "/run/haproxy/admin.sock": str(self._socket),
                "127.0.0.1:8080": f"127.0.0.1:{self.port}",
                "agent-port 8841": f"agent-port {agent_port}",
                "inter 2s": "inter 200ms",
                "10.0.0.1:8080": first,
                "10.0.0.2:8080": second,
                '\\n"': f'{asks}\\n"',
            },
        )
        self.config = directory / "haproxy.cfg"
        self.config.write_text(text)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=10)

    def command(self, text: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._socket))
            admin.sendall(f"{text}\n".encode())
            return admin.makefile("r").read()

    def shows(self, server: str, **fields: str) -> None:
        """Waits until `show stat` has these values."""
        clock = SystemClock()
        end, found = clock.now() + PATIENCE, dict[str, str]()
        while {name: found.get(name) for name in fields} != fields:
            assert clock.now() < end, f"{server}: expected {fields}, got {found}"
            rows = csv.DictReader(self.command("show stat").removeprefix("# ").splitlines())
            found = next(row for row in rows if row["svname"] == server)

    def ask(self) -> str:
        return self.http.get("/").raise_for_status().text


@contextmanager
def running(directory: Path, proxy: ProxyProcess, backends: Backends, asks: str = "") -> Iterator[Haproxy]:
    agent_port = int(proxy.wait_for(re.compile(r"agent checks of HAProxy: 127\.0\.0\.1:(\d+)"))[1])
    haproxy = Haproxy(directory, agent_port, backends, asks)
    checked(tool("haproxy"), "-c", "-f", str(haproxy.config))
    with Process([tool("haproxy"), "-db", "-f", str(haproxy.config)]), haproxy.http:
        while not haproxy.config.with_name("admin.sock").exists():
            pass
        yield haproxy


def alone(load: Load, address: str) -> None:
    load.wait_until(lambda answers: len(answers) >= 20 and {*answers[-20:]} == {address}, f"{address} alone")


def both(load: Load, backends: Backends) -> None:
    load.wait_until(lambda answers: {*answers[-20:]} == {*backends.addresses}, "both servers")


def test_haproxy_takes_servers_out_of_traffic_and_back_without_a_failed_request(tmp_path: Path) -> None:
    with (
        ProxyProcess("--agent-check", "127.0.0.1:0") as proxy,
        Backends(proxy.url, "orders") as backends,
        httpx.Client(base_url=proxy.url, trust_env=False) as http,
    ):
        backends.scale(2)
        first, second = backends.addresses
        with running(tmp_path, proxy, backends) as haproxy, steady(haproxy.ask, rate=200) as load:
            both(load, backends)

            def change(**fields: object) -> None:
                http.patch(backends.instance(second), json=fields).raise_for_status()

            for there, back, status, said in (
                ({"weight": 0}, {"weight": 1}, "DRAIN (agent)", "via agent : up (weight 0)"),
                ({"enabled": False}, {"enabled": True}, "MAINT", "via agent : down (disabled)"),
            ):
                change(**there)
                haproxy.shows("s2", status=status, last_agt=said)
                alone(load, first)
                change(**back)
                haproxy.shows("s2", status="UP")
                both(load, backends)

            backends.scale(1)
            haproxy.shows("s2", status="MAINT", last_agt="via agent : down (not registered)")
            alone(load, first)
            backends.retire()
            alone(load, first)
            assert load.failures == []
        status = http.get("/status").json()["agentCheck"]
        assert status["answers"].keys() == {"up", "drain", "maint"}
        assert 'nacos_proxy_agent_checks_total{answer="drain"}' in http.get("/metrics").text


def test_haproxy_keeps_its_servers_without_an_answer(tmp_path: Path) -> None:
    with ProxyProcess("--agent-check", "127.0.0.1:0") as proxy, Backends(proxy.url, "orders") as backends:
        backends.scale(2)
        with running(tmp_path, proxy, backends, asks=" nonsense") as haproxy, steady(haproxy.ask) as load:
            haproxy.shows("s1", agent_status="L7RSP", status="UP")
            both(load, backends)
            assert load.failures == []


def test_haproxy_follows_the_proxy_while_the_upstream_is_away(tmp_path: Path) -> None:
    binary = rnacos_binary()
    if binary is None:
        pytest.skip("no r-nacos here")
    with (
        RNacos(binary) as upstream,
        ProxyProcess("--agent-check", "127.0.0.1:0", "--upstream", upstream.url) as proxy,
        Backends(proxy.url, "orders") as backends,
    ):
        backends.scale(2)
        with running(tmp_path, proxy, backends) as haproxy, steady(haproxy.ask) as load:
            haproxy.shows("s1", agent_status="L7OK")
            both(load, backends)
            upstream.kill()
            both(load, backends)
            first = backends.addresses[0]
            backends.scale(1)
            haproxy.shows("s2", status="MAINT")
            backends.retire()
            alone(load, first)
            assert load.failures == []


def test_haproxy_takes_shares_of_its_weight_on_request(tmp_path: Path) -> None:
    with (
        ProxyProcess("--agent-check", "127.0.0.1:0") as proxy,
        Backends(proxy.url, "orders") as backends,
        httpx.Client(base_url=proxy.url, trust_env=False) as http,
    ):
        backends.scale(2)
        http.patch(backends.instance(backends.addresses[0]), json={"weight": 0.5}).raise_for_status()
        with running(tmp_path, proxy, backends, asks=" weight") as haproxy:
            haproxy.shows("s1", weight="50")
            haproxy.shows("s2", weight="100")

"""The installed command, for people and for scripts; each command once against a running proxy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.live import Process, ProxyProcess, RNacos, free_port

NACOS_PROXY = Path(sys.executable).parent / "nacos-proxy"


def environment(server: str = "") -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    return {**clean, "NACOS_PROXY_CONFIG": os.devnull, "NACOS_PROXY_SERVER": server, "TERM": "dumb"}


class Shell:
    """Runs the command against one proxy."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy = proxy
        self.env = environment(proxy.url)

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run([str(NACOS_PROXY), *arguments], env=self.env, capture_output=True, text=True, timeout=100)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *arguments: str) -> Any:
        done = subprocess.run(
            [str(NACOS_PROXY), *arguments, "--json"], env=self.env, capture_output=True, text=True, timeout=100
        )
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with ProxyProcess() as proxy:
        yield Shell(proxy)


def test_cli_register_get_list_pick_modify_beat_deregister_and_watch(shell: Shell) -> None:
    place = ("orders", "10.0.0.1:8080")
    watch = Process([str(NACOS_PROXY), "watch", "orders", "--json"], env=shell.env)
    with watch:
        watch.wait_for(re.compile('"event": "snapshot"'))
        patient = [f"--metadata=preserved.{name}=900000" for name in ("heart.beat.timeout", "ip.delete.timeout")]
        said = shell.run("register", *place, "--weight", "2", "--metadata", "zone=a", *patient)
        assert said.startswith("registered 10.0.0.1:8080 in orders\nIt is ephemeral: without heartbeats")
        assert "10.0.0.1:8080" in shell.run("get", "orders")
        assert shell.json("list")["services"] == ["orders"]
        assert shell.run("pick", "orders", "--strategy", "hash", "--key", "user-42") == "10.0.0.1:8080\n"
        assert shell.run("pick", "orders", "-n", "3", "--strategy", "least_recent") == "10.0.0.1:8080\n"
        shell.run("modify", *place, "--weight", "5")
        assert shell.json("get", "orders")["hosts"][0]["weight"] == 5.0
        assert shell.json("beat", *place)["clientBeatInterval"] == 5000
        shell.run("deregister", *place)
        watch.wait_for(re.compile(r'"removed": \[\{'))
        watch.signal(signal.SIGINT)
        assert watch.wait() == 0
    events = [json.loads(line) for line in watch.log.splitlines()]
    assert [event["event"] for event in events] == ["snapshot", "change", "change", "change"]


def test_cli_exit_codes(shell: Shell) -> None:
    shell.run("get", "nobody", code=1)
    shell.run("pick", "nobody", code=1)
    shell.run("register", "x", "10.0.0.1", code=2)
    shell.run("get", "orders", "--server", f"127.0.0.1:{free_port()}", code=3)


def test_cli_json_prints_json_or_nothing_on_failure(shell: Shell) -> None:
    done = subprocess.run(
        [str(NACOS_PROXY), "pick", "nobody", "--json"], env=shell.env, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert shell.json("get", "nobody")["hosts"] == []


def test_cli_config_prints_text_and_json(shell: Shell) -> None:
    shown = shell.json("config", "--cache-ttl", "3s")
    assert shown["cache_ttl"] == {"value": "3s", "source": "flag --cache-ttl"}
    assert re.search(r"^cache_ttl += 3s +flag --cache-ttl$", shell.run("config", "--cache-ttl", "3s"), re.MULTILINE)


def test_cli_doctor_accepts_this_proxy_as_upstream_and_reports_an_unreachable_one(shell: Shell, tmp_path: Path) -> None:
    here = ("--port", str(free_port()), "--state-dir", str(tmp_path))
    said = shell.run("doctor", "--upstream", shell.proxy.url, *here)
    assert re.search(r"^ok   upstream: .* answers in", said, re.MULTILINE)
    assert re.search(r"^ok   version: ", said, re.MULTILINE)
    assert "FAIL" not in said
    said = shell.run("doctor", "--upstream", f"http://127.0.0.1:{free_port()}", *here, code=1)
    assert re.search(r"^FAIL upstream: .*\n     -> check that Nacos is running there", said, re.MULTILINE)


def test_cli_doctor_passes_for_r_nacos(shell: Shell, rnacos: RNacos, tmp_path: Path) -> None:
    here = ("--port", str(free_port()), "--state-dir", str(tmp_path))
    said = shell.run("doctor", "--upstream", rnacos.url, *here)
    found = re.findall(r"^(\S+) +([a-z ]+):", said, re.MULTILINE)
    assert found == [
        ("ok", name) for name in ("upstream", "version", "login", "push port", "clock", "state", "own port")
    ]


def test_cli_demo_prints_each_step_and_ends(shell: Shell) -> None:
    said = shell.run("demo", "--once", "--port", "0")
    assert len(re.findall(r"^\$ curl ", said, re.MULTILINE)) == 8


def test_cli_register_managed_registers_a_command_until_it_ends(shell: Shell, tmp_path: Path) -> None:
    """The command is a legacy server that knows nothing of Nacos."""
    port = free_port()
    words = ["register", "--managed", "--check-http", f"http://127.0.0.1:{port}/", "--interval", "100ms", "legacy"]
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with Process([str(NACOS_PROXY), *words, f"127.0.0.1:{port}", "--", *server], env=shell.env) as command:
        command.wait_for(re.compile(r'"GET / HTTP/1.1" 200'))  # the proxy's health check
        assert shell.run("pick", "legacy") == f"127.0.0.1:{port}\n"
        command.signal(signal.SIGTERM)
        assert command.wait() == 128 + signal.SIGTERM
    shell.run("get", "legacy", code=1)

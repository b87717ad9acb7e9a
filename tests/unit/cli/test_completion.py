"""Completion in shells: the scripts, and the names from the running proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nacos_proxy.cli.completion import SHELLS, VARIABLE, matching
from tests.helpers.live import ProxyProcess, free_port
from tests.unit.conftest import Run


def completed(server: str, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    environ |= {
        VARIABLE: "bash_complete",
        "COMP_WORDS": " ".join(("nacos-proxy", *words)),
        "NACOS_PROXY_SERVER": server,
    }
    command = [sys.executable, "-m", "nacos_proxy"]
    done = subprocess.run(
        command, env={**environ, "COMP_CWORD": str(len(words))}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_a_script(cli: Run, shell: str) -> None:
    done = cli("completion", shell)
    assert done.exit_code == 0
    assert f"{VARIABLE}={shell}_complete" in done.output
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=done.output, text=True, check=True)


def test_completion_in_bash_offers_services(ask: Run, running: ProxyProcess, tmp_path: Path) -> None:
    ask("register", "tabbed", "10.0.0.1:80", "--persistent")
    program = tmp_path / "nacos-proxy"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nacos_proxy "$@"\n')
    program.chmod(0o755)
    script = ask("completion", "bash").output + (
        'COMP_WORDS=(nacos-proxy get tab)\nCOMP_CWORD=2\n_nacos_proxy_completion nacos-proxy\necho "${COMPREPLY[@]}"\n'
    )
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NACOS_PROXY_SERVER": running.url}
    done = subprocess.run(["bash"], input=script, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "tabbed"


def test_names_and_addresses_come_from_the_proxy(ask: Run, running: ProxyProcess) -> None:
    ask("register", "comp-a", "10.0.0.1:80", "--persistent")
    ask("register", "comp-a", "[2001:db8::1]:80", "--persistent")
    ask("register", "comp-b", "10.0.0.1:80", "--persistent", "-g", "comp-group", "-n", "comp-space")
    assert ask("get", "comp-mistyped").exit_code == 1
    assert completed(running.url, "get", "comp-") == ["comp-a"]
    assert completed(running.url, "get", "-n", "comp-space", "-g", "comp-group", "comp-") == ["comp-b"]
    assert completed(running.url, "get", "-n", "comp-space", "comp-group@@") == ["comp-group@@comp-b"]
    assert completed(running.url, "modify", "comp-a", "") == ["10.0.0.1:80", "[2001:db8::1]:80"]
    assert completed(running.url, "get", "-g", "comp") == ["comp-group"]
    assert completed(running.url, "get", "-n", "comp") == ["comp-space"]
    assert completed(running.url, "sta") == ["status"]
    assert completed(running.url, "get", "--healthy") == ["--healthy-only"]


def test_completion_without_a_proxy_offers_nothing() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert completed(nowhere, "get", "a") == completed(nowhere, "modify", "a", "") == []
    assert completed("ftp://x", "get", "a") == []


def test_matching_leaves_out_what_a_shell_would_run() -> None:
    """Anybody who may register a service chooses its name, and bash takes the words without quotes."""
    names = [
        "pay",
        "pay$(reboot)",
        "pay;reboot",
        "pay`id`",
        "pay|b",
        "pay*",
        "pay b",
        "pay\n",
        "pay\x1b",
        "g@@pay",
        "päy",
    ]
    assert matching(names, "pay") == ["pay"]
    assert matching(["[2001:db8::1]:80", "10.0.0.1:80", "g@@a.B_c-1:x"], "") == [
        "10.0.0.1:80",
        "[2001:db8::1]:80",
        "g@@a.B_c-1:x",
    ]

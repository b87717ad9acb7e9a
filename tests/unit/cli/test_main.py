"""The group of commands: help, messages and exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nacos_proxy import __version__
from nacos_proxy.cli.main import COMMANDS, SECTIONS
from tests.helpers.live import ProxyProcess, free_port
from tests.unit.conftest import Run


def test_main_help_lists_commands_and_exit_codes(cli: Run) -> None:
    text = cli("--help").output
    places = [text.index(f"\n{heading}:\n") for heading in SECTIONS]
    assert places == sorted(places)
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert "..." not in text.partition("\n\n")[2]  # each short help is whole
    assert "Exit codes: 0 done, 1 refused or not found, 2 wrong usage or settings, 3 no" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Run, command: str) -> None:
    done = cli(command, "-h")
    assert done.exit_code == 0
    assert done.output.startswith("Usage: ")
    assert f" {command} " in done.output.splitlines()[0]
    assert re.search(r"Exit\s+codes?:", done.output) or command in ("config", "demo")


def test_main_refuses_an_unknown_command_and_hints_at_a_similar_one(cli: Run) -> None:
    done = cli("gett")
    assert (done.exit_code, "No such command 'gett'. Did you mean 'get'?" in done.stderr) == (2, True)


def test_main_version(cli: Run) -> None:
    assert cli("--version").output == f"nacos-proxy, version {__version__}\n"


def test_main_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nacos_proxy", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"nacos-proxy, version {__version__}\n"


def test_main_prints_bad_settings_and_exits_with_2(cli: Run) -> None:
    done = cli("serve", "--port", "70000", "--cache-ttl", "soon")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [["nacos-proxy:", "port"], ["nacos-proxy:", "cache_ttl"]]


SLOW = {"pydantic", "httpx", "rich", "asyncio", "fastapi", "jinja2", "orjson", "logging"}
LOCAL = {"serve", "config", "doctor", "demo", "render"}  # these work without a proxy, or with templates


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - LOCAL))
def test_client_commands_import_nothing_slow(command: str) -> None:
    """A script may call them for each request."""
    module = f"nacos_proxy.cli.{COMMANDS[command].partition(':')[0]}"
    code = f"import sys, nacos_proxy.cli.main, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SLOW & set(done.stdout.split()) == set()


@pytest.mark.parametrize(("no_color", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_main_uses_colours_on_a_terminal_unless_no_color_is_set(
    running: ProxyProcess, no_color: dict[str, str], coloured: bool
) -> None:
    command = [sys.executable, "-m", "nacos_proxy", "pick", "nobody", "--server", running.url]
    assert (b"\x1b[" in on_terminal(command, no_color)) is coloured
    subprocess.run([*command[:3], "register", "colourful", "10.0.0.1:80", "--server", running.url], check=True)
    command = [sys.executable, "-m", "nacos_proxy", "get", "colourful", "--server", running.url]
    assert (b"\x1b[" in on_terminal(command, no_color)) is coloured


def on_terminal(command: list[str], more: dict[str, str]) -> bytes:
    """What a command prints where its output is a terminal."""
    ours, its = os.openpty()
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env={**environ, "TERM": "xterm", **more}
    ) as process:
        os.close(its)
        printed = b""
        try:
            while chunk := os.read(ours, 4096):
                printed += chunk
        except OSError:  # how Linux tells that the other end is closed
            pass
        finally:
            os.close(ours)
        process.wait()
    return printed


def test_main_hints_at_a_similar_option(cli: Run) -> None:
    done = cli("serve", "--cache-tll", "3s")
    assert (done.exit_code, "--cache-ttl" in done.stderr) == (2, True)


def test_serve_names_a_port_in_use_and_exits_with_2(cli: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cli("serve", "--port", str(port), "--state-dir", str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr.strip().endswith(
        f"127.0.0.1:{port} is in use by another nacos-proxy or another program; choose another --port"
    )


def test_serve_names_a_locked_state_directory_and_exits_with_2(cli: Run, running: ProxyProcess) -> None:
    done = cli("serve", "--port", "0", "--state-dir", str(running.state_dir))
    assert done.exit_code == 2
    assert f"the state directory {running.state_dir} is in use by another nacos-proxy" in done.stderr


def test_serve_refuses_to_be_exposed_and_exits_with_2(cli: Run, tmp_path: Path) -> None:
    done = cli("serve", "--port", "0", "--host", "0.0.0.0", "--state-dir", str(tmp_path))
    assert done.exit_code == 2
    assert "set an API token (tokens_file), or allow access without one (--insecure)" in done.stderr


def test_main_names_the_server_that_does_not_answer_and_exits_with_3(cli: Run) -> None:
    done = cli("get", "orders", "--server", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 3
    assert "Is `nacos-proxy serve` running there?" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_exits_with_0_after_a_signal(number: signal.Signals) -> None:
    with ProxyProcess() as proxy:
        proxy.signal(number)
        assert proxy.wait() == 0
        assert f"stopping: {number.name}" in proxy.log
        assert "Traceback" not in proxy.log
        assert "Aborted" not in proxy.log

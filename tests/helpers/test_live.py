"""`ProxyProcess`, `Process` and `RNacos`, the latter only if r-nacos is installed."""

from __future__ import annotations

import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.helpers.live import GRPC_OFFSET, Process, ProxyProcess, RNacos, free_port, rnacos_binary

# A stand-in for the proxy: prints where it listens, and ends on SIGTERM with a last line.
STAND_IN = """
import os, signal, socket, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
server = socket.create_server(("127.0.0.1", port))
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(3)))
print(os.environ["NACOS_PROXY_STATE_DIR"], os.environ.get("NACOS_PROXY_PORT"), sys.argv[3:], flush=True)
print(f"listening on http://127.0.0.1:{server.getsockname()[1]}", flush=True)
signal.pause()
"""


def stand_in(*arguments: str, state_dir: Path | None = None) -> ProxyProcess:
    return ProxyProcess(*arguments, state_dir=state_dir, command=(sys.executable, "-c", STAND_IN))


def test_proxy_process_is_ready_after_start() -> None:
    with stand_in("--upstream", "embedded") as proxy:
        assert proxy.url == f"http://127.0.0.1:{proxy.port}"
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5).close()
        assert "['--upstream', 'embedded']" in proxy.log
        assert proxy.running
    assert not proxy.running


def test_proxy_process_has_no_inherited_settings_and_its_own_state_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NACOS_PROXY_PORT", "8840")
    with stand_in() as proxy:
        assert proxy.log.startswith(f"{proxy.state_dir} None")
        assert proxy.state_dir.is_dir()
    assert not proxy.state_dir.exists()


def test_proxy_process_keeps_a_given_state_directory(tmp_path: Path) -> None:
    with stand_in(state_dir=tmp_path) as proxy:
        assert proxy.log.startswith(f"{tmp_path} ")
    assert tmp_path.is_dir()


def test_proxy_process_terminate_returns_the_exit_code_and_the_whole_log() -> None:
    with stand_in() as proxy:
        assert proxy.terminate() == 3
        assert proxy.log.endswith("bye\n")


def test_proxy_process_start_after_kill_keeps_port_and_state() -> None:
    with stand_in() as proxy:
        port, first, state = proxy.port, proxy.pid, proxy.state_dir
        proxy.kill()
        assert proxy.wait() == -signal.SIGKILL
        proxy.start()
        assert (proxy.port, proxy.state_dir) == (port, state)
        assert proxy.pid != first


def test_process_that_ends_too_early_raises_with_its_output() -> None:
    process = Process([sys.executable, "-c", "print('no such setting')"])
    process.start()
    with pytest.raises(RuntimeError, match="no such setting"):
        process.wait_for(re.compile("listening on"))


def test_process_terminate_kills_and_raises_if_sigterm_is_ignored() -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    process = Process([sys.executable, "-c", deaf])
    process.start()
    process.wait_for(re.compile("up"))
    with pytest.raises(RuntimeError, match="did not end on SIGTERM"):
        process.terminate(0.2)
    assert not process.running


def test_free_port_leaves_the_offset_port_free() -> None:
    port = free_port(and_offset=GRPC_OFFSET)
    for number in (port, port + GRPC_OFFSET):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", number))


def test_rnacos_binary_raises_for_a_name_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be run"):
        rnacos_binary({"NACOS_PROXY_TEST_RNACOS": str(tmp_path / "rnacos")})


def test_rnacos_binary_is_none_for_an_empty_name() -> None:
    assert rnacos_binary({"NACOS_PROXY_TEST_RNACOS": ""}) is None


def test_rnacos_listens_on_loopback_for_http_and_grpc(rnacos: RNacos) -> None:
    for port in (rnacos.port, rnacos.grpc_port):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_rnacos_start_after_kill_keeps_its_ports() -> None:
    if (binary := rnacos_binary()) is None:
        pytest.skip("no r-nacos")
    with RNacos(binary) as server:
        port = server.port
        server.kill()
        server.start()
        assert server.port == port
        assert server.terminate() == 0

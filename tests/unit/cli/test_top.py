"""`nacos-proxy top`: rounds, rates, the screen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from nacos_proxy.cli.top import Rounds, lines
from tests.helpers.live import Process, ProxyProcess
from tests.unit.conftest import Run


def body(uptime: float, reads: int, changes: int, revision: str = "r1", found: int = 1) -> dict[str, Any]:
    row = {"service": "g@@a", "namespaceId": "public", "instances": 2, "healthy": 1, "state": "stale"}
    row |= {"ageSeconds": 3.2, "subscribers": 4, "revision": revision, "error": "refused"}
    return {
        "version": "1.0",
        "status": "degraded",
        "uptimeSeconds": uptime,
        "upstream": {"state": "down"},
        "summary": {"services": 1, "instances": 2, "healthy": 1, "reads": reads},
        "subscribers": {"streams": 4},
        "counts": {"changes": {"poll": changes}},
        "servicesFound": found,
        "services": [row],
    }


def test_rounds_tell_rates_and_changed_services() -> None:
    rounds = Rounds()
    rounds.add(body(10.0, 100, 1))
    assert (rounds.number, rounds.reads, rounds.changed) == (1, 0.0, {})
    rounds.add(body(12.0, 150, 2, "r2"))
    assert (rounds.reads, rounds.changes, rounds.changed) == (25.0, 0.5, {("public", "g@@a"): 1})
    rounds.add(body(1.0, 3, 0, "r2"))  # the proxy was restarted
    assert (rounds.reads, rounds.changes, rounds.changed) == (0.0, 0.0, {("public", "g@@a"): 1})


def test_lines_show_totals_services_and_what_is_left_out() -> None:
    rounds = Rounds()
    for answer in (body(10.0, 100, 1), body(12.0, 150, 2, "r2")):
        rounds.add(answer)
    first, second, header, row, more = lines(body(12.0, 150, 2, "r2", found=7), rounds, 2.0)
    assert "nacos-proxy 1.0 degraded, upstream down, up 12s" in first
    assert second == "1 services, 1 of 2 instances healthy, 4 streams, 25.0 reads/s, 0.5 changes/s, every 2.0s"
    plain = re.sub(r"\x1b\[\d*m", "", row)
    assert header.split()[:2] == ["SERVICE", "NAMESPACE"]
    assert plain.split() == ["g@@a", "public", "2", "1", "stale", "3.2s", "4", "1", "refused"]
    assert more == "… and 6 more"


def test_top_prints_each_round_in_a_pipe(ask: Run) -> None:
    ask("register", "topmost", "10.0.0.1:80", "--persistent")
    done = ask("top", "topmost", "--every", "1ms", "-n", "2")
    assert (done.exit_code, done.stdout.count("DEFAULT_GROUP@@topmost"), "\x1b" in done.stdout) == (0, 2, False)
    rounds = ask("top", "topmost", "--every", "1ms", "-n", "2", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["servicesFound"] for line in rounds] == [1, 1]
    assert ask("top", "-n", "1", "--server", "http://127.0.0.1:1").exit_code == 3


@pytest.mark.parametrize(("options", "first"), [((), "big"), (("--reverse",), "small")])
def test_top_sorts_the_largest_first(ask: Run, options: tuple[str, ...], first: str) -> None:
    ask("register", "sorted-small", "10.0.0.1:80", "--persistent")
    for port in ("80", "81"):
        ask("register", "sorted-big", f"10.0.0.1:{port}", "--persistent")
    assert ask("get", "sorted-small", "sorted-big").exit_code == 0
    done = ask("top", "sorted-", "--sort", "instances", *options, "-n", "1")
    assert done.stdout.splitlines()[3].startswith(f"DEFAULT_GROUP@@sorted-{first}")


def test_top_goes_on_while_the_proxy_restarts() -> None:
    with ProxyProcess() as proxy:
        command = [sys.executable, "-m", "nacos_proxy", "top", "--every", "50ms", "--server", proxy.url]
        with Process(command) as top:
            top.wait_for(re.compile("rates follow"))
            proxy.terminate()
            top.wait_for(re.compile("no proxy answers"))
            seen = len(top.log.splitlines())
            proxy.start()
            top.wait_for(re.compile("reads/s"), since=seen)
            top.signal(signal.SIGINT)
            assert top.wait() == 0


@pytest.mark.parametrize(("number", "no_color"), [(signal.SIGINT, ""), (signal.SIGTERM, "1")])
def test_top_gives_the_terminal_back(running: ProxyProcess, number: signal.Signals, no_color: str) -> None:
    ours, its = os.openpty()
    command = [sys.executable, "-m", "nacos_proxy", "top", "--every", "1h", "--server", running.url]
    environ = {**os.environ, "TERM": "xterm", "LINES": "24", "COLUMNS": "80", "NO_COLOR": no_color}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environ) as process:
        os.close(its)
        shown = b""
        while b"SUBSCRIBERS" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(number)
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # how Linux tells that the other end is closed
            pass
        finally:
            os.close(ours)
        assert process.wait() == 0
    assert shown.index(b"\x1b[?1049h") < shown.index(b"SERVICE") < shown.rindex(b"\x1b[?1049l")
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert (b"\x1b[1m" in shown) is not bool(no_color)

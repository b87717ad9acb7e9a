"""`watch --exec`: a command for each event of a running proxy."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from nacos_proxy.cli.follow import Event
from nacos_proxy.cli.handlers import environment
from tests.helpers.live import Process, ProxyProcess, free_port
from tests.unit.conftest import Run

# Writes a line for each run; fails in the first two runs while the file `fail` exists.
COMMAND = """
import json, os, sys
event = json.load(sys.stdin)
print("RUN", json.dumps({"ips": [host["ip"] for host in event["hosts"]], "added": event.get("added"),
    **{name[12:]: text for name, text in os.environ.items() if name.startswith("NACOS_PROXY_")}}), flush=True)
if os.path.exists(sys.argv[1]):
    sys.exit(7)
"""
RUN = re.compile(r"^RUN (.*)$", re.MULTILINE)


def handling(proxy: ProxyProcess, directory: Path, *arguments: str) -> Process:
    (directory / "handle.py").write_text(COMMAND)
    command = f"'{sys.executable}' '{directory}/handle.py' '{directory}/fail'"
    environ = {name: text for name, text in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    environ["NACOS_PROXY_SERVER"] = proxy.url
    program = [sys.executable, "-m", "nacos_proxy", "watch", "--retry", "50ms", "--exec", command]
    return Process([*program, *arguments], env=environ)


def runs(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUN.findall(process.log)]


def test_watch_exec_runs_a_command_for_the_snapshot_and_each_change(
    ask: Run, running: ProxyProcess, tmp_path: Path
) -> None:
    ask("register", "handled", "10.0.0.1:80")
    with handling(running, tmp_path, "handled") as watch:
        watch.wait_for(re.compile("RUN .*snapshot"))
        ask("register", "handled", "10.0.0.2:80")
        watch.wait_for(re.compile("RUN .*change"))
        watch.signal(signal.SIGTERM)
        assert watch.wait() == 0
    first, second = runs(watch)
    names = {"SERVICE": "handled", "GROUP": "DEFAULT_GROUP", "NAMESPACE": "public", "SERVER": running.url}
    assert first == {"ips": ["10.0.0.1"], "added": None, "EVENT": "snapshot", "EVENT_ID": first["EVENT_ID"], **names}
    assert (second["ips"], second["EVENT"]) == (["10.0.0.1", "10.0.0.2"], "change")
    assert [host["ip"] for host in second["added"]] == ["10.0.0.2"]


def test_watch_exec_tries_again_with_the_newest_state_and_says_so_once(
    ask: Run, running: ProxyProcess, tmp_path: Path
) -> None:
    ask("register", "failing", "10.0.0.1:80")
    (tmp_path / "fail").touch()
    with handling(running, tmp_path, "failing", "--once") as watch:
        watch.wait_for(re.compile("exit code 7, for DEFAULT_GROUP@@failing. Trying again"))
        ask("register", "failing", "10.0.0.2:80")
        (tmp_path / "fail").unlink()
        watch.wait_for(re.compile("succeeded for DEFAULT_GROUP@@failing"))
        ask("deregister", "failing", "10.0.0.1:80")
        assert watch.wait() == 0
    found = runs(watch)
    assert [run["ips"] for run in found][-2:] == [["10.0.0.1", "10.0.0.2"], ["10.0.0.2"]]
    assert (found[-2]["EVENT"], watch.log.count("exit code 7")) == ("snapshot", 1)


def test_watch_exec_of_a_proxy_that_does_not_answer_exits_with_3(cli: Run) -> None:
    done = cli("watch", "orders", "--exec", "true", NACOS_PROXY_SERVER=f"127.0.0.1:{free_port()}")
    assert (done.exit_code, "no proxy answers" in done.stderr) == (3, True)


def test_watch_exec_without_a_command_is_wrong_usage(cli: Run) -> None:
    assert cli("watch", "orders", "--exec", "").exit_code == 2


def test_environment_names_the_event() -> None:
    event = Event("e-1", "change", {"name": "g@@a\0b", "namespaceId": "dev"})
    assert environment(event) == {
        "NACOS_PROXY_SERVICE": "a b",
        "NACOS_PROXY_GROUP": "g",
        "NACOS_PROXY_NAMESPACE": "dev",
        "NACOS_PROXY_EVENT_ID": "e-1",
        "NACOS_PROXY_EVENT": "change",
    }

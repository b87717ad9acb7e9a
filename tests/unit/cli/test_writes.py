"""register, deregister, modify, drain, maintenance, beat against a running proxy."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.live import Process, ProxyProcess
from tests.unit.conftest import Run


def hosts(ask: Run, service: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ask("get", service, "--all", "--json").stdout)["instances"]
    return found


def test_register_sends_all_options(ask: Run) -> None:
    named = ("--weight", "2.5", "--cluster", "c1", "--metadata", "a=b", "--metadata", "c=", "--disabled", "--unhealthy")
    done = ask("register", "full", "10.0.0.1:80", *named)
    assert (done.exit_code, done.stdout) == (0, "registered 10.0.0.1:80 in full\n")
    (host,) = hosts(ask, "full")
    assert (host["weight"], host["clusterName"], host["metadata"]) == (2.5, "c1", {"a": "b", "c": ""})
    assert (host["enabled"], host["healthy"], host["ephemeral"]) == (False, False, True)


def test_register_json_prints_the_instance(ask: Run) -> None:
    made = json.loads(ask("register", "made", "[2001:db8::1]:80", "--persistent", "--json").output)
    assert (made["ip"], made["port"], made["ephemeral"]) == ("2001:db8::1", 80, False)


def test_modify_changes_only_what_is_given(ask: Run) -> None:
    ask("register", "changed", "10.0.0.1:80", "--weight", "2", "--metadata", "a=b")
    assert ask("modify", "changed", "10.0.0.1:80", "--disabled").output == "changed 10.0.0.1:80 of changed\n"
    (host,) = hosts(ask, "changed")
    assert (host["weight"], host["enabled"], host["metadata"]) == (2.0, False, {"a": "b"})
    assert ask("modify", "changed", "10.0.0.1:80", "--enabled", "--weight", "0", "--metadata", "c=d").exit_code == 0
    (host,) = hosts(ask, "changed")
    assert (host["weight"], host["enabled"]) == (0.0, True)
    assert ask("modify", "changed", "10.0.0.9:80", "--weight", "1").exit_code == 1


def test_deregister_of_an_unknown_instance_exits_with_0(ask: Run) -> None:
    ask("register", "left", "10.0.0.1:80")
    assert ask("deregister", "left", "10.0.0.1:80").output == "deregistered 10.0.0.1:80 from left\n"
    assert hosts(ask, "left") == []
    assert ask("deregister", "left", "10.0.0.1:80", "--json").exit_code == 0


def test_deregister_finds_out_the_kind_of_an_instance(ask: Run) -> None:
    ask("register", "gone-for-good", "10.0.0.1:80", "--persistent")
    assert ask("deregister", "gone-for-good", "10.0.0.1:80").exit_code == 0
    assert hosts(ask, "gone-for-good") == []


def test_drain_deregisters_after_the_wait(ask: Run) -> None:
    ask("register", "drained", "10.0.0.1:80")
    assert ask("drain", "drained", "10.0.0.1:80", "--wait", "10ms").output == "drained 10.0.0.1:80 of drained\n"
    assert hosts(ask, "drained") == []
    again = json.loads(ask("drain", "drained", "10.0.0.1:80", "--json").output)
    assert (again["address"], again["state"]) == ("10.0.0.1:80", "drained")
    cancelled = ask("drain", "drained", "10.0.0.1:80", "--cancel")
    assert cancelled.output == "10.0.0.1:80 of drained is not drained any more\n"
    assert ask("drain", "drained", "10.0.0.1:80", "--cancel").exit_code == 1
    assert ask("drain", "drained", "10.0.0.9:80").exit_code == 1
    assert ask("drain", "drained", "10.0.0.1:80", "--server", "http://127.0.0.1:1").exit_code == 3


def test_maintenance_keeps_a_managed_instance_out_of_traffic(ask: Run) -> None:
    ask("register", "maintained", "10.0.0.1:80", "--managed", "--check-ttl", "60s")
    on = ask("maintenance", "maintained", "10.0.0.1:80", "--on", "--reason", "disk swap")
    assert on.output == "10.0.0.1:80 of maintained is in maintenance\n"
    assert [host["enabled"] for host in hosts(ask, "maintained")] == [False]
    off = ask("maintenance", "maintained", "10.0.0.1:80", "--off")
    assert off.output == "10.0.0.1:80 of maintained is in traffic again\n"
    assert [host["enabled"] for host in hosts(ask, "maintained")] == [True]
    ask("register", "other", "10.0.0.1:80")
    assert "is not managed" in ask("maintenance", "other", "10.0.0.1:80", "--on").output


def test_register_says_that_an_ephemeral_instance_needs_heartbeats(ask: Run) -> None:
    where = ("-g", "g1", "--namespace", "n1", "--cluster", "c1")
    assert ask("register", "mortal", "10.0.0.1:80", *where).stderr == (
        "It is ephemeral: without heartbeats it is unhealthy after 15 s and gone after 30 s. Send them with "
        "`nacos-proxy beat mortal 10.0.0.1:80 --namespace n1 --group g1 --cluster c1 --every 5s`, or register it with "
        "--managed (the proxy sends them) or --persistent (it needs none).\n"
    )
    assert ask("beat", "mortal", "10.0.0.1:80", *where).exit_code == 0
    assert ask("register", "immortal", "10.0.0.1:80", "--persistent").stderr == ""
    assert ask("register", "cared", "10.0.0.1:80", "--managed", "--check-ttl", "60s").stderr == ""
    assert ask("register", "mortal", "10.0.0.1:80", "-o", "yaml").stderr == ""


def test_beat_prints_when_the_next_one_is_due(ask: Run) -> None:
    ask("register", "alive", "10.0.0.1:80")
    assert ask("beat", "alive", "10.0.0.1:80").output == "next beat in 5 s\n"
    several = ask("beat", "alive", "10.0.0.1:80", "--every", "1ms", "--count", "3", "--json")
    assert [json.loads(line)["clientBeatInterval"] for line in several.output.splitlines()] == [5000] * 3


def test_beat_every_prints_only_what_changes(ask: Run) -> None:
    ask("register", "quiet", "10.0.0.1:80")
    beat = ("beat", "quiet", "10.0.0.1:80", "--every")
    begun = "sending heartbeats for 10.0.0.1:80 of quiet every 0.001 s, until Ctrl-C\n"
    assert ask(*beat, "1ms", "--count", "3").output == begun
    assert ask(*beat, "1ms", "--count", "2", "-v").output == begun + 2 * "next beat in 0.001 s\n"
    assert "nacos-proxy: Nacos expects one every 5 s.\n" in ask(*beat, "10s", "--count", "1").stderr


def test_beat_every_goes_on_after_a_failure_and_says_it_once(cli: Run) -> None:
    done = cli("beat", "x", "10.0.0.1:80", "--every", "1ms", "--count", "3", "--server", "http://127.0.0.1:1")
    assert (done.exit_code, done.stderr.count("Trying again.")) == (0, 1)
    assert cli("beat", "x", "10.0.0.1:80", "--server", "http://127.0.0.1:1").exit_code == 3


def test_beat_every_says_when_it_works_again(cli: Run) -> None:
    with ProxyProcess() as proxy:
        cli("register", "again", "10.0.0.1:80", "--server", proxy.url)
        words = ["beat", "again", "10.0.0.1:80", "--every", "50ms", "--server", proxy.url]
        with Process([sys.executable, "-m", "nacos_proxy", *words]) as beat:
            beat.wait_for(re.compile("sending heartbeats for 10.0.0.1:80 of again every 0.05 s"))
            proxy.terminate()
            beat.wait_for(re.compile(r"Trying again\."))
            proxy.start()
            beat.wait_for(re.compile("heartbeats are accepted again"))
            beat.signal(signal.SIGINT)
            assert beat.wait() == 0


def test_beat_says_why_an_instance_takes_none(ask: Run) -> None:
    ask("register", "lasting", "10.0.0.1:80", "--persistent")
    kept = ask("beat", "lasting", "10.0.0.1:80", "--every", "1ms")
    assert (kept.exit_code, kept.stderr) == (
        1,
        "nacos-proxy: 10.0.0.1:80 of lasting is persistent: it needs no heartbeats.\n",
    )
    unknown = ask("beat", "lasting", "10.0.0.2:80")
    assert (unknown.exit_code, unknown.stderr) == (
        1,
        "nacos-proxy: 10.0.0.2:80 of lasting is not registered. `nacos-proxy register lasting 10.0.0.2:80` registers "
        "it.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("register", "x", "10.0.0.1"), "is not ip:port"),
        (("register", "x", "10.0.0.1:80", "--metadata", "a"), "write --metadata as key=value"),
        (("register", "x", "10.0.0.1:80", "--weight", "nan"), "'nan' is not a number"),
        (("register", "x", "10.0.0.1:80", "--check-http", "http://a"), "needs --managed"),
        (("register", "x", "10.0.0.1:80", "--", "sleep", "1"), "needs --managed"),
        (("register", "x", "10.0.0.1:80", "--managed"), "--managed needs one of --check-http"),
        (("register", "x", "10.0.0.1:80", "--managed", "--", "/no/such/program"), "cannot be run: No such file"),
        (("modify", "x", "10.0.0.1:80"), "nothing to change: give --weight"),
        (("maintenance", "x", "10.0.0.1:80"), "Missing option '--on'"),
        (("drain", "x", "10.0.0.1:80", "--wait", "soon"), "write a duration like"),
        (("beat", "x", "10.0.0.1:80", "--every", "soon"), "write a duration like"),
    ],
)
def test_register_modify_and_beat_refuse_wrong_usage(ask: Run, arguments: tuple[str, ...], said: str) -> None:
    done = ask(*arguments)
    assert (done.exit_code, said in done.stderr) == (2, True)


def test_register_exits_with_1_and_names_a_refused_parameter(ask: Run) -> None:
    done = ask("register", "x", "10.0.0.1:70000")
    assert (done.exit_code, "port" in done.stderr) == (1, True)


def test_register_managed_needs_no_heartbeats(ask: Run) -> None:
    done = ask("register", "kept", "127.0.0.1:80", "--managed", "--check-tcp", "127.0.0.1:1", "--interval", "1m")
    assert done.exit_code == 0
    assert len(hosts(ask, "kept")) == 1


def test_register_managed_deregisters_an_instance_that_fails_too_long(ask: Run) -> None:
    check = ("--managed", "--check-tcp", "127.0.0.1:1", "--interval", "50ms", "--failures", "1")
    done = ask("register", "lost", "127.0.0.1:80", *check, "--deregister-after", "50ms")
    assert (done.exit_code, done.output) == (0, "registered 127.0.0.1:80 in lost\n")
    while hosts(ask, "lost"):
        pass
    assert ask("register", "lost", "127.0.0.1:80", *check, "--deregister-after", "soon").exit_code != 0


def managed(proxy: ProxyProcess, service: str, script: str, *more: str) -> Process:
    """A command that the proxy keeps registered while it runs."""
    words = ["register", service, "127.0.0.1:80", "--managed", "--server", proxy.url, "--", "sh", "-c", script, *more]
    return Process([sys.executable, "-m", "nacos_proxy", *words])


def test_register_managed_command_is_registered_while_it_runs(ask: Run, running: ProxyProcess, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    watch = Process([sys.executable, "-m", "nacos_proxy", "watch", "ran", "--json", "--server", running.url])
    with watch, managed(running, "ran", 'read line < "$0"; exit 7', str(gate)) as command:
        watch.wait_for(re.compile(r'"ip": "127\.0\.0\.1", "port": 80'))
        gate.write_text("go on\n")
        assert command.wait() == 7
        watch.wait_for(re.compile(r'"removed": \[\{'))
        watch.signal(signal.SIGINT)
        assert watch.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_register_managed_command_is_stopped_and_deregistered_with_us(
    ask: Run, running: ProxyProcess, number: signal.Signals
) -> None:
    with managed(running, "held", "echo started; exec tail -f /dev/null") as command:
        command.wait_for(re.compile("started"))
        command.signal(number)
        assert command.wait() == 128 + signal.SIGTERM
    assert hosts(ask, "held") == []


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_register_managed_command_is_stopped_even_while_it_starts(running: ProxyProcess, name: str) -> None:
    with managed(running, "brief", f"kill -{name} $PPID; exec tail -f /dev/null") as command:
        assert command.wait() == 128 + signal.SIGTERM


def test_register_managed_command_is_stopped_if_its_instance_is_refused(ask: Run, running: ProxyProcess) -> None:
    ask("register", "held2", "127.0.0.9:80", "--persistent")
    with managed(running, "held2", "exec tail -f /dev/null") as command:
        assert command.wait() == 1

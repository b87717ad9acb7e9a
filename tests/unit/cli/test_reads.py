"""get, list, pick, watch against a running proxy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

from tests.helpers.live import Process, ProxyProcess
from tests.unit.conftest import Run


def watching(proxy: ProxyProcess, *arguments: str) -> Process:
    environ = {**os.environ, "NACOS_PROXY_SERVER": proxy.url, "COLUMNS": "200"}
    return Process([sys.executable, "-m", "nacos_proxy", "watch", "--retry", "50ms", *arguments], env=environ)


def test_get_shows_a_table_or_json(ask: Run) -> None:
    ask("register", "shown", "10.0.0.1:80", "--cluster", "c1", "--metadata", "zone=a")
    ask("register", "shown", "10.0.0.2:80", "--unhealthy")
    table = ask("get", "shown")
    assert (table.exit_code, table.output.count("10.0.0."), "zone=a" in table.output) == (0, 2, True)
    assert "10.0.0.2" not in ask("get", "shown", "--clusters", "c1").output
    healthy = json.loads(ask("get", "shown", "--healthy-only", "--json").output)
    assert [host["ip"] for host in healthy["hosts"]] == ["10.0.0.1"]


def test_get_all_shows_disabled_instances(ask: Run) -> None:
    ask("register", "off", "10.0.0.1:80", "--disabled")
    assert ask("get", "off").exit_code == 1
    assert "disabled" in ask("get", "off", "--all").output
    assert json.loads(ask("get", "off", "--all", "--json").output)["count"] == 1


def test_get_of_an_unknown_service_exits_with_1(ask: Run) -> None:
    done = ask("get", "absent")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "nacos-proxy: absent has no instance in group DEFAULT_GROUP of namespace public.\n"
    as_json = ask("get", "absent", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["hosts"]) == (1, [])


def test_get_prints_why_the_proxy_refuses_a_name(ask: Run) -> None:
    done = ask("get", "a@@b@@c!")
    assert done.exit_code == 1
    assert done.stderr.startswith("nacos-proxy: Param 'service' is illegal")


def test_get_shows_several_services(ask: Run) -> None:
    ask("register", "first", "10.0.0.1:80")
    ask("register", "second", "10.0.0.2:80", "--group", "other")
    done = ask("get", "first", "other@@second", "none")
    assert done.exit_code == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["SERVICE", "ADDRESS"],
        ["first", "10.0.0.1:80"],
        ["other@@second", "10.0.0.2:80"],
    ]
    assert done.stderr.startswith("nacos-proxy: none has no instance")
    bodies = json.loads(ask("get", "first", "other@@second", "-o", "json").stdout)
    assert [body["name"] for body in bodies] == ["DEFAULT_GROUP@@first", "other@@second"]
    assert ask("get", "first", "other@@second", "-o", "name").stdout == "10.0.0.1:80\n10.0.0.2:80\n"


def test_pick_prints_one_address(ask: Run) -> None:
    ask("register", "picked", "[2001:db8::1]:80", "--cluster", "six")
    ask("register", "picked", "10.0.0.1:80")
    assert ask("pick", "picked", "--clusters", "six").output == "[2001:db8::1]:80\n"
    hashed = {ask("pick", "picked", "--strategy", "hash", "--key", "user-1").output for _ in range(3)}
    assert len(hashed) == 1
    assert json.loads(ask("pick", "picked", "--json").output)["port"] == 80
    nothing = ask("pick", "nobody")
    assert (nothing.exit_code, "has no" in nothing.stderr) == (1, True)


def test_watch_prints_changes_until_ctrl_c(ask: Run, running: ProxyProcess) -> None:
    ask("register", "watched", "10.0.0.1:80")
    with watching(running, "watched") as watch:
        watch.wait_for(re.compile(r"10\.0\.0\.1:80 .*healthy"))
        ask("modify", "watched", "10.0.0.1:80", "--weight", "5")
        watch.wait_for(re.compile(r"^~ DEFAULT_GROUP@@watched  10\.0\.0\.1:80  DEFAULT  5  healthy .*\(write\)"))
        ask("register", "watched", "10.0.0.2:80")
        watch.wait_for(re.compile(r"^\+ DEFAULT_GROUP@@watched  10\.0\.0\.2:80"))
        ask("deregister", "watched", "10.0.0.1:80")
        watch.wait_for(re.compile(r"^- DEFAULT_GROUP@@watched  10\.0\.0\.1:80"))
        watch.signal(signal.SIGINT)
        assert watch.wait() == 0
        assert "Traceback" not in watch.log


def test_watch_json_prints_one_object_per_line(ask: Run, running: ProxyProcess) -> None:
    ask("register", "told", "10.0.0.1:80")
    with watching(running, "told", "--json", "--once", "--healthy-only", "--clusters", "DEFAULT") as watch:
        watch.wait_for(re.compile(r'"event": "snapshot"'))
        ask("deregister", "told", "10.0.0.1:80")
        assert watch.wait() == 0
        snapshot, change = (json.loads(line) for line in watch.log.splitlines())
    assert (snapshot["event"], [host["ip"] for host in snapshot["hosts"]]) == ("snapshot", ["10.0.0.1"])
    assert (change["event"], [host["ip"] for host in change["removed"]]) == ("change", ["10.0.0.1"])


def test_watch_stops_when_its_reader_leaves(ask: Run, running: ProxyProcess) -> None:
    ask("register", "unread", "10.0.0.1:80")
    command = [sys.executable, "-m", "nacos_proxy", "watch", "unread", "--server", running.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert "unread" in watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(60) == 0
        assert watch.stderr.read() == ""


def test_watch_reconnects(cli: Run) -> None:
    with ProxyProcess() as proxy:
        cli("register", "back", "10.0.0.1:80", "--persistent", "--server", proxy.url)
        with watching(proxy, "back", "--json") as watch:
            watch.wait_for(re.compile(r'"event": "snapshot".*10\.0\.0\.1'))
            proxy.terminate()
            watch.wait_for(re.compile("coming back|Trying again"))
            seen = len(watch.log.splitlines())
            proxy.start()
            watch.wait_for(re.compile(r'"event": "snapshot"'), since=seen)
            watch.signal(signal.SIGINT)
            assert watch.wait() == 0


def test_watch_exits_with_3_if_no_proxy_answers(cli: Run) -> None:
    assert cli("watch", "orders", "--server", "http://127.0.0.1:1").exit_code == 3
    assert cli("watch").exit_code == 2


def test_watch_of_an_invalid_name_exits_with_1(ask: Run) -> None:
    assert ask("watch", "a@@b@@c!").exit_code == 1


def test_get_and_pick_take_a_selector_and_a_preference(ask: Run) -> None:
    ask("register", "zoned", "10.0.0.1:80", "--metadata", "zone=a")
    ask("register", "zoned", "10.0.0.2:80", "--metadata", "zone=b")
    selected = json.loads(ask("get", "zoned", "-l", "zone in (b,c)", "--json").output)
    assert [host["ip"] for host in selected["hosts"]] == ["10.0.0.2"]
    assert ask("pick", "zoned", "--prefer", "zone=b", "--prefer-min", "0.5").output == "10.0.0.2:80\n"
    refused = ask("get", "zoned", "-l", "zone=b c")
    assert (refused.exit_code, "at character 8 ('c')" in refused.stderr) == (1, True)

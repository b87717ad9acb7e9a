"""`nacos-proxy status` and `version`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nacos_proxy import __version__
from nacos_proxy.cli.status import facts
from tests.helpers.live import ProxyProcess, free_port
from tests.unit.conftest import Run

BODY: dict[str, Any] = {
    "upstream": {
        "state": "down",
        "forSeconds": 185,
        "reason": "connection refused",
        "kind": "nacos",
        "servers": [
            {
                "url": "http://a:8848/nacos",
                "state": "up",
                "latencyMs": 1.9,
                "version": "2.5.1",
                "dialects": ["v1", "v2"],
            },
            {"url": "http://b:8848/nacos", "state": "down", "error": "no route to host"},
        ],
    },
    "push": {"state": "lost", "reason": "polling every 5 s"},
    "disk": {"state": "ok"},
    "dns": {"state": "ok", "addresses": ["127.0.0.1:53"], "answers": {"NOERROR": 3, "NXDOMAIN": 1}},
    "grpc": {"state": "off", "reason": "port in use"},
    "subscribers": {"streams": 3, "byClient": {"127.0.0.1": 3}},
    "registrations": 2,
    "outOfTraffic": {"instances": 1, "shown": []},
    "summary": {
        "services": 3,
        "states": {"fresh": 2, "stale": 1, "expired": 0, "missing": 0},
        "instances": 5,
        "healthy": 4,
        "oldestAgeSeconds": 12.4,
        "reads": 200,
        "hits": 199,
    },
}


def test_facts_are_the_lines_of_the_screen() -> None:
    assert [(name, text) for name, (text, _) in facts(BODY)] == [
        ("upstream", "down for 3m5s: connection refused"),
        ("", "http://a:8848/nacos up, 1.9 ms, Nacos 2.5.1, APIs v1 v2"),
        ("", "http://b:8848/nacos down, no route to host"),
        ("push", "lost: polling every 5 s"),
        ("disk", "ok"),
        ("DNS", "ok at 127.0.0.1:53; 4 answers"),
        ("services", "3: 2 fresh, 1 stale"),
        ("instances", "5, 1 unhealthy"),
        ("oldest answer", "12s old, of the services that are kept up to date"),
        ("reads", "200, 99.5 % from memory"),
        ("subscribers", "3 event streams of 1 clients"),
        ("gRPC", "off: port in use"),
        ("registered here", "2 instances"),
        ("out of traffic", "1 instances, drained or in maintenance"),
    ]


def test_status_of_a_ready_proxy(ask: Run) -> None:
    done = ask("status")
    assert (done.exit_code, done.stdout.startswith(f"nacos-proxy {__version__} is ready, up for ")) == (0, True)
    assert "\nupstream         up for " in done.stdout
    assert "(embedded registry)" in done.stdout
    assert ask("status", "-o", "name").stdout == "ready\n"
    assert json.loads(ask("status", "--json").stdout)["summary"]["services"] >= 0


def test_status_says_what_to_do_and_exits_with_1(cli: Run) -> None:
    with ProxyProcess("--upstream", f"http://127.0.0.1:{free_port()}") as proxy:
        done = cli("status", "--server", proxy.url)
        while "is unready" not in done.stdout:  # until its first call has failed
            done = cli("status", "--server", proxy.url)
    assert done.exit_code == 1
    assert "\n!  upstream: " in done.stdout
    assert "\n  ->  Reads are answered from memory meanwhile. Check that Nacos runs" in done.stdout
    assert "\nupstream         down for " in done.stdout


def test_status_without_a_proxy_exits_with_3(cli: Run) -> None:
    assert cli("status", "--server", f"http://127.0.0.1:{free_port()}").exit_code == 3


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_version_shows_both_versions(ask: Run, cli: Run, arguments: tuple[str, ...]) -> None:
    assert ask("version", *arguments).stdout.count(__version__) == 2
    alone = cli("version", *arguments, "--server", f"http://127.0.0.1:{free_port()}")
    assert (alone.exit_code, alone.stdout.count(__version__)) == (0, 1)

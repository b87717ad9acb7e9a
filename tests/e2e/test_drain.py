"""Deploys as the recipe shows them: drained, killed at once, and no request fails."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.helpers.live import Process, ProxyProcess, RNacos
from tests.helpers.recipes import block
from tests.helpers.scaling import Backends, follows, steady

BIN = Path(sys.executable).parent
SERVICE = f"deploys-{os.getpid()}"


@pytest.fixture
def proxy(rnacos: RNacos) -> Iterator[ProxyProcess]:
    with ProxyProcess("--upstream", rnacos.url) as proxy:
        yield proxy


def environment(proxy: ProxyProcess, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    return {**clean, "NACOS_PROXY_SERVER": proxy.url, "PATH": f"{BIN}:{os.environ['PATH']}", **more}


def shell(proxy: ProxyProcess, script: str, **more: str) -> str:
    """What the script of a recipe prints."""
    done = subprocess.run(
        ["sh", "-ec", script], env=environment(proxy, **more), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(upstream: RNacos, service: str) -> set[str]:
    """What Nacos itself shows."""
    url = f"{upstream.url}/nacos/v1/ns/instance/list"
    hosts = httpx.get(url, params={"serviceName": service}, trust_env=False).json()["hosts"]
    return {f"{host['ip']}:{host['port']}" for host in hosts if host["enabled"]}


def until(holds: Callable[[], bool], what: str) -> None:
    clock = SystemClock()
    end, pause = clock.now() + 20, threading.Event()
    while not holds():
        assert clock.now() < end, what
        pause.wait(0.05)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10.0) as client:
        yield client


def through_pick(proxy: ProxyProcess, http: httpx.Client, service: str) -> Callable[[], str]:
    def ask() -> str:
        picked = http.get(f"{proxy.url}/api/v1/services/{service}/pick", params={"format": "text"})
        picked.raise_for_status()
        return http.get(f"http://{picked.text}/").raise_for_status().text

    return ask


def test_drain_of_the_recipe_fails_no_request_though_the_server_ends_at_once(
    proxy: ProxyProcess, rnacos: RNacos, http: httpx.Client
) -> None:
    service = f"{SERVICE}-hook"
    hook = block("deploys", "prestop.sh", {"127.0.0.1:8840": proxy.url.removeprefix("http://"), "orders": service,
                                           "$POD_IP:8080": "$ADDRESS", "wait=20s": "wait=1s"})  # fmt: skip
    with Backends(proxy.url, service) as backends:
        backends.scale(3)
        with steady(through_pick(proxy, http, service)) as load:
            follows(backends, load)
            gone = backends.addresses[1]
            shell(proxy, hook, ADDRESS=gone)
            backends.addresses.remove(gone)
            backends.retire()  # at once: whoever still sent requests to it would see them fail
            follows(backends, load)
            assert listed(rnacos, service) == set(backends.addresses)
            answer = http.put(f"{proxy.url}{backends.instance(gone)}/beat", json={"weight": 1.0})
            assert (answer.status_code, answer.headers["nacos-proxy-answer"]) == (200, "drained")
            assert listed(rnacos, service) == set(backends.addresses), "a heartbeat on the way does not bring it back"
            assert load.failures == []
            ip, _, port = gone.rpartition(":")
            body = {"ip": ip, "port": int(port)}
            http.post(f"{proxy.url}/api/v1/services/{service}/instances", json=body).raise_for_status()
            until(lambda: gone in listed(rnacos, service), "its registration does")


def test_drain_command_of_the_recipe_goes_on_over_a_restart_of_the_proxy(
    proxy: ProxyProcess, rnacos: RNacos, http: httpx.Client
) -> None:
    service = f"{SERVICE}-restart"
    unit = block("deploys", "orders.service", {"orders 10.0.0.5:8080": f"{service} 10.0.0.5:8080", "20s": "4s"})
    (command,) = (line.partition("=-")[2] for line in unit.splitlines() if line.startswith("ExecStop=-"))
    _, *arguments = shlex.split(command)
    http.post(f"{proxy.url}/api/v1/services/{service}/instances", json={"ip": "10.0.0.5", "port": 8080})
    until(lambda: "10.0.0.5:8080" in listed(rnacos, service), "registered")
    path = f"{proxy.url}/api/v1/services/{service}/instances/10.0.0.5:8080/drain"
    with Process([str(BIN / "nacos-proxy"), *arguments], env=environment(proxy)) as hook:
        until(lambda: http.get(path).status_code == 200, "begun")
        until(lambda: not listed(rnacos, service), "out of traffic")
        proxy.terminate()
        proxy.start()
        assert http.get(path).json()["state"] in ("draining", "deregistering", "drained")
        assert hook.wait() == 0, hook.log
        assert "drained 10.0.0.5:8080" in hook.log
    assert http.get(path).json()["state"] == "drained" and listed(rnacos, service) == set()


def test_canary_of_the_recipe_gets_its_share(proxy: ProxyProcess, http: httpx.Client) -> None:
    service = f"{SERVICE}-canary"
    path = f"{proxy.url}/api/v1/services/{service}"
    for number in range(1, 4):
        body = {"ip": f"10.0.0.{number}", "port": 8080, "metadata": {"version": "2" if number == 3 else "1"}}
        http.post(f"{path}/instances", json=body).raise_for_status()
    replace = {"127.0.0.1:8840": proxy.url.removeprefix("http://"), "orders": service}
    picked = shell(proxy, block("deploys", "canary.sh", replace).replace("\n", "\necho\n")).split()
    assert len(picked) == 2 and all(address.startswith("10.0.0.") for address in picked)
    picks = [http.get(f"{path}/pick?split=version=2:10&format=text").text for _ in range(1000)]
    assert 50 <= picks.count("10.0.0.3:8080") <= 160
    names = http.get(f"{path}/pick?n=3&strategy=least_recent").json()["instances"]
    assert sorted(host["ip"] for host in names) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_maintenance_of_the_recipe_survives_a_restart_of_the_proxy(
    proxy: ProxyProcess, rnacos: RNacos, http: httpx.Client
) -> None:
    service = f"{SERVICE}-maintenance"
    path = f"{proxy.url}/api/v1/services/{service}/instances"
    check = {"interval": "1s", "check": {"tcp": proxy.url.removeprefix("http://")}}
    http.post(path, json={"ip": "127.0.0.1", "port": 8080, "managed": check}).raise_for_status()
    on, off = block("deploys", "maintenance.sh", {"legacy": service}).splitlines()
    assert "in maintenance" in shell(proxy, on)
    until(lambda: not listed(rnacos, service), "out of traffic")
    proxy.kill()
    proxy.start()
    shown = http.get(f"{path}/127.0.0.1:8080").json()
    assert (shown["enabled"], shown["maintenance"]["reason"]) == (False, "disk swap")
    (row,) = http.get(f"{proxy.url}/status").json()["outOfTraffic"]["shown"]
    assert (row["address"], row["state"], row["reason"]) == ("127.0.0.1:8080", "maintenance", "disk swap")
    assert listed(rnacos, service) == set()
    assert "in traffic again" in shell(proxy, off)
    until(lambda: listed(rnacos, service) == {"127.0.0.1:8080"}, "back in traffic")

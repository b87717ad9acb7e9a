"""docs/recipes/tiers.md: its settings with real processes, in front of a registry that speaks as Nacos does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.helpers.live import ProxyProcess, free_port
from tests.helpers.recipes import block

FOLLOWING = re.compile("following the event stream of the upper proxy")
INSTANCE = "/nacos/v1/ns/instance"
ORDERS = "/api/v1/services/orders"


@contextmanager
def running(directory: Path, title: str, replace: dict[str, str], *arguments: str) -> Iterator[ProxyProcess]:
    """A proxy with the settings in a block of the recipe."""
    config = directory / title
    config.write_text(block("tiers", title, replace))
    with ProxyProcess(*arguments, env={"NACOS_PROXY_CONFIG": str(config)}) as proxy:
        yield proxy


def register(url: str, ip: str) -> None:
    parameters = {"serviceName": "orders", "ip": ip, "port": "80"}
    assert httpx.post(url + INSTANCE, params=parameters, trust_env=False).text == "ok"


def hosts(answer: httpx.Response) -> list[str]:
    return [host["ip"] for host in answer.json()["hosts"]]


def test_tiers_recipe_follows_the_upper_proxy(tmp_path: Path) -> None:
    secret, tokens = tmp_path / "upper-token", tmp_path / "tokens"
    secret.write_text("12345678\n")
    tokens.write_text("admin:12345678\n")
    above = {'"0.0.0.0"': '"127.0.0.1"', "/etc/nacos-proxy/tokens": str(tokens)}
    below = {"/etc/nacos-proxy/upper-token": str(secret)}
    with (
        ProxyProcess("--no-disk") as nacos,
        running(tmp_path, "upper.toml", {"http://10.0.0.1:8848": nacos.url, **above}) as upper,
        running(tmp_path, "lower.toml", {"proxy+http://site-proxy:8840": f"proxy+{upper.url}", **below}) as lower,
    ):
        register(lower.url, "10.0.0.1")
        first = httpx.get(lower.url + ORDERS, trust_env=False)
        assert hosts(first) == hosts(httpx.get(nacos.url + ORDERS, trust_env=False)) == ["10.0.0.1"]
        lower.wait_for(FOLLOWING)
        register(nacos.url, "10.0.0.2")
        wanted = {"index": first.json()["revision"], "wait": "60s"}
        changed = httpx.get(f"{lower.url}{ORDERS}/watch", params=wanted, trust_env=False, timeout=100)
        assert hosts(changed) == ["10.0.0.1", "10.0.0.2"]
        assert httpx.get(lower.url + "/readyz", trust_env=False).json() == {"status": "ready", "reasons": []}


def test_tiers_recipe_has_several_processes_on_one_port(tmp_path: Path) -> None:
    assert block("tiers", "processes.sh").count("NACOS_PROXY_CONFIG=each.toml nacos-proxy serve &") == 2
    path = str(tmp_path / "upper.sock")
    each = {"/run/nacos-proxy/upper.sock": path, "8840": (port := str(free_port(and_offset=1000)))}
    with (
        ProxyProcess("--no-disk") as nacos,
        running(tmp_path, "one.toml", {"http://10.0.0.1:8848": nacos.url, "/run/nacos-proxy/upper.sock": path}),
        running(tmp_path, "each.toml", each, "--port", port) as one,
        running(tmp_path, "each.toml", each, "--port", port) as other,
    ):
        assert one.url == other.url
        register(one.url, "10.0.0.1")
        processes: set[str] = set()
        for _ in range(1000):  # each request has a connection of its own
            answer = httpx.get(one.url + ORDERS, trust_env=False)
            assert hosts(answer) == ["10.0.0.1"]
            processes.add(answer.headers.get("x-request-id", "").partition("-")[0])
            if len(processes - {""}) == 2:
                break
        assert len(processes - {""}) == 2

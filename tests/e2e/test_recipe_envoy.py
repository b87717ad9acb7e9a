"""docs/recipes/envoy.md with a real Envoy: instances come and go under load through it."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.helpers.envoy import Envoy, envoy_binary
from tests.helpers.live import ProxyProcess, RNacos, rnacos_binary
from tests.helpers.recipes import block
from tests.helpers.scaling import PATIENCE, Backends, follows, scales, steady

EDS, CDS = block("envoy", "envoy.yaml"), block("envoy", "envoy-cds.yaml")
SERVICE = "service_name: orders\n"


@pytest.fixture(scope="module", autouse=True)
def binary() -> str:
    return envoy_binary()


@pytest.fixture(scope="module")
def proxy(binary: str) -> Iterator[ProxyProcess]:
    with ProxyProcess() as proxy:
        yield proxy


def eds(service: str) -> str:
    """The recipe's configuration with another resource name."""
    assert SERVICE in EDS
    return EDS.replace(SERVICE, f"service_name: '{service}'\n")


def patch(proxy: ProxyProcess, backends: Backends, number: int, **fields: object) -> None:
    url = f"{proxy.url}{backends.instance(backends.addresses[number])}"
    httpx.patch(url, json=fields, trust_env=False).raise_for_status()


def zone(number: int) -> dict[str, str]:
    return {"zone": "a" if number <= 2 else "b"}


def test_eds_follows_a_service_and_no_request_fails(proxy: ProxyProcess, tmp_path: Path) -> None:
    with Envoy(eds("scaling"), proxy.port, tmp_path) as envoy, Backends(proxy.url, "scaling") as backends:
        with steady(envoy.ask) as load:
            scales(backends, load)
        stats = envoy.stats("cluster.orders.")
        assert (stats["update_failure"], stats["update_rejected"]) == (0, 0), stats
        assert stats["update_success"] < 20, "one for each change"


def test_eds_follows_a_service_while_the_upstream_is_away(tmp_path: Path) -> None:
    rnacos = rnacos_binary()
    if rnacos is None:
        pytest.skip("no r-nacos")
    config = EDS.replace("refresh_delay: 0.2s", "refresh_delay: 0.1s")
    with RNacos(rnacos) as upstream, ProxyProcess("--upstream", upstream.url) as proxy:
        with Envoy(config, proxy.port, tmp_path) as envoy, Backends(proxy.url, "orders") as backends:
            with steady(envoy.ask) as load:
                backends.scale(2)
                follows(backends, load)
                load.failures.clear()
                upstream.kill()
                scales(backends, load, (3, 1, 0, 1))


def test_a_person_may_ask_as_envoy_does(proxy: ProxyProcess) -> None:
    command = block("envoy", "ask.sh", {"http://127.0.0.1:8840": proxy.url})
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=100)
    assert '"cluster_name":"orders?selector=zone=a"' in done.stdout, done.stdout + done.stderr


def test_eds_honours_weights(proxy: ProxyProcess, tmp_path: Path) -> None:
    with Envoy(eds("weights"), proxy.port, tmp_path) as envoy, Backends(proxy.url, "weights") as backends:
        backends.scale(2)
        patch(proxy, backends, 1, weight=3.0)
        with steady(envoy.ask, rate=400) as load:
            load.wait_until(lambda answers: 2.5 < ratio(answers[-200:], backends) < 3.5, "a share of 3 to 1")


def ratio(answers: list[str], backends: Backends) -> float:
    counts = Counter(answers)
    return counts[backends.addresses[1]] / max(1, counts[backends.addresses[0]])


def test_eds_prefers_a_zone_until_it_is_gone(proxy: ProxyProcess, tmp_path: Path) -> None:
    """Zone a has the first two backends."""
    config = eds("zones?prefer=zone=a&prefer_min=0.1")
    with Envoy(config, proxy.port, tmp_path) as envoy, Backends(proxy.url, "zones", zone) as backends:
        backends.scale(4)
        near, far = backends.addresses[:2], backends.addresses[2:]
        with steady(envoy.ask) as load:
            load.wait_until(lambda answers: set(answers[-40:]) == set(near), "answers from zone a")
            load.failures.clear()
            for number in (0, 1):
                patch(proxy, backends, number, enabled=False)
            load.wait_until(lambda answers: set(answers[-40:]) == set(far), "answers from zone b")
            patch(proxy, backends, 0, enabled=True)
            load.wait_until(lambda answers: set(answers[-40:]) == {near[0]}, "answers from zone a again")
            assert load.failures == []


def test_eds_counts_an_unchanged_answer_neither_as_an_update_nor_as_a_failure(
    proxy: ProxyProcess, tmp_path: Path
) -> None:
    config = eds("unchanged").replace("request_timeout: 30s", "request_timeout: 0.4s")
    with Envoy(config.replace("refresh_delay: 0.2s", "refresh_delay: 0.1s"), proxy.port, tmp_path) as envoy:
        eventually(lambda: envoy.stats("cluster.orders.")["update_attempt"] > 5)
        stats = envoy.stats("cluster.orders.")
        assert (stats["update_success"], stats["update_rejected"]) == (1, 0), stats
        assert stats["update_failure"] <= 1, "one answer may be late on a busy machine"


def eventually(holds: Callable[[], bool]) -> None:
    clock, pause = SystemClock(), threading.Event()
    end = clock.now() + PATIENCE
    while not holds():
        assert clock.now() < end
        pause.wait(0.05)


def test_cds_makes_a_cluster_of_each_service(proxy: ProxyProcess, tmp_path: Path) -> None:
    with Envoy(CDS, proxy.port, tmp_path) as envoy, Backends(proxy.url, "orders") as backends:
        with steady(lambda: envoy.ask("/orders")) as load:
            scales(backends, load, (2, 1))
        with Backends(proxy.url, "late") as late:
            late.scale(1)
            with steady(lambda: envoy.ask(headers={"x-service": "late"})) as load:
                follows(late, load)
        stats = envoy.stats("cluster_manager.cds.")
        assert (stats["update_failure"], stats["update_rejected"]) == (0, 0), stats


def test_a_file_that_is_renamed_into_place_is_read(proxy: ProxyProcess, tmp_path: Path) -> None:
    directory = tmp_path / "eds"
    directory.mkdir()
    here = {"/etc/envoy/eds": str(directory)}
    command = block(
        "envoy", "write.sh", {"http://127.0.0.1:8840": proxy.url, "service=orders": "service=filed", **here}
    )
    begin = EDS.index("      eds_config:")
    config = EDS[:begin].replace(SERVICE, "service_name: filed\n") + block("envoy", "file.yaml", here)
    with Backends(proxy.url, "filed") as backends:
        backends.scale(1)
        subprocess.run(command, shell=True, check=True, timeout=100)
        with Envoy(config, proxy.port, tmp_path) as envoy, steady(envoy.ask) as load:
            follows(backends, load)
            backends.scale(2)
            subprocess.run(command, shell=True, check=True, timeout=100)
            follows(backends, load)
            assert load.failures == []


def test_cds_and_eds_with_an_api_token(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("read:secret-of-envoy\nwrite:secret-of-others\n")
    (tmp_path / "tokens").chmod(0o600)
    token = block("envoy", "token.yaml", {"TOKEN": "secret-of-envoy"})
    place = "  - name: nacos_proxy\n"
    assert place in CDS
    with ProxyProcess("--tokens-file", str(tmp_path / "tokens")) as proxy:
        body = {"ip": "127.0.0.1", "port": proxy.port}
        httpx.post(
            f"{proxy.url}/api/v1/services/orders/instances",
            json=body,
            headers={"authorization": "Bearer secret-of-others"},
            trust_env=False,
        ).raise_for_status()
        with Envoy(CDS.replace(place, place + token), proxy.port, tmp_path) as envoy:
            eventually(lambda: envoy.stats("cluster.orders.").get("membership_total") == 1)

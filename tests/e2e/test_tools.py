"""What the proxy writes for other programs, read by these programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.live import Process, ProxyProcess, free_port

# Addresses, weights and metadata that Nacos accepts and that could end a line, a quote or a block.
INSTANCES = [
    {"ip": "127.0.0.1", "port": 8081, "weight": 2.5, "metadata": {"zone": "a", "a.b-c/d": 'quote " and ; {'}},
    {"ip": "2001:db8::1", "port": 8082, "weight": 10000, "clusterName": "c1"},
    {"ip": "backend.local;}", "port": 8083},
    {"ip": "127.0.0.4", "port": 8084, "weight": 0},
]
# Nacos accepts these. A load balancer refuses its whole file over them, or reads another address.
READ_OTHERWISE = ("010.0.0.1", "10.0.0", "0x7f.1", "unix")  # nginx accepts these and reads another address
TRAPS = [
    {"ip": ip, "port": 8090}
    for ip in (
        *("10.0.0.1:80", "999.1.1.1", "010.0.0.1", "10.0.0", "[2001:db8::7", "fe80::1%eth0", "::1%;}", "-a", "a..b"),
        *("a" * 64, "a;include/etc/passwd;#", "$HOME", "a{b", "unix", "a\\", "'", '"', "#", "0x7f.1", "*", "/tmp/x"),
    )
]
TRAPS += [{"ip": "10.0.0.1", "port": 0}, {"ip": "[::]", "port": 0}]
SAFE = [
    {"ip": ip, "port": 8091} for ip in ("[2001:db8::7]", "2001:DB8::7", "2001:db8:0::7", "::ffff:10.0.0.1", "LOCALHOST")
]


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    with ProxyProcess() as proxy, httpx.Client(base_url=proxy.url, trust_env=False) as http:
        for body in INSTANCES:
            http.post("/api/v1/services/orders/instances", json={**body, "ephemeral": False}).raise_for_status()
        yield proxy


@pytest.fixture(scope="module")
def trapped() -> Iterator[ProxyProcess]:
    """A service registered through the Nacos API: good instances among traps."""
    with ProxyProcess() as proxy, httpx.Client(base_url=proxy.url, trust_env=False) as http:
        for form in (*TRAPS, *SAFE):
            whole = {**form, "serviceName": "orders", "weight": "2.5", "ephemeral": "false"}
            http.post("/nacos/v1/ns/instance", data=whole).raise_for_status()
        yield proxy


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name} here; .ci/run installs it")
    return found


def checked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def lines(proxy: ProxyProcess, kind: str) -> str:
    return httpx.get(f"{proxy.url}/api/v1/sd/{kind}?service=orders", trust_env=False).raise_for_status().text


def discovered(proxy: ProxyProcess, directory: Path) -> list[dict[str, Any]]:
    """The targets that promtool discovers; it always waits for its whole timeout."""
    config = directory / "prometheus.yml"
    url = f"{proxy.url}/api/v1/sd/prometheus?service=orders"
    config.write_text(f"scrape_configs: [{{job_name: nacos, http_sd_configs: [{{url: '{url}'}}]}}]\n")
    checked(tool("promtool"), "check", "config", str(config))
    return json.loads(checked(tool("promtool"), "check", "service-discovery", "--timeout=2s", str(config), "nacos"))


def test_sd_prometheus_is_read_by_promtool(proxy: ProxyProcess, tmp_path: Path) -> None:
    found = discovered(proxy, tmp_path)
    labels = {target["discoveredLabels"]["__address__"]: target["discoveredLabels"] for target in found}
    assert labels.keys() == {"127.0.0.1:8081", "[2001:db8::1]:8082", "backend.local;}:8083", "127.0.0.4:8084"}
    first = labels["127.0.0.1:8081"]
    assert first["__meta_nacos_metadata_a_b_c_d"] == 'quote " and ; {'
    assert (first["__meta_nacos_service"], first["__meta_nacos_weight"]) == ("orders", "2.5")


def test_metrics_pass_promtool_check(proxy: ProxyProcess) -> None:
    text = httpx.get(f"{proxy.url}/metrics", trust_env=False).text
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=100
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "nacos_proxy_" in line]
    assert complaints == []


def test_compose_prometheus_configuration_passes_promtool() -> None:
    deploy = Path(__file__).parents[2] / "deploy"
    checked(tool("promtool"), "check", "config", str(deploy / "prometheus" / "prometheus.yml"))


def check_haproxy(directory: Path, servers: str) -> None:
    config = directory / "haproxy.cfg"
    timeouts = "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
    config.write_text(f"{timeouts}listen orders\n  bind 127.0.0.1:{free_port()}\n{servers}")
    checked(tool("haproxy"), "-c", "-f", str(config))


def test_sd_haproxy_is_accepted_by_haproxy(proxy: ProxyProcess, tmp_path: Path) -> None:
    servers = lines(proxy, "haproxy")
    assert servers.count("server ") == 2
    check_haproxy(tmp_path, servers)


def test_sd_haproxy_omits_what_haproxy_refuses(trapped: ProxyProcess, tmp_path: Path) -> None:
    nowhere = {"serviceName": "orders", "ip": "nosuch.invalid", "port": 80, "ephemeral": "false"}
    httpx.post(f"{trapped.url}/nacos/v1/ns/instance", data=nowhere, trust_env=False).raise_for_status()
    try:
        servers = lines(trapped, "haproxy")
    finally:  # nginx refuses a name that does not resolve, which the proxy cannot know
        httpx.request("DELETE", f"{trapped.url}/nacos/v1/ns/instance", params=nowhere, trust_env=False)
    assert servers.count("server ") == 4
    check_haproxy(tmp_path, servers)


@pytest.mark.parametrize("instance", TRAPS, ids=lambda instance: instance["ip"])
def test_traps_are_refused_or_misread_by_nginx(instance: dict[str, Any], tmp_path: Path) -> None:
    config = nginx_config(tmp_path, f"server {instance['ip']}:{instance['port']};")
    command = [tool("nginx"), "-t", "-c", str(config), "-e", "stderr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode == 0) is (instance["ip"] in READ_OTHERWISE), done.stderr


def nginx_config(directory: Path, servers: str) -> Path:
    (directory / "servers").write_text(servers)
    config = directory / "nginx.conf"
    upstream = f"upstream orders {{ include {directory}/servers; }}"
    config.write_text(f"pid {directory}/pid; error_log stderr; events {{}} http {{ access_log off; {upstream} }}\n")
    return config


def test_sd_nginx_omits_what_nginx_refuses(trapped: ProxyProcess, tmp_path: Path) -> None:
    servers = lines(trapped, "nginx")
    assert servers.count("server ") == 3
    checked(tool("nginx"), "-t", "-c", str(nginx_config(tmp_path, servers)), "-e", "stderr")


def test_sd_prometheus_of_hostile_instances_is_read_by_promtool(trapped: ProxyProcess, tmp_path: Path) -> None:
    found = discovered(trapped, tmp_path)
    assert "[2001:db8::7]:8091" in {target.get("discoveredLabels", {}).get("__address__") for target in found}


def test_sd_nginx_lets_nginx_serve_the_backends(proxy: ProxyProcess, tmp_path: Path) -> None:
    nginx, port = tool("nginx"), free_port()
    with httpx.Client(base_url=proxy.url, trust_env=False) as http:
        backend = {"ip": "127.0.0.1", "port": proxy.port, "ephemeral": False}
        http.post("/api/v1/services/ourselves/instances", json=backend).raise_for_status()
        (tmp_path / "servers").write_text(http.get("/api/v1/sd/nginx?service=ourselves").raise_for_status().text)
    (tmp_path / "more").write_text(lines(proxy, "nginx"))
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {tmp_path}/pid; error_log stderr; events {{}}
        http {{ access_log off; {temporary}
            upstream ourselves {{ include {tmp_path}/servers; }}
            upstream orders {{ include {tmp_path}/more; }}
            server {{ listen 127.0.0.1:{port};
                location / {{ proxy_pass http://ourselves; proxy_set_header Host localhost; }}
                location /orders {{ proxy_pass http://orders; }} }} }}
        """
    )
    checked(nginx, "-t", "-c", str(config), "-e", "stderr")
    with Process([nginx, "-c", str(config), "-e", "stderr"]):
        transport = httpx.HTTPTransport(retries=5)  # until it listens
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}") as http:
            assert http.get("/healthz").json() == {"status": "ok"}

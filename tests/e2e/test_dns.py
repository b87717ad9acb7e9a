"""Programs that find services by DNS, with the configuration that docs/recipes shows."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.helpers.live import Process, ProxyProcess, RNacos, free_port, rnacos_binary
from tests.helpers.recipes import block
from tests.helpers.scaling import Backends, scales, steady

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
DNS = re.compile(r"DNS for \S+: 127\.0\.0\.1:(\d+)")


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name} here; .ci/run installs it")
    return found


def dns_port(proxy: ProxyProcess) -> int:
    return int(proxy.wait_for(DNS)[1])


@pytest.fixture(scope="module")
def upstream() -> Iterator[RNacos]:
    binary = rnacos_binary()
    if binary is None:
        pytest.skip("no r-nacos here; .ci/run installs it")
    with RNacos(binary) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(upstream: RNacos) -> Iterator[ProxyProcess]:
    with ProxyProcess("--upstream", upstream.url, "--dns", "127.0.0.1:0", "--no-grpc") as proxy:
        yield proxy


def register(proxy: ProxyProcess, service: str, *bodies: dict[str, object]) -> None:
    with httpx.Client(base_url=proxy.url, trust_env=False) as http:
        for body in bodies:
            http.post(f"/api/v1/services/{service}/instances", json={**body, "ephemeral": False}).raise_for_status()


def dig(port: int, *arguments: str) -> str:
    command = [tool("dig"), "@127.0.0.1", "-p", str(port), "+tries=1", "+timeout=10", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def code(text: str) -> str:
    found = re.search(r"status: (\w+)", text)
    return found[1] if found else text


def test_dns_is_read_by_dig(proxy: ProxyProcess) -> None:
    register(proxy, "dug", {"ip": "10.0.0.1", "port": 80, "weight": 2}, {"ip": "2001:db8::7", "port": 81})
    port = dns_port(proxy)
    assert dig(port, "dug.nacos", "+short") == "10.0.0.1\n"
    assert dig(port, "DUG.default-group.public.nacos", "AAAA", "+short") == "2001:db8::7\n"
    assert set(dig(port, "_dug._tcp.nacos", "SRV", "+short", "+tcp").splitlines()) == {
        "1 12800 80 0a000001.addr.nacos.",
        "1 6400 81 20010db8000000000000000000000007.addr.nacos.",
    }
    assert dig(port, "-x", "10.0.0.1", "+short") == "dug.DEFAULT-GROUP.public.nacos.\n"
    assert code(dig(port, "nothing.nacos")) == "NXDOMAIN"
    assert code(dig(port, "dug.nacos", "MX")) == "NOERROR"
    assert code(dig(port, "example.com")) == "REFUSED"
    assert code(dig(port, "dug.nacos", "+noedns")) == "NOERROR"


def test_dns_truncates_and_dig_asks_again_by_tcp(proxy: ProxyProcess) -> None:
    register(proxy, "large", *({"ip": f"10.1.0.{n}", "port": 80} for n in range(60)))
    port = dns_port(proxy)
    assert " tc" in dig(port, "_large._tcp.nacos", "SRV", "+noedns", "+ignore")
    assert len(dig(port, "_large._tcp.nacos", "SRV", "+noedns", "+short").splitlines()) == 60
    assert len(dig(port, "_large._tcp.nacos", "SRV", "+bufsize=8192", "+ignore", "+short").splitlines()) == 60


def ask(url: str) -> Callable[[], str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call() -> str:
        with opener.open(url, timeout=10) as answer:
            return answer.read().decode()

    return call


def haproxy(proxy: ProxyProcess, folder: Path, service: str = "orders") -> tuple[Process, int]:
    port = free_port()
    replaced = {"127.0.0.1:8853": f"127.0.0.1:{dns_port(proxy)}", "127.0.0.1:8080": f"127.0.0.1:{port}"}
    replaced["_orders._tcp"] = f"_{service}._tcp"
    config = folder / "haproxy.cfg"
    config.write_text(f"global\n    stats socket {folder}/admin\n{block('haproxy-dns', 'haproxy.cfg', replaced)}")
    return Process([tool("haproxy"), "-db", "-f", str(config)]), port


def admin(folder: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "admin"))
        client.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def test_dns_lets_haproxy_follow_a_service_even_while_the_upstream_is_away(
    proxy: ProxyProcess, upstream: RNacos, tmp_path: Path
) -> None:
    process, port = haproxy(proxy, tmp_path)
    with process, Backends(proxy.url, "orders") as backends, steady(ask(f"http://127.0.0.1:{port}/")) as load:
        scales(backends, load)
        upstream.kill()
        scales(backends, load, (3, 1))
        upstream.start()
        assert code(dig(dns_port(proxy), "orders.nacos")) == "NOERROR"


def test_dns_gives_haproxy_weights_in_proportion(proxy: ProxyProcess, tmp_path: Path) -> None:
    register(proxy, "weighed", {"ip": "127.0.2.1", "port": 1, "weight": 2}, {"ip": "127.0.2.2", "port": 1})
    process, _ = haproxy(proxy, tmp_path, "weighed")

    def weights() -> dict[str, str]:
        rows = [line.split() for line in admin(tmp_path, "show servers state orders").splitlines()[2:]]
        return {row[4]: row[7] for row in rows if len(row) > 7 and row[4].startswith("127.0.2.")}

    with process:
        poll(lambda: len(weights()) == 2)
        assert weights() == {"127.0.2.1": "50", "127.0.2.2": "25"}


def poll(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for a program of another process, which tells nobody when it is ready."""
    clock, pause = SystemClock(), threading.Event()
    end = clock.now() + seconds
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert clock.now() < end
        pause.wait(0.05)


@pytest.fixture
def stub_zone(proxy: ProxyProcess, tmp_path: Path) -> Iterator[list[str]]:
    """A command prefix: what it runs has dnsmasq as the system's resolver, which forwards the zone to the proxy."""
    address, unshare = "127.0.0.77", tool("unshare")
    config = tmp_path / "dnsmasq.conf"
    config.write_text(block("caddy-dns", "dnsmasq.conf", {"#8853": f"#{dns_port(proxy)}"}))
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {address}\n")
    script = f'mount --bind {resolv} /etc/resolv.conf && exec "$0" "$@"'
    prefix = [unshare, "--mount", "sh", "-c", script]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("only root can give a program another /etc/resolv.conf")
    more = ["--no-hosts", "--no-resolv", "--bind-interfaces", "--pid-file=", "--user=root", "--log-facility=-"]
    command = [tool("dnsmasq"), "--keep-in-foreground", f"--conf-file={config}", f"--listen-address={address}", *more]
    with Process(command) as dnsmasq:
        dnsmasq.wait_for(re.compile("started"))
        yield prefix


def caddy(proxy: ProxyProcess, folder: Path, title: str, *prefix: str) -> tuple[Process, int]:
    port = free_port()
    replaced = {":8080 {": f"http://127.0.0.1:{port} {{", "127.0.0.1:8853": f"127.0.0.1:{dns_port(proxy)}"}
    config = folder / "Caddyfile"
    config.write_text(f"{{\n    admin off\n}}\n{block('caddy-dns', title, replaced)}")
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return Process([*prefix, tool("caddy"), "run", "--config", str(config)], env={**os.environ, **home}), port


def test_dns_lets_caddy_follow_a_service_through_dnsmasq(
    proxy: ProxyProcess, upstream: RNacos, stub_zone: list[str], tmp_path: Path
) -> None:
    process, port = caddy(proxy, tmp_path, "Caddyfile", *stub_zone)
    with process, Backends(proxy.url, "orders") as backends, steady(ask(f"http://127.0.0.1:{port}/")) as load:
        scales(backends, load, (1, 3, 0, 2))
        upstream.kill()
        scales(backends, load, (1,))
        upstream.start()


def test_dns_lets_caddy_find_addresses_without_dnsmasq(proxy: ProxyProcess, tmp_path: Path) -> None:
    register(proxy, "caddied", {"ip": "127.0.0.1", "port": proxy.port})
    process, port = caddy(proxy, tmp_path, "Caddyfile-a")
    config = tmp_path / "Caddyfile"
    config.write_text(
        config.read_text().replace("orders.nacos", "caddied.nacos").replace("port 8080", f"port {proxy.port}")
    )
    with process:
        poll(lambda: ask(f"http://127.0.0.1:{port}/healthz")() == '{"status":"ok"}')


def test_dns_is_forwarded_by_unbound(proxy: ProxyProcess, tmp_path: Path) -> None:
    register(proxy, "bound", {"ip": "10.0.0.1", "port": 80})
    port = free_port()
    config = tmp_path / "unbound.conf"
    more = f'    interface: 127.0.0.1@{port}\n    chroot: ""\n    username: ""\n    pidfile: ""\n    use-syslog: no\n'
    text = block("dns", "unbound.conf", {"@8853": f"@{dns_port(proxy)}"})
    config.write_text(text.replace("server:\n", f"server:\n{more}", 1))
    with Process([tool("unbound"), "-d", "-c", str(config)]) as unbound:
        unbound.wait_for(re.compile("start of service"))
        assert dig(port, "bound.DEFAULT-GROUP.public.nacos", "+short") == "10.0.0.1\n"
        assert dig(port, "_bound._tcp.nacos", "SRV", "+short") == "1 6400 80 0a000001.addr.nacos.\n"
        assert code(dig(port, "nothing.nacos")) == "NXDOMAIN"


def nginx_of_version(*least: int) -> str:
    """nginx, if it is at least of that version."""
    nginx = tool("nginx")
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, timeout=60).stderr
    version = tuple(map(int, re.findall(r"\d+", said)[:3]))
    if version < least:
        pytest.skip(f"nginx {version} cannot resolve names again without a reload")
    return nginx


def test_dns_lets_nginx_follow_a_service(proxy: ProxyProcess, tmp_path: Path) -> None:
    nginx, port = nginx_of_version(1, 27, 3), free_port()
    replaced = {"127.0.0.1:8853": f"127.0.0.1:{dns_port(proxy)}", "127.0.0.1:8080": f"127.0.0.1:{port}"}
    folders = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in TEMPORARY)
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; events {{}}\n"
        f"http {{ access_log off; {folders}\n{block('dns', 'nginx.conf', replaced)}}}\n"
    )
    with (
        Process([nginx, "-c", str(config), "-e", "stderr"]),
        Backends(proxy.url, "orders") as backends,
        steady(ask(f"http://127.0.0.1:{port}/")) as load,
    ):
        scales(backends, load, (1, 3, 0, 2))


def test_dns_answers_from_disk_after_a_restart_without_the_upstream(upstream: RNacos, tmp_path: Path) -> None:
    arguments = ("--upstream", upstream.url, "--dns", "127.0.0.1:0", "--no-grpc")
    with ProxyProcess(*arguments, state_dir=tmp_path) as proxy:
        register(proxy, "kept", {"ip": "10.0.0.1", "port": 80})
        assert dig(dns_port(proxy), "kept.nacos", "+short") == "10.0.0.1\n"
    upstream.kill()
    try:
        with ProxyProcess(*arguments, state_dir=tmp_path) as proxy:
            port = dns_port(proxy)
            assert "1\tIN\tA\t10.0.0.1" in dig(port, "KEPT.nacos")
            assert code(dig(port, "never-seen.nacos")) == "SERVFAIL"
    finally:
        upstream.start()

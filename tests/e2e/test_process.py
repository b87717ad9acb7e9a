"""The real process: how it starts, reloads and stops, and which secrets it keeps."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import httpx
import psutil
import pytest

from nacos_proxy.client.client import NacosClient
from tests.helpers.live import ProxyProcess

CERTIFICATES = Path(__file__).parent.parent / "certificates"
PATIENCE = 60.0  # seconds before a test gives up
SECRETS = {"token": "read-token-7f3a", "admin": "admin-token-91cc", "password": "upstream-password-5d2e"}


def http(proxy: ProxyProcess, token: str = "", **options: Any) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=proxy.url, headers=headers, trust_env=False, timeout=PATIENCE, **options)


def connect(proxy: ProxyProcess, request: str) -> socket.socket:
    """A connection on which this part of a request was sent."""
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    connection.sendall(request.replace("\n", "\r\n").encode())
    return connection


def read_all(connection: socket.socket) -> str:
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def read_until(connection: socket.socket, text: str) -> str:
    got = ""
    while text not in got:
        chunk = connection.recv(65536)
        assert chunk, f"ended before {text!r} came: {got!r}"
        got += chunk.decode()
    return got


def register(proxy: ProxyProcess, service: str = "orders", **client: Any) -> None:
    with http(proxy, **client) as calls:
        calls.post(f"/api/v1/services/{service}/instances", json={"ip": "10.0.0.1", "port": 80}).raise_for_status()


def hosts(proxy: ProxyProcess, service: str = "orders", **client: Any) -> list[dict[str, Any]]:
    with http(proxy, **client) as calls:
        found: list[dict[str, Any]] = calls.get(f"/api/v1/services/{service}").raise_for_status().json()["hosts"]
    return found


# start


def test_serve_prints_its_url_and_answers() -> None:
    with ProxyProcess() as proxy, http(proxy) as calls:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", proxy.url)
        assert calls.get("/healthz").json() == {"status": "ok"}
        reasons = ["upstream: embedded registry, for development: no Nacos is behind it"]
        assert calls.get("/readyz").json() == {"status": "ready", "reasons": reasons}


def refused(*arguments: str, state_dir: Path) -> str:
    """The output of a start that must fail with exit code 2 and without a traceback."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    done = subprocess.run(
        [sys.executable, "-m", "nacos_proxy", "serve", "--state-dir", str(state_dir), *arguments],
        env={**clean, "NACOS_PROXY_CONFIG": os.devnull},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)
    return done.stderr


def test_serve_reports_a_taken_port_and_a_locked_state_directory(tmp_path: Path) -> None:
    with ProxyProcess() as proxy:
        said = refused("--port", str(proxy.port), state_dir=tmp_path)
        assert (
            f"127.0.0.1:{proxy.port} is in use by another nacos-proxy or another program; choose another --port" in said
        )
        said = refused("--port", "0", state_dir=proxy.state_dir)
        assert f"{proxy.state_dir} is in use by another nacos-proxy (process {proxy.pid})" in said
        assert "give this one its own --state-dir" in said


def test_serve_on_a_network_address_requires_a_token_or_insecure(tmp_path: Path) -> None:
    assert "set an API token" in refused("--host", "0.0.0.0", "--port", "0", state_dir=tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"admin:{SECRETS['admin']}\n")
    for allowed in (("--tokens-file", str(tokens)), ("--insecure",)):
        with ProxyProcess("--host", "0.0.0.0", *allowed) as proxy:
            assert proxy.url == f"http://0.0.0.0:{proxy.port}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tls-cert", "no.pem"), "cannot use the TLS certificate no.pem: No such file"),
        (("--tokens-file", "no-tokens"), "tokens_file: no-tokens cannot be read"),
        (("--username", "u", "--password-file", "nope", "--upstream", "http://127.0.0.1:1"), "password_file: nope"),
        (("--uds", "/dev/null"), "/dev/null exists and is not a socket"),
        (("--upstream", "ftp://x"), "ftp://x"),
    ],
)
def test_serve_reports_unusable_settings(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("--port", "0", *arguments, state_dir=tmp_path)


def test_serve_reports_an_impossible_state_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused("--port", "0", state_dir=tmp_path / "file")


# stop


def test_sigterm_lets_a_request_finish() -> None:
    body = '{"ip": "10.0.0.9", "port": 80}'
    head = "POST /api/v1/services/late/instances HTTP/1.1\nHost: localhost\n"
    head += f"Content-Type: application/json\nContent-Length: {len(body)}\n\n"
    with ProxyProcess() as proxy:
        under_way = connect(proxy, head + body[:10])
        with http(proxy) as calls:
            calls.get("/healthz")
        proxy.signal(signal.SIGTERM)
        proxy.wait_for(re.compile("stopping: SIGTERM"))
        under_way.sendall(body[10:].encode())
        assert read_all(under_way).startswith("HTTP/1.1 201 ")
        assert proxy.wait() == 0
        assert "Traceback" not in proxy.log
        proxy.start()
        with http(proxy) as calls:
            assert calls.get("/status").json()["registrations"] == 1


def test_sigterm_waits_no_longer_than_drain_timeout() -> None:
    with ProxyProcess("--drain-timeout", "200ms") as proxy:
        stuck = connect(proxy, "POST /api/v1/services/a/instances HTTP/1.1\nHost: localhost\nContent-Length: 10\n\n{")
        with http(proxy) as calls:
            calls.get("/healthz")
        assert proxy.terminate() == 0
        stuck.close()


def test_sigterm_ends_event_streams_with_a_retry() -> None:
    with ProxyProcess("--events-retry", "1500ms") as proxy:
        register(proxy)
        stream = connect(proxy, "GET /api/v1/events?service=orders HTTP/1.1\nHost: localhost\n\n")
        read_until(stream, "event: snapshot")
        watching = connect(proxy, "GET /api/v1/services/none/watch?index=0&wait=60s HTTP/1.1\nHost: localhost\n\n")
        with http(proxy) as calls:
            calls.get("/healthz")
        assert proxy.terminate() == 0
        assert re.search(r"^retry: \d+$", read_all(stream), re.MULTILINE)
        read_all(watching)


def test_sigterm_writes_the_state_that_the_next_start_serves() -> None:
    with ProxyProcess() as upstream, ProxyProcess("--upstream", upstream.url, "--push", "off") as proxy:
        register(upstream)
        assert [h["ip"] for h in hosts(proxy)] == ["10.0.0.1"]
        assert proxy.terminate() == 0
        assert not (proxy.state_dir / "state.sqlite3-wal").exists()
        upstream.kill()
        proxy.start()
        with http(proxy) as calls:
            answer = calls.get("/api/v1/services/orders")
            assert [h["ip"] for h in answer.json()["hosts"]] == ["10.0.0.1"]


# reload


def test_sighup_reloads_the_tokens(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:first-token\n")
    with ProxyProcess("--tokens-file", str(tokens)) as proxy:
        assert status(proxy, "first-token") == 200
        tokens.write_text("read:second-token\n")
        hang_up(proxy, "reloaded the API tokens")
        assert [status(proxy, token) for token in ("first-token", "second-token", "")] == [401, 200, 401]
        tokens.write_text("nonsense\n")
        hang_up(proxy, "not reloaded: write an API token as right:token")
        assert status(proxy, "second-token") == 200
        tokens.write_text("")
        hang_up(proxy, "not reloaded: there is no API token any more")
        assert [status(proxy, token) for token in ("second-token", "")] == [200, 401]
        assert "Traceback" not in proxy.log


def status(proxy: ProxyProcess, token: str) -> int:
    with http(proxy, token) as calls:
        return calls.get("/api/v1/services").status_code


def hang_up(proxy: ProxyProcess, said: str) -> None:
    before = proxy.log.count("\n")
    proxy.signal(signal.SIGHUP)
    proxy.wait_for(re.compile(re.escape(said)), since=before)


# kill


def test_sigkill_loses_no_registration_of_a_beating_client() -> None:
    """The embedded registry dies with the process: registrations come back from the state file or from beats."""
    with ProxyProcess() as proxy, NacosClient(proxy.url, timeout=PATIENCE) as client:
        for number in range(5):
            client.add_naming_instance("orders", f"10.0.0.{number}", 80, weight=2.0, metadata={"n": str(number)})
            client.send_heartbeat("orders", f"10.0.0.{number}", 80)
        with http(proxy) as calls:
            while "orders" not in state_of(proxy):
                calls.get("/healthz")
        proxy.kill()
        proxy.start()
        for number in range(5):
            # the light beat of an old client: nothing but its address
            place = {"serviceName": "orders", "ip": f"10.0.0.{number}", "port": "80"}
            with http(proxy) as calls:
                assert calls.put("/nacos/v1/ns/instance/beat", params=place).json()["code"] == 10200
        found = {host["ip"]: (host["weight"], host["metadata"]) for host in hosts(proxy)}
        assert found == {f"10.0.0.{number}": (2.0, {"n": str(number)}) for number in range(5)}


def state_of(proxy: ProxyProcess) -> str:
    """'orders' once the state file holds all registrations, else ''."""
    return "orders" if rows_of(proxy, "registration") == 5 else ""


def rows_of(proxy: ProxyProcess, table: str) -> int:
    with contextlib.closing(sqlite3.connect(proxy.state_dir / "state.sqlite3")) as db:
        return len(db.execute(f"SELECT name FROM {table}").fetchall())


# sockets and TLS


def test_serve_uds_listens_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with ProxyProcess("--uds", str(path)) as proxy:
        assert proxy.url == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as calls:
            assert calls.get("/healthz").json() == {"status": "ok"}
        proxy.kill()
        assert path.exists()
        proxy.start()
        assert proxy.terminate() == 0
        assert not path.exists()


def trusting(certificate: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))
    if certificate is not None:
        context.load_cert_chain(CERTIFICATES / certificate)
    return context


def test_serve_tls_cert_serves_tls() -> None:
    with ProxyProcess("--tls-cert", str(CERTIFICATES / "server.pem")) as proxy:
        assert proxy.url.startswith("https://127.0.0.1:")
        register(proxy, verify=trusting())
        assert len(hosts(proxy, verify=trusting())) == 1
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            hosts(proxy)


def test_serve_tls_client_ca_requires_a_client_certificate() -> None:
    arguments = ("--tls-cert", str(CERTIFICATES / "server.pem"), "--tls-client-ca", str(CERTIFICATES / "ca.pem"))
    with ProxyProcess(*arguments) as proxy:
        register(proxy, verify=trusting("client.pem"))
        for wrong in (None, "stranger.pem"):
            with pytest.raises(httpx.HTTPError):
                hosts(proxy, verify=trusting(wrong))


# the service manager

# Stands in for systemd: passes its descriptors from 3 on to the proxy, which replaces it.
ACTIVATE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDNAMES"] = sys.argv[1]
os.environ["LISTEN_FDS"] = str(len(sys.argv[1].split(":")))
os.execv(sys.executable, [sys.executable, "-m", "nacos_proxy", "serve", *sys.argv[2:]])
"""


@contextlib.contextmanager
def activated(
    *arguments: str, host: str = "127.0.0.1", named: Sequence[tuple[str, socket.socket]] = ()
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The proxy on a socket that was opened before it, and others with a name; gives the port and the process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}

    def third() -> None:
        kept = [
            fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for one in (listener, *(other for _, other in named))
        ]
        for number, descriptor in enumerate(kept, 3):
            os.dup2(descriptor, number, inheritable=True)

    with socket.create_server((host, 0)) as listener:
        listener.set_inheritable(True)
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, ":".join(["proxy", *(name for name, _ in named)]), *arguments],
            env={**clean, "NACOS_PROXY_CONFIG": os.devnull},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=third,
            close_fds=False,
        )
        try:
            yield listener.getsockname()[1], process
        finally:
            process.terminate()
            process.wait(PATIENCE)
            assert process.stdout is not None
            process.stdout.close()


def test_systemd_socket_is_used(tmp_path: Path) -> None:
    """A client that connects before the proxy runs is answered."""
    with activated("--state-dir", str(tmp_path)) as (port, process):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as calls:
            assert calls.get("/healthz").json() == {"status": "ok"}
        process.terminate()
        said, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, f"listening on http://127.0.0.1:{port}\n" in said) == (0, True)


def test_systemd_socket_for_grpc_is_used(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with activated("--state-dir", str(tmp_path), named=[("grpc", listener)]) as (http, process):
            with httpx.Client(base_url=f"http://127.0.0.1:{http}", trust_env=False, timeout=PATIENCE) as calls:
                shown = calls.get("/status").json()["grpc"]
            assert (shown["state"], shown["port"]) == ("ok", port)
            process.terminate()
            said, _ = process.communicate(timeout=PATIENCE)
            assert f"gRPC for Nacos SDKs: 127.0.0.1:{port}\n" in said
            assert f"listening on http://127.0.0.1:{port}" not in said


def test_systemd_sockets_for_dns_are_used(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(tcp.getsockname())
        address, port = tcp.getsockname()
        arguments = ("--state-dir", str(tmp_path), "--no-grpc", "--dns", "127.0.0.1:53")
        with activated(*arguments, named=[("dns", udp), ("dns", tcp)]) as (_, process):
            answer, by_tcp = dns.query.udp_with_fallback(
                dns.message.make_query("nacos.", "SOA"), address, port=port, timeout=PATIENCE
            )
            assert (len(answer.answer), by_tcp) == (1, False)
            assert process.stdout is not None
            assert f"DNS for nacos: 127.0.0.1:{port}\n" in process.stdout, "it may come after the answer"
        with activated(*arguments, named=[("dns", udp)]) as (_, process):
            said, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 2
            assert "set ListenStream and ListenDatagram" in said


def test_systemd_socket_on_a_network_address_requires_a_token(tmp_path: Path) -> None:
    with activated("--state-dir", str(tmp_path), host="0.0.0.0") as (_, process):
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "0.0.0.0 can be reached from other hosts: set an API token" in said


def test_systemd_notify_reports_ready_watchdog_reload_and_stop(tmp_path: Path) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE)
    told: list[str] = []

    def until(word: str) -> None:
        while word not in told:
            told.append(manager.recv(1024).decode())

    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
    with manager, ProxyProcess(env=environment) as proxy:
        until("READY=1")
        assert told == ["READY=1"]
        until("WATCHDOG=1")
        proxy.signal(signal.SIGHUP)
        until("RELOADING=1")
        proxy.signal(signal.SIGTERM)
        until("STOPPING=1")
        assert proxy.wait() == 0


UNIT = Path(__file__).parent.parent.parent / "deploy" / "nacos-proxy.service"


def test_systemd_unit_refuses_to_start_without_an_upstream(tmp_path: Path) -> None:
    (command,) = re.findall(r"^ExecStart=\S+ (.*)$", UNIT.read_text(), re.MULTILINE)
    run = [sys.executable, "-m", "nacos_proxy", *command.split(), "--state-dir", str(tmp_path), "--port", "0"]
    clean = {"PATH": os.environ["PATH"], "NACOS_PROXY_CONFIG": os.devnull}
    done = subprocess.run(run, capture_output=True, text=True, env=clean, timeout=PATIENCE)
    assert done.returncode == 2
    assert "upstream is not set: set it to your Nacos, such as http://10.0.0.1:8848" in done.stderr


def test_serve_banner_names_page_upstream_and_state(tmp_path: Path) -> None:
    with ProxyProcess("--state-dir", str(tmp_path)) as proxy:
        proxy.wait_for(re.compile(f"page: {proxy.url}/ui  API: {proxy.url}/docs\n"))
        assert "upstream: embedded registry, for development" in proxy.log
        assert f"state: {tmp_path}\n" in proxy.log


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_unit_is_valid_and_sandboxed(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/nacos-proxy/bin/nacos-proxy", sys.executable))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    said = [line for line in checked.stderr.splitlines() if unit.name in line]
    assert (checked.returncode, said) == (0, [])
    shut_in = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(shut_in, capture_output=True).returncode == 0


def test_systemd_unit_default_credential_holds_no_token(tmp_path: Path) -> None:
    (instead,) = re.findall(r"^SetCredential=tokens:(.*)$", UNIT.read_text(), re.MULTILINE)
    (tmp_path / "tokens").write_text(instead)
    with ProxyProcess("--tokens-file", str(tmp_path / "tokens")) as proxy:
        assert status(proxy, "") == 200


# disk faults


def test_full_disk_degrades_readiness_and_refuses_no_request() -> None:
    # a wrapper, so that the limit applies only to the proxy
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    limit += "os.execv(sys.executable, [sys.executable, '-m', 'nacos_proxy', 'serve', *sys.argv[1:]])"
    with ProxyProcess(command=(sys.executable, "-c", limit)) as proxy, http(proxy) as calls:
        body = {"ip": "10.0.0.1", "port": 80, "metadata": {"k": "x" * 1000}}
        for number in range(120):
            calls.post(f"/api/v1/services/s{number}/instances", json=body).raise_for_status()
            calls.get(f"/api/v1/services/s{number}").raise_for_status()
        proxy.wait_for(re.compile("the state cannot be written: .*; serving goes on without"))
        ready = calls.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert [reason.split(":")[0] for reason in ready.json()["reasons"]] == ["disk", "upstream"]
        assert "nacos_proxy_disk_failing 1.0" in calls.get("/metrics").text
        calls.get("/api/v1/services/s1").raise_for_status()
        assert proxy.terminate() == 0
        assert "Traceback" not in proxy.log


def read_only(state_dir: Path) -> tuple[str, ...]:
    """The command of a proxy in its own mount namespace, where this directory is read-only."""
    mounts = f"mount --bind {state_dir} {state_dir} && mount -o remount,bind,ro {state_dir}"
    own = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    if shutil.which("unshare") is None or subprocess.run((*own, mounts), capture_output=True).returncode:
        pytest.skip("no file systems of one's own here")
    return (*own, f'{mounts} && exec "$0" "$@"', sys.executable, "-m", "nacos_proxy", "serve")


@pytest.mark.parametrize("killed", [False, True])
def test_read_only_state_directory_is_read_and_reported(tmp_path: Path, killed: bool) -> None:
    with ProxyProcess() as upstream:
        register(upstream)
        with ProxyProcess("--upstream", upstream.url, "--push", "off", state_dir=tmp_path) as before:
            assert len(hosts(before)) == 1
            while not rows_of(before, "service"):
                assert len(hosts(before)) == 1
            if killed:
                before.kill()
    command = read_only(tmp_path)
    with ProxyProcess(
        "--upstream", "http://127.0.0.1:1", "--push", "off", state_dir=tmp_path, command=command
    ) as proxy:
        assert [h["ip"] for h in hosts(proxy)] == ["10.0.0.1"]
        with http(proxy) as calls:
            reasons = calls.get("/readyz").raise_for_status().json()["reasons"]
            assert "disk: Read-only file system" in " ".join(reasons)
            assert "nacos_proxy_disk_failing 1.0" in calls.get("/metrics").text
        assert "the state cannot be written: Read-only file system" in proxy.log
        assert f"{tmp_path} is in use by another nacos-proxy" in refused("--port", "0", state_dir=tmp_path)
        assert proxy.terminate() == 0
        assert "Traceback" not in proxy.log


def test_read_only_disk_without_a_state_directory_does_not_stop_serve(tmp_path: Path) -> None:
    with ProxyProcess(state_dir=tmp_path / "none", command=read_only(tmp_path)) as proxy, http(proxy) as calls:
        calls.post("/api/v1/services/orders/instances", json={"ip": "10.0.0.1", "port": 80}).raise_for_status()
        assert "disk: Read-only file system" in " ".join(calls.get("/readyz").json()["reasons"])
        assert proxy.terminate() == 0


@pytest.mark.parametrize("killed", [False, True])
def test_persistent_instances_survive_a_restart(killed: bool) -> None:
    v1 = "/nacos/v1/ns"
    own = {"serviceName": "orders", "ip": "10.0.0.1", "port": "80", "ephemeral": "false"}
    with ProxyProcess() as proxy:
        with http(proxy) as calls:
            said = {"serviceName": "orders", "metadata": '{"owner":"us"}', "protectThreshold": "0.5"}
            calls.post(f"{v1}/service", data=said).raise_for_status()
            calls.post(f"{v1}/instance", data={**own, "metadata": "zone=a"}).raise_for_status()
            calls.put(f"{v1}/instance", data={**own, "weight": "3", "metadata": "zone=b"}).raise_for_status()
            calls.put(f"{v1}/operator/switches", data={"entry": "clientBeatInterval", "value": "7000"})
            before = [calls.get(f"{v1}/{path}").json() for path in ("service?serviceName=orders", "operator/switches")]
        if killed:
            proxy.kill()
        else:
            assert proxy.terminate() == 0
        proxy.start()
        with http(proxy) as calls:
            (host,) = calls.get(f"{v1}/instance/list?serviceName=orders", headers={"cache-control": "no-cache"}).json()[
                "hosts"
            ]
            assert (host["ip"], host["weight"], host["metadata"], host["ephemeral"]) == (
                "10.0.0.1",
                3.0,
                {"zone": "b"},
                False,
            )
            after = [calls.get(f"{v1}/{path}").json() for path in ("service?serviceName=orders", "operator/switches")]
        assert after == before
        assert (before[0]["metadata"], before[1]["clientBeatInterval"]) == ({"owner": "us"}, 7000)


# secrets


def test_serve_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(SECRETS["password"])
    environment = {
        "NACOS_PROXY_TOKENS": f"read:{SECRETS['token']},admin:{SECRETS['admin']}",
        "NACOS_PROXY_LOG_LEVEL": "debug",
        "NACOS_PROXY_ACCESS_LOG": "true",
    }
    with ProxyProcess() as upstream:
        arguments = ("--upstream", upstream.url, "--username", "app", "--password-file", str(tmp_path / "password"))
        with ProxyProcess(*arguments, "--push", "off", env=environment) as proxy:
            with http(proxy, SECRETS["admin"]) as calls:
                calls.post("/api/v1/services/orders/instances", json={"ip": "10.0.0.1", "port": 80})
                calls.get("/api/v1/services/orders")
                paths = ("/status", "/status/orders", "/metrics", "/ui", "/docs", "/openapi.json")
                shown = {path: calls.get(path).text for path in paths}
                login = {"username": "app", "password": SECRETS["password"]}
                calls.post("/nacos/v1/auth/login", data=login)
                calls.get(f"/nacos/v1/ns/instance/list?serviceName=orders&accessToken={SECRETS['token']}")
            with http(proxy, "wrong-token-3333") as calls:
                shown["401"] = calls.get("/status").text
            shown["title"] = " ".join(psutil.Process(proxy.pid).cmdline())
            assert proxy.terminate() == 0
            shown["log"] = proxy.log
            assert stat.S_IMODE(proxy.state_dir.stat().st_mode) == 0o700
            for path in proxy.state_dir.iterdir():
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
                if path.is_file():
                    shown[path.name] = path.read_bytes().decode("latin-1")
    found = [(where, name) for where, text in shown.items() for name, secret in SECRETS.items() if secret in text]
    assert found == []
    assert "wrong-token-3333" not in shown["log"] + shown["401"]

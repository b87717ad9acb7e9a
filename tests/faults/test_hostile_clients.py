"""What forty clients that mean harm can make a real proxy hold: memory as the system counts it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.helpers.live import ProxyProcess

CLIENTS = 40
SERVICES = 500
MOST = 64 << 20  # bytes more than before
HOST = b"Host: 127.0.0.1\r\n"
WATCH = (
    b"GET /api/v1/events?" + b"&".join(b"service=s%d" % n for n in range(SERVICES)) + b" HTTP/1.%d\r\n" + HOST + b"\r\n"
)
SMALL = b"GET /nacos/v1/ns/instance/list?serviceName=s1 HTTP/1.1\r\n" + HOST + b"\r\n"
HELD = b"GET /api/v1/services/s1/watch?wait=60s&index=%b HTTP/1.1\r\n" + HOST + b"\r\n"
HALF = b"POST /nacos/v1/ns/instance HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n" + b"a" * 900_000


@pytest.fixture(scope="module", params=[(), ("--no-fast-path",)], ids=["fast-path", "plain"])
def proxy(request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    """With 500 services of 20 instances: a stream of all of them begins with some 4 MB."""
    with ProxyProcess(*request.param) as process, client(process) as http:
        for service in range(SERVICES):
            for host in range(20):
                form = {"serviceName": f"s{service}", "ip": f"10.0.{host}.{service % 250}", "port": "80"}
                http.post("/nacos/v1/ns/instance", data={**form, "metadata": f'{{"a":"{"b" * 100}"}}'})
        yield process


def client(proxy: ProxyProcess) -> httpx.Client:
    return httpx.Client(base_url=proxy.url, trust_env=False, timeout=60.0)


def say(proxy: ProxyProcess, data: bytes) -> socket.socket:
    """A connection on which nothing is ever read. As much is sent as the proxy takes."""
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(0.2)
    try:
        connection.sendall(data)
    except TimeoutError:
        pass
    return connection


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["streams", "old streams", "pipelines", "waiting pipelines", "half bodies"])
def test_forty_hostile_clients_make_the_proxy_hold_little(what: str, proxy: ProxyProcess) -> None:
    with client(proxy) as http:
        shown = http.get("/api/v1/services/s1")
        revision = shown.json()["revision"].encode()
        said = {
            "streams": WATCH % 1,
            "old streams": WATCH % 0,
            "pipelines": SMALL * 10_000,
            "waiting pipelines": HELD % revision + SMALL * 10_000,
            "half bodies": HALF,
        }[what]
        memory = psutil.Process(proxy.pid).memory_info
        before = memory().rss
        connections = [say(proxy, said) for _ in range(CLIENTS)]
        most = 0
        for _ in range(50):  # while others are served
            assert http.get("/nacos/v1/ns/instance/list?serviceName=s2").status_code == 200
            most = max(most, memory().rss - before)
        print(f"{what}: {most / 2**20:.1f} MiB more for {CLIENTS} clients")
        for connection in connections:
            connection.close()
        assert most <= MOST

"""How much memory forty hostile clients can make a real proxy hold, as the system counts it.

Each case has its own process, so that no memory is reused. All processes start from a copy of one state, because
registering 10,000 instances takes longer than all cases.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest

from tests.helpers.live import ProxyProcess

CLIENTS = 40
SERVICES, HOSTS = 500, 20
MIB = 1 << 20
MAX_GROWTH = 64 * MIB  # bytes more than before
MAX_BODY = MIB  # the setting `max_body`
ROUNDS = 50

HOST = b"Host: 127.0.0.1\r\n"
WATCH = (
    b"GET /api/v1/events?" + b"&".join(b"service=s%d" % n for n in range(SERVICES)) + b" HTTP/1.%d\r\n" + HOST + b"\r\n"
)
SMALL = b"GET /nacos/v1/ns/instance/list?serviceName=s1 HTTP/1.1\r\n" + HOST + b"\r\n"
HELD = b"GET /api/v1/services/s1/watch?wait=60s&index=%b HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /nacos/v1/ns/instance HTTP/1.1\r\n" + HOST
FORM = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
HALF = POST + b"Content-Length: 1000000\r\n\r\n" + b"a" * 900_000
ENDLESS = POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"a" * 0x10000 + b"\r\n") * 128
ANSWERED = b"HTTP/1.1 200"

# Each client's bytes, the bound in bytes for all forty, and the start of the answer (`first_bytes`).
# Everything that may be refused or left unread is far above the bound. Half a body is held: the rest may follow.
CASES = {
    "streams": (WATCH % 1, MAX_GROWTH, ANSWERED),
    "old streams": (WATCH % 0, MAX_GROWTH, ANSWERED),
    "pipelines": (SMALL * 40_000, MAX_GROWTH, ANSWERED),
    "waiting pipelines": (HELD + SMALL * 40_000, MAX_GROWTH, None),
    "half bodies": (HALF, CLIENTS * MAX_BODY + 8 * MIB, None),
    "endless bodies": (ENDLESS, MAX_GROWTH, b"HTTP/1.1 413"),
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 services of 20 instances: a stream of all begins with 8 MB, of which the kernel may buffer 4 MB."""
    directory = tmp_path_factory.mktemp("hostile") / "state"
    metadata = quote(f'{{"a":"{"b" * 500}"}}')
    with ProxyProcess(state_dir=directory) as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection:
            answers = connection.makefile("rb")
            for service in range(SERVICES):
                places = (f"serviceName=s{service}&ip=10.0.{host}.{service % 250}&port=80" for host in range(HOSTS))
                forms = [f"{place}&ephemeral=false&metadata={metadata}".encode() for place in places]
                connection.sendall(b"".join(POST + FORM % len(form) + form for form in forms))
                for _ in forms:
                    assert answers.readline().startswith(ANSWERED)
                    while answers.readline() != b"\r\n":
                        pass
                    assert answers.read(2) == b"ok"
    return directory


@pytest.fixture(params=[(), ("--no-fast-path",)], ids=["fast-path", "plain"])
def proxy(request: pytest.FixtureRequest, state: Path, tmp_path: Path) -> Iterator[ProxyProcess]:
    own = shutil.copytree(state, tmp_path / "state")
    with ProxyProcess(*request.param, state_dir=own) as process:
        yield process


def client(proxy: ProxyProcess) -> httpx.Client:
    return httpx.Client(base_url=proxy.url, trust_env=False, timeout=60.0)


@contextmanager
def connected(proxy: ProxyProcess) -> Iterator[socket.socket]:
    """A connection whose client never reads."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        yield connection


def unsent(connection: socket.socket, data: memoryview) -> memoryview:
    """The bytes left after the proxy, or the kernel, has taken what it takes now."""
    try:
        return data[connection.send(data) :]
    except BlockingIOError:
        return data


def first_bytes(connection: socket.socket) -> bytes | None:
    """The first bytes of the answer; None if there is none yet."""
    try:
        return connection.recv(len(ANSWERED), socket.MSG_PEEK)
    except BlockingIOError:
        return None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", CASES)
def test_hostile_clients_take_bounded_memory(what: str, proxy: ProxyProcess) -> None:
    sent, bound, answer = CASES[what]
    with client(proxy) as http, ExitStack() as connections:
        for service in ("s1", f"s{SERVICES - 1}"):
            listed = http.get(f"/nacos/v1/ns/instance/list?serviceName={service}").json()
            assert len(listed["hosts"]) == HOSTS
        sent = sent.replace(b"%b", http.get("/api/v1/services/s1").json()["revision"].encode())
        memory = psutil.Process(proxy.pid).memory_info
        before = peak = memory().rss
        open_before = [connections.enter_context(connected(proxy)) for _ in range(CLIENTS)]
        left = {connection: unsent(connection, memoryview(sent)) for connection in open_before}
        quiet = 0
        while quiet < ROUNDS:  # until the proxy has taken nothing for ROUNDS rounds, while others are served
            unsent_before = sum(map(len, left.values()))
            left = {connection: unsent(connection, data) for connection, data in left.items()}
            quiet = quiet + 1 if sum(map(len, left.values())) == unsent_before else 0
            assert http.get("/nacos/v1/ns/instance/list?serviceName=s2").status_code == 200
            peak = max(peak, memory().rss)
        assert {first_bytes(connection) for connection in left} == {answer}
    assert peak - before <= bound

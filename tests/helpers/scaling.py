"""A service that scales up, down and to zero, under a load that goes through another program.

    with Backends(proxy.url, "orders") as backends, steady(ask) as load:
        scales(backends, load)

`ask()` sends one request through the program (a load balancer, or a client that resolves names), returns the text that
the backend answered (its address), and raises if the request failed.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from nacos_proxy.runtime import SystemClock

PATIENCE = 60.0  # seconds for a program to follow; for one that never does
BEAT = 2.0  # seconds


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        host, port = self.server.server_address[:2]
        body = f"{host!s}:{port}".encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Backends:
    """HTTP servers on addresses of 127.0.0.0/8, each registered through the proxy as an ephemeral instance with beats.

    A deregistered server serves on until `retire()`, as one does that shuts down gracefully.
    """

    def __init__(self, proxy_url: str, service: str, metadata: Callable[[int], dict[str, str]] | None = None) -> None:
        self.service = service
        self.addresses: list[str] = []
        self._metadata = metadata or (lambda number: {})
        self._http = httpx.Client(base_url=proxy_url, trust_env=False, timeout=30.0)
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._numbers = itertools.count(1)
        self._ended = threading.Event()
        self._lock = threading.Lock()  # a beat must not register again what was just deregistered
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Backends:
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beats.join()
        self.scale(0)
        self.retire()
        self._http.close()

    def scale(self, number: int) -> None:
        """Starts and registers servers, or deregisters the newest, until `number` are registered."""
        while len(self.addresses) < number:
            self._add()
        while len(self.addresses) > number:
            self._remove()

    def retire(self) -> None:
        """Closes the servers that are not registered any more."""
        for address in [address for address in self._servers if address not in self.addresses]:
            server = self._servers.pop(address)
            server.shutdown()
            server.server_close()

    def instance(self, address: str) -> str:
        return f"/api/v1/services/{self.service}/instances/{address}"

    def _add(self) -> None:
        number = next(self._numbers)
        server = _Server((f"127.0.0.{number}", 0), _Answering)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        ip, port = str(server.server_address[0]), server.server_address[1]
        address = f"{ip}:{port}"
        self._servers[address] = server
        body = {"ip": ip, "port": port, "metadata": self._metadata(number)}
        with self._lock:
            self._http.post(f"/api/v1/services/{self.service}/instances", json=body).raise_for_status()
            self.addresses.append(address)

    def _remove(self) -> None:
        with self._lock:
            self._http.delete(self.instance(self.addresses.pop())).raise_for_status()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock:
                for address in self.addresses:
                    self._http.put(f"{self.instance(address)}/beat").raise_for_status()


@dataclass(slots=True)
class Load:
    """What the requests brought so far. Reading is safe while they go on."""

    answers: list[str] = field(default_factory=list[str])
    failures: list[str] = field(default_factory=list[str])

    def wait_until(self, holds: Callable[[list[str]], bool], what: str) -> None:
        """Waits until the answers from now on satisfy `holds`. Raises `AssertionError` after `PATIENCE`."""
        clock, began = SystemClock(), len(self.answers)
        end, pause = clock.now() + PATIENCE, threading.Event()
        while not holds(self.answers[began:]):
            assert clock.now() < end, f"not within {PATIENCE:g} s: {what}; last failures: {self.failures[-3:]}"
            pause.wait(0.02)


@contextlib.contextmanager
def steady(ask: Callable[[], str], *, threads: int = 4, rate: float = 100.0) -> Iterator[Load]:
    """Calls `ask` all the time, about `rate` times a second in all. `ask` must have a time limit of its own."""
    load, ended = Load(), threading.Event()

    def call() -> None:
        while not ended.wait(threads / rate):
            try:
                load.answers.append(ask())
            except Exception as error:
                load.failures.append(f"{type(error).__name__}: {error}")

    callers = [threading.Thread(target=call, daemon=True) for _ in range(threads)]
    for caller in callers:
        caller.start()
    try:
        yield load
    finally:
        ended.set()
        for caller in callers:
            caller.join()


def follows(backends: Backends, load: Load) -> None:
    """Waits until exactly the registered backends answer: each of them, and for 40 answers in a row no other."""
    wanted = set(backends.addresses)

    def settled(answers: list[str]) -> bool:
        return len(answers) >= 40 and set(answers[-40:]) == wanted

    load.wait_until(settled, f"answers from {sorted(wanted)} alone, last from {load.answers[-10:]}")


def scales(backends: Backends, load: Load, steps: tuple[int, ...] = (1, 3, 1, 0, 2)) -> None:
    """The scenario: no request fails but while nothing is registered. Servers retire when no request reaches them."""
    for step in steps:
        was = len(backends.addresses)
        backends.scale(step)
        if step == 0:
            backends.retire()
            failed = len(load.failures)
            load.wait_until(lambda _: len(load.failures) > failed + 10, "failures while nothing is registered")  # noqa: B023
        else:
            follows(backends, load)
            if was == 0:
                load.failures.clear()  # from before, and until the program had the first instance
            assert load.failures == []
        backends.retire()
    assert load.failures == []

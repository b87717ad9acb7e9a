"""Subscriptions: over a proxy that restarts, and one that answers nonsense."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from nacos_proxy.client.subscription import Subscription
from tests.helpers.live import ProxyProcess

Event = dict[str, Any]
WAIT = 60.0


@contextmanager
def following(
    url: str, *listeners: Callable[[Event], None], service: str = "orders"
) -> Iterator[tuple[Subscription, queue.Queue[Event]]]:
    """A subscription, and what it told."""
    told: queue.Queue[Event] = queue.Queue()
    with httpx.Client(base_url=url, trust_env=False) as http:
        subscription = Subscription(http, {"service": service}, [*listeners, told.put], 0.2)
        subscription.start()
        try:
            yield subscription, told
        finally:
            subscription.stop()
            subscription.join()
    assert f"events {service}" not in [thread.name for thread in threading.enumerate()]


def register(url: str, service: str, ip: str) -> None:
    body = {"ip": ip, "port": 80}
    httpx.post(f"{url}/api/v1/services/{service}/instances", json=body, trust_env=False).raise_for_status()


def ips(event: Event) -> list[str]:
    return [host["ip"] for host in event["hosts"]]


def test_subscription_delivers_a_snapshot_then_changes(running: ProxyProcess) -> None:
    register(running.url, "followed", "10.0.0.1")
    with following(running.url, service="followed") as (_, told):
        first = told.get(timeout=WAIT)
        assert (first["event"], ips(first)) == ("snapshot", ["10.0.0.1"])
        register(running.url, "followed", "10.0.0.2")
        change = told.get(timeout=WAIT)
        assert (change["event"], change["source"], ips(change)) == ("change", "write", ["10.0.0.1", "10.0.0.2"])
        assert [host["ip"] for host in change["added"]] == ["10.0.0.2"]


def test_subscription_survives_a_restart_of_the_proxy() -> None:
    with ProxyProcess() as proxy:
        register(proxy.url, "orders", "10.0.0.1")
        with following(proxy.url) as (_, told):
            assert ips(told.get(timeout=WAIT)) == ["10.0.0.1"]
            proxy.kill()
            proxy.start()
            register(proxy.url, "orders", "10.0.0.3")
            seen = told.get(timeout=WAIT)
            while "10.0.0.3" not in ips(seen):
                seen = told.get(timeout=WAIT)


def test_subscription_calls_the_other_listeners_if_one_fails(
    running: ProxyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(event: Event) -> None:
        raise RuntimeError("broken listener")

    with following(running.url, fails, service="listened") as (_, told):
        assert told.get(timeout=WAIT)["event"] == "snapshot"
        register(running.url, "listened", "10.0.0.1")
        assert told.get(timeout=WAIT)["event"] == "change"
    assert "a listener for listened failed" in caplog.text


class Scripted(ThreadingHTTPServer):
    """A proxy that answers each request for events with the next of these bodies, status 200 unless a number."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *answers: bytes | int) -> None:
        self.answers = list(answers)
        self.last_ids: list[str | None] = []
        self.hanging = threading.Event()
        self.connected = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[Scripted]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.hanging.set()
            self.shutdown()
            self.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        assert isinstance(self.server, Scripted)
        server = self.server
        server.last_ids.append(self.headers.get("last-event-id"))
        answer = server.answers.pop(0) if server.answers else b""
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if isinstance(answer, bytes):
            self.wfile.write(answer)
        self.wfile.flush()
        server.connected.set()
        if not server.answers and not isinstance(answer, int):
            server.hanging.wait()


def event(number: int, kind: str = "change") -> bytes:
    return b'event: %s\nid: e-%d\ndata: {"hosts": [{"ip": "10.0.0.%d"}]}\n\n' % (kind.encode(), number, number)


def test_subscription_resumes_after_the_last_id_for_every_kind_of_failure() -> None:
    answers = (
        event(1, "snapshot"),
        503,
        event(2) + b"event: change\nid: e-3\ndata: {no json\n\n",
        b": a comment\n\nretry: 10\n\n",
        event(4),
    )
    with Scripted(*answers).running() as server, following(server.url) as (_, told):
        assert [ips(told.get(timeout=WAIT)) for _ in range(3)] == [["10.0.0.1"], ["10.0.0.2"], ["10.0.0.4"]]
        assert server.last_ids == [None, "e-1", "e-1", "e-3", "e-3"]


class Pauses(threading.Event):
    """Says how long it was waited for, and waits for no time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        if len(self.waited) == self._most:
            self.set()
        return self.is_set()


def delays(count: int, *answers: bytes | int, max_delay: float = 60.0) -> list[float]:
    """How long a subscription waits before each new attempt."""
    paused = Pauses(count)
    with Scripted(*answers).running() as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        subscription = Subscription(http, {"service": "orders"}, [], max_delay, paused)
        subscription.start()
        subscription.join()
    return paused.waited


def test_subscription_reconnects_after_the_retry_of_the_server() -> None:
    assert delays(1, b"retry: 2000\n\n" + event(1), 503) == [2.0]
    assert delays(1, b"retry: 2000\n\n" + event(1) + b"retry: 6500\n\n", 503) == [6.5]
    assert delays(1, event(1), 503) == [0.1]
    assert delays(1, b"retry: 0\n\n", 503) == [0.1]
    assert delays(1, b"retry: 3600000\n\n", 503, max_delay=7.0) == [7.0]


def test_subscription_backs_off_and_starts_over_after_a_success() -> None:
    assert delays(5, 503, 503, 503, b"retry: 300\n\n", 503, 503) == [0.1, 0.2, 0.4, 0.3, 0.3]


def test_subscription_ignores_events_about_the_upstream() -> None:
    with Scripted(event(1, "upstream") + event(2)).running() as server, following(server.url) as (_, told):
        assert told.get(timeout=WAIT)["hosts"] == [{"ip": "10.0.0.2"}]
        assert told.empty()


def test_subscription_stop_wakes_a_waiting_thread() -> None:
    with Scripted(b"").running() as server, following(server.url) as (subscription, told):
        server.connected.wait(WAIT)
        subscription.stop()
        subscription.join()
        assert told.empty()


def test_subscription_stop_ends_at_once_if_nothing_answers() -> None:
    with following("http://127.0.0.1:1") as (_, told):
        pass
    assert told.empty()

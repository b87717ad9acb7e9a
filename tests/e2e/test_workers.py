"""`workers`: several processes answer on one port, and a client cannot tell which."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.helpers.live import ProxyProcess

LIST = "/nacos/v1/ns/instance/list"
INSTANCE = "/nacos/v1/ns/instance"


def connection(proxy: ProxyProcess) -> httpx.Client:
    """A new connection, which any of the processes may get."""
    return httpx.Client(base_url=proxy.url, trust_env=False, timeout=60)


def status(proxy: ProxyProcess) -> dict[str, Any]:
    with connection(proxy) as http:
        return http.get("/status").json()["workers"]


def wait_until_joined(proxy: ProxyProcess, number: int, *, without: int = 0) -> dict[str, Any]:
    """Until so many are there, and not the process `without`. A connection that a dying one has taken breaks."""
    found: dict[str, Any] = {}
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            found = status(proxy)
            if found["joined"] == number == len(found["pids"]) and without not in found["pids"]:
                return found
        time.sleep(0.1)  # noqa: TID251 - processes start, on the wall's clock
    raise AssertionError(found)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[ProxyProcess]:
    with ProxyProcess("--workers", "3", state_dir=tmp_path) as process:
        wait_until_joined(process, 2)
        yield process


def test_a_write_through_one_process_shows_in_the_next_read_of_any(proxy: ProxyProcess) -> None:
    for number in range(60):
        with connection(proxy) as writer, connection(proxy) as one, connection(proxy) as other:
            query = {"serviceName": "orders", "ip": f"10.0.0.{number}", "port": "80", "ephemeral": "false"}
            assert writer.post(INSTANCE, params=query).text == "ok"
            for reader in (one, other, writer):
                for _ in range(3):  # the third one comes from the fast path
                    hosts = reader.get(LIST, params={"serviceName": "orders"}).json()["hosts"]
                    assert len(hosts) == number + 1


def test_events_reach_readers_of_every_process_with_the_same_ids(proxy: ProxyProcess) -> None:
    streams, ids = [connection(proxy) for _ in range(8)], set()
    opened = [stream.stream("GET", "/api/v1/events", params={"service": "orders"}) for stream in streams]
    replies = [one.__enter__() for one in opened]
    lines = [reply.iter_lines() for reply in replies]
    try:
        for some in lines:
            assert any(line.startswith("data:") for line in some)
        with connection(proxy) as writer:
            writer.post(INSTANCE, params={"serviceName": "orders", "ip": "10.0.0.1", "port": "80"})
        for some in lines:
            ids.add(next(line for line in some if line.startswith("id:")))
        assert len(ids) == 1
    finally:
        for one, stream in zip(opened, streams, strict=True):
            one.__exit__(None, None, None)
            stream.close()


def test_a_killed_worker_comes_back_and_meanwhile_the_others_answer(proxy: ProxyProcess) -> None:
    before = status(proxy)["pids"]
    os.kill(before[0], signal.SIGKILL)
    after = wait_until_joined(proxy, 2, without=before[0])
    assert before[1] in after["pids"]
    assert "is started again" in proxy.log
    with connection(proxy) as http:
        assert http.get("/readyz").status_code == 200


def test_workers_are_given_their_settings_where_nobody_can_look(tmp_path: Path) -> None:
    """By a pair of sockets: not as arguments, and in the environment stands no more than this process was given."""
    (tmp_path / "tokens").write_text("read:token-of-the-file\n")
    (tmp_path / "password").write_text("password-of-the-file")
    arguments = ("--workers", "2", "--tokens-file", str(tmp_path / "tokens"), "--upstream", "http://127.0.0.1:1")
    account = ("--username", "app", "--password-file", str(tmp_path / "password"), "--push", "off")
    with ProxyProcess(*arguments, *account, state_dir=tmp_path / "state") as proxy:
        (worker,) = psutil.Process(proxy.pid).children()
        shown = " ".join([*worker.cmdline(), *worker.environ().values()])
        assert "token-of-the-file" not in shown and "password-of-the-file" not in shown
        assert worker.environ().keys() <= psutil.Process(proxy.pid).environ().keys()
        assert all(part.isdigit() for part in worker.cmdline()[3:])


def test_a_stop_ends_every_process(proxy: ProxyProcess) -> None:
    pids = status(proxy)["pids"]
    assert proxy.terminate() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_with_the_process_that_asks_the_upstream(proxy: ProxyProcess) -> None:
    pids = status(proxy)["pids"]
    proxy.kill()
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)  # noqa: TID251 - processes end, on the wall's clock
    raise AssertionError(pids)

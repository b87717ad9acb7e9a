"""The real process starts without an upstream; its state file is whole, broken, or not writable."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sqlite3
import threading
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from nacos_proxy.model.calls import Fetch
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.runtime import SystemClock
from tests.helpers.faces import facing
from tests.helpers.live import ProxyProcess

CLOCK = SystemClock()
PLAIN = ("--push", "off", "--no-udp-push")
STATE = "state.sqlite3"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, method: str = "GET") -> Answer:
    request = urllib.request.Request(url, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
        return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())


async def in_thread(proxy: ProxyProcess, target: str, method: str = "GET") -> Answer:
    """Runs `ask` in a thread, because the upstream runs in the test's own event loop."""
    return await asyncio.to_thread(ask, proxy.url + target, method)


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait, condition, what)


def rows(directory: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{directory / STATE}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM service").fetchone()[0])
    except sqlite3.Error:
        return 0


LIST = "/nacos/v1/ns/instance/list?serviceName=orders"


async def save_state(directory: Path) -> int:
    """Lets a proxy save one service of two instances, and stops it; returns the port of the upstream."""
    async with facing("v1+v2") as server:
        proxy = ProxyProcess("--upstream", server.url, *PLAIN, state_dir=directory)
        await asyncio.to_thread(proxy.start)
        try:
            for ip in ("10.0.0.1", "10.0.0.2"):
                target = f"/nacos/v1/ns/instance?serviceName=orders&ip={ip}&port=80&metadata=%7B%22zone%22%3A%22a%22%7D"
                assert (await in_thread(proxy, target, "POST")).body == b"ok"
            assert len((await in_thread(proxy, LIST)).json["hosts"]) == 2
        finally:
            await asyncio.to_thread(proxy.close)
        return int(server.url.rpartition(":")[2])


async def test_cold_start_without_the_upstream_serves_the_saved_state_as_stale(tmp_path: Path) -> None:
    port = await save_state(tmp_path)
    with ProxyProcess("--upstream", f"http://127.0.0.1:{port}", *PLAIN, state_dir=tmp_path) as proxy:
        first = ask(proxy.url + LIST)
        hosts = first.json["hosts"]
        assert [host["ip"] for host in hosts] == ["10.0.0.1", "10.0.0.2"]
        assert hosts[0]["metadata"] == {"zone": "a"}
        assert "hit" in first.headers["cache-status"] and "detail=disk" in first.headers["cache-status"]
        assert int(first.headers["age"]) >= 0
        assert ask(proxy.url + "/api/v1/services/orders").json["stale"] is True
        await until(lambda: b"degraded" in ask(proxy.url + "/readyz").body, "/readyz is degraded")
        ready = ask(proxy.url + "/readyz")
        assert ready.json["reasons"][0].startswith("upstream: ")
        assert 'nacos_proxy_services{state="stale"} 1.0' in ask(proxy.url + "/metrics").body.decode()
        beat = ask(proxy.url + "/nacos/v1/ns/instance/beat?serviceName=orders&ip=10.0.0.1&port=80", "PUT")
        assert beat.headers["nacos-proxy-answer"] == "local", "registrations are remembered too"
        assert beat.json["code"] == 10200


async def test_cold_start_replaces_the_saved_state_by_the_upstream_state(tmp_path: Path) -> None:
    await save_state(tmp_path)
    async with facing("v1+v2") as server:
        proxy = ProxyProcess("--upstream", server.url, *PLAIN, state_dir=tmp_path)
        await asyncio.to_thread(proxy.start)
        try:
            target = "/nacos/v1/ns/instance?serviceName=orders&ip=10.0.0.3&port=80"
            assert (await in_thread(proxy, target, "POST")).body == b"ok"
            for ip in ("10.0.0.1", "10.0.0.2"):
                beat = f"/nacos/v1/ns/instance/beat?serviceName=orders&ip={ip}&port=80"
                answer = await in_thread(proxy, beat, "PUT")
                assert answer.json["code"] == 10200
                assert answer.headers["nacos-proxy-answer"] == "healed", "the upstream is another one and knew nothing"
            shown = (await in_thread(proxy, LIST)).json["hosts"]
            assert sorted(host["ip"] for host in shown) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
            assert len((await server.registry.send(Fetch(ServiceKey.of("orders")))).instances) == 3
        finally:
            await asyncio.to_thread(proxy.close)


async def test_cold_start_sets_a_broken_state_file_aside(tmp_path: Path) -> None:
    port = await save_state(tmp_path)
    broken = b"SQLite format 3\0" + bytes(range(256)) * 64
    (tmp_path / STATE).write_bytes(broken)
    for suffix in ("-wal", "-shm"):
        (tmp_path / (STATE + suffix)).unlink(missing_ok=True)
    with ProxyProcess("--upstream", f"http://127.0.0.1:{port}", *PLAIN, state_dir=tmp_path) as proxy:
        assert ask(proxy.url + "/healthz").status == 200
        assert "set aside as" in proxy.log
        aside = [path for path in tmp_path.iterdir() if "corrupt" in path.name]
        assert [path.read_bytes() for path in aside] == [broken]
    assert rows(tmp_path) == 0
    with closing(sqlite3.connect(tmp_path / STATE)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_full_disk_is_survived_and_logged_once(tmp_path: Path) -> None:
    with ProxyProcess("--upstream", "embedded", *PLAIN, state_dir=tmp_path) as proxy:
        register(proxy, 1)
        wait(lambda: rows(tmp_path) == 1, "the first batch is written")
        before = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (4096, before[1]))  # from now on no file may grow
        register(proxy, 2)
        wait(lambda: b"disk: " in ask(proxy.url + "/readyz").body, "/readyz says so")
        assert ask(proxy.url + "/readyz").status == 200
        for number in range(3, 30):
            register(proxy, number)
        assert len(ask(proxy.url + LIST + "-29").json["hosts"]) == 1
        assert "nacos_proxy_disk_failing 1.0" in ask(proxy.url + "/metrics").body.decode()
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, before)
        wait(lambda: b"disk: " not in ask(proxy.url + "/readyz").body, "it is written again")
        wait(lambda: rows(tmp_path) == 29, "all of it")
        assert len(re.findall("the state cannot be written", proxy.log)) == 1
        assert len(re.findall("the state is written again", proxy.log)) == 1
        assert "Traceback" not in proxy.log


def register(proxy: ProxyProcess, number: int) -> None:
    target = f"/nacos/v1/ns/instance?serviceName=orders-{number}&ip=10.0.0.1&port=80"
    assert ask(proxy.url + target, "POST").body == b"ok"
    assert len(ask(f"{proxy.url}{LIST}-{number}").json["hosts"]) == 1


def wait(condition: Callable[[], bool], what: str) -> None:
    end, pause = CLOCK.now() + 60, threading.Event()
    while not condition():
        assert CLOCK.now() < end, f"this never came: {what}"
        pause.wait(0.05)


def test_cold_start_reports_a_state_directory_in_use(tmp_path: Path) -> None:
    with ProxyProcess("--upstream", "embedded", *PLAIN, state_dir=tmp_path) as proxy:
        second = ProxyProcess("--upstream", "embedded", *PLAIN, state_dir=tmp_path)
        try:
            second.start()
        except RuntimeError:
            pass
        else:
            raise AssertionError("a second proxy started on the same state")
        finally:
            second.close()
        assert f"in use by another nacos-proxy (process {proxy.pid})" in second.log

"""The ASGI app, and what a start and a reload refuse."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from nacos_proxy import __version__
from nacos_proxy.app.components import build
from nacos_proxy.app.failures import CannotStart
from nacos_proxy.app.listening import beyond_loopback, check_dns_exposure, check_exposure, listen
from nacos_proxy.app.server import App, banner, reload_safely, run, uvicorn_config
from nacos_proxy.app.settings import Settings, load
from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.nacos.registry import NacosRegistry
from nacos_proxy.wire.http import HttpReply
from tests.helpers.app import PATIENCE, heard, running, serving
from tests.helpers.clock import FakeClock
from tests.helpers.live import ProxyProcess

PLAIN: dict[str, Any] = {"disk": False, "udp_push": False, "push": "off"}
LIST = "/nacos/v1/ns/instance/list?serviceName=a"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "proxy.example"])
def test_check_exposure_requires_a_token_or_insecure(host: str) -> None:
    with pytest.raises(CannotStart, match="--insecure"):
        check_exposure(Settings(**PLAIN, host=host))
    check_exposure(Settings(**PLAIN, host=host, insecure=True))
    check_exposure(Settings(**PLAIN, host=host, tokens="read:12345678"))


def test_check_exposure_keeps_agent_checks_on_this_host() -> None:
    """They have no token that could be asked for."""
    check_exposure(Settings(**PLAIN, agent_check="127.0.0.1:8841"))
    with pytest.raises(CannotStart, match=r"agent_check = 0\.0\.0\.0:8841 .*--insecure"):
        check_exposure(Settings(**PLAIN, agent_check="0.0.0.0:8841", tokens="read:12345678"))
    check_exposure(Settings(**PLAIN, agent_check="0.0.0.0:8841", insecure=True))


def test_check_dns_exposure_requires_networks_or_insecure() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        with pytest.raises(CannotStart, match="dns_allow"):
            check_dns_exposure(Settings(**PLAIN, tokens="read:12345678"), beyond_loopback([everywhere]))
        check_dns_exposure(Settings(**PLAIN, dns_allow="10.0.0.0/8"), beyond_loopback([everywhere]))
        check_dns_exposure(Settings(**PLAIN, insecure=True), beyond_loopback([everywhere]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind(("127.0.0.1", 0))
        check_dns_exposure(Settings(**PLAIN), beyond_loopback([here]))


async def test_app_serves_dns_with_the_services_of_the_proxy() -> None:
    async with serving(dns="127.0.0.1:0") as served:
        await served.http.post("/api/v1/services/orders/instances", json={"ip": "10.0.0.1", "port": 80})
        assert served.app.components.dns is not None
        (address,) = served.app.components.dns.addresses
        query = dns.message.make_query("orders.nacos.", "A")
        answer = await dns.asyncquery.udp(query, "127.0.0.1", port=int(address.rpartition(":")[2]), timeout=PATIENCE)
        assert [str(rdata) for rdata in answer.answer[0]] == ["10.0.0.1"]
        status = (await served.http.get("/status")).json()["dns"]
        assert (status["state"], status["addresses"], status["answers"]) == ("ok", [address], {"NOERROR": 1})
        metrics = (await served.http.get("/metrics")).text
        assert 'nacos_proxy_dns_answers_total{code="NOERROR"} 1.0' in metrics
        assert "nacos_proxy_dns_up 1.0" in metrics


def test_run_names_a_state_directory_that_it_cannot_make() -> None:
    loaded = load({"port": 0, "state_dir": "/proc/none", "grpc": False}, None, {})
    with pytest.raises(CannotStart, match="state_dir /proc/none cannot be used: No such file"):
        run(loaded, listen(loaded.settings))


def test_run_refuses_an_invalid_upstream_and_frees_the_port() -> None:
    flags = {"disk": False, "port": 0, "upstream": "ftp://x", "push": "off", "udp_push": False}
    with pytest.raises(CannotStart, match="neither http nor https"):
        loaded = load(flags, None, {})
        run(loaded, listen(loaded.settings))


@pytest.mark.parametrize("fast", [True, False])
def test_uvicorn_config_keeps_connections_alive_between_two_heartbeats_and_lists(fast: bool) -> None:
    """A client that beats every 5 s on a connection that ends after 5 s finds it broken again and again."""
    app = App(build(Settings(**PLAIN, fast_path=fast), FakeClock()))
    assert uvicorn_config(app, app.components.settings).timeout_keep_alive >= 2 * 10


async def test_app_reload_applies_tokens_to_prepared_answers_too(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:first-token\n")
    async with serving(tokens_file=tokens) as proxy:
        old = {"Authorization": "Bearer first-token"}
        for _ in range(4):
            assert (await proxy.http.get(LIST, headers=old)).status_code == 200
        tokens.write_text("read:other-token\n")
        proxy.app.reload(Settings(**PLAIN, tokens_file=tokens))
        assert (await proxy.http.get(LIST, headers=old)).status_code == 403
        assert (await proxy.http.get(LIST, headers={"Authorization": "Bearer other-token"})).status_code == 200


async def test_app_reload_reads_the_service_files_again(tmp_path: Path) -> None:
    async with serving(services_dir=tmp_path) as proxy:
        (tmp_path / "a.toml").write_text('service = "orders"\naddress = "127.0.0.1:1"\n')
        proxy.app.reload(proxy.components.settings)
        while not (await proxy.http.get("/api/v1/services/orders")).json()["hosts"]:
            pass


def test_reload_safely_keeps_the_tokens_if_all_would_vanish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:first-token\n")
    loaded = load({**PLAIN, "tokens_file": str(tokens)}, None, {})
    app = App(build(loaded.settings, FakeClock()))
    tokens.write_text("# none\n")
    reload_safely(app, loaded, [])
    assert [token.secret for token in app.guard.policy.tokens] == ["first-token"]
    assert "not reloaded" in caplog.text


async def test_uvicorn_config_ignores_forwarded_addresses() -> None:
    async with serving(subscribers_per_client=1) as proxy:
        async with proxy.http.stream("GET", "/api/v1/events?service=a", headers={"X-Forwarded-For": "10.0.0.1"}) as one:
            assert one.status_code == 200
            other = await proxy.http.get("/api/v1/events?service=a", headers={"X-Forwarded-For": "10.0.0.2"})
            assert other.status_code == 429


def test_banner_names_version_upstream_and_state(tmp_path: Path) -> None:
    alone = banner(Settings(state_dir=tmp_path), tmp_path / "nacos-proxy").splitlines()
    assert alone[0] == f"nacos-proxy {__version__}"
    assert alone[1].startswith("upstream: embedded registry, for development") and "--upstream" in alone[1]
    assert alone[2] == f"state: {tmp_path}/nacos-proxy", "where it is, which the settings may not say"
    given = Settings(upstream=("http://app:hush@10.0.0.1:8848", "http://10.0.0.2:8848/nacos"), disk=False)
    assert banner(given, None).splitlines()[1:] == [
        "upstream: http://10.0.0.1:8848, http://10.0.0.2:8848",
        "state: not kept (disk = false)",
    ]
    named = Settings(upstream=(), endpoint="http://names/list?token=hush")
    assert banner(named, tmp_path).splitlines()[1] == "upstream: the servers that http://names lists"


def test_run_serves_without_grpc_if_its_port_is_taken_and_says_so(running_proxy: ProxyProcess) -> None:
    taken = f"127.0.0.1:{running_proxy.port} is in use by another nacos-proxy or another program"
    why = f"{taken}; choose another grpc_port"
    with ProxyProcess("--grpc-port", str(running_proxy.port)) as proxy:
        proxy.wait_for(re.compile(r"gRPC for Nacos SDKs: off \(.* in use by"))
        assert f"no gRPC for Nacos SDKs: {why}" in proxy.log
        shown = httpx.get(f"{proxy.url}/status").json()["grpc"]
        assert (shown["state"], shown["reason"]) == ("off", why)


def test_run_serves_grpc_on_the_http_port_plus_1000(running_proxy: ProxyProcess) -> None:
    port = running_proxy.port + 1000
    running_proxy.wait_for(re.compile(f"gRPC for Nacos SDKs: 127.0.0.1:{port}"))
    assert httpx.get(f"{running_proxy.url}/status").json()["grpc"]["port"] == port
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"This is the port for Nacos over gRPC" in client.recv(1000)


def test_run_without_grpc_does_not_mention_it() -> None:
    with ProxyProcess("--no-grpc") as proxy:
        shown = httpx.get(f"{proxy.url}/status").json()["grpc"]
        assert (shown["state"], shown["reason"]) == ("off", "grpc = false")
        assert "gRPC" not in proxy.log


@pytest.fixture
def running_proxy() -> Iterator[ProxyProcess]:
    with ProxyProcess() as proxy:
        yield proxy


async def test_app_reload_ends_streams_and_polls_of_a_revoked_token_only(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:first-token\nadmin:other-token\n")
    first, other = ({"Authorization": f"Bearer {name}-token"} for name in ("first", "other"))
    async with serving(tokens_file=tokens) as proxy:
        service = "/api/v1/services/a"
        index = (await proxy.http.get(f"{service}/watch", headers=first)).headers["nacos-proxy-index"]
        target = f"{service}/watch?wait=60s&index={index}"
        polls = [spawn(proxy.http.get(target, headers=headers), name="long poll") for headers in (first, other)]
        async with (
            proxy.http.stream("GET", "/api/v1/events?service=a", headers=first) as one,
            proxy.http.stream("GET", "/api/v1/events?service=a", headers=other) as two,
        ):
            ended, kept = one.aiter_text(), two.aiter_text()
            await heard(ended, "event: snapshot")
            await heard(kept, "event: snapshot")
            while len(proxy.app.guard.open_streams) < 4:
                await asyncio.sleep(0)
            tokens.write_text("read:other-token\n")
            proxy.app.reload(Settings(**PLAIN, tokens_file=tokens))
            assert "retry:" in "".join([chunk async for chunk in ended])
            assert ((await polls[0]).status_code, polls[1].done()) == (401, False)
            tokens.write_text("admin:other-token\n")
            proxy.app.reload(Settings(**PLAIN, tokens_file=tokens))
            await proxy.http.post(f"{service}/instances", json={"ip": "10.0.0.1", "port": 80}, headers=other)
            await heard(kept, "10.0.0.1")
        assert "10.0.0.1" in (await polls[1]).text
        while len(proxy.app.guard.open_streams):
            await asyncio.sleep(0)


async def test_app_reload_with_a_first_token_ends_streams_without_one(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    async with serving() as proxy, proxy.http.stream("GET", "/api/v1/events?service=a") as stream:
        chunks = stream.aiter_text()
        await heard(chunks, "event: snapshot")
        tokens.write_text("read:first-token\n")
        proxy.app.reload(Settings(**PLAIN, tokens_file=tokens))
        assert "retry:" in "".join([chunk async for chunk in chunks])


async def read_all(http: httpx.AsyncClient, target: str, headers: dict[str, str], begun: asyncio.Event) -> str:
    """The status of an answer, `cut` where it was cut short; sets `begun` with its first bytes."""
    async with http.stream("POST", target, data={"a": "b"}, headers=headers) as reply:
        try:
            async for _ in reply.aiter_raw():
                begun.set()
        except httpx.RemoteProtocolError:
            return "cut"
        return str(reply.status_code)


@pytest.mark.parametrize("begun", [False, True])
async def test_app_reload_ends_a_forwarded_long_poll_of_a_revoked_token(tmp_path: Path, begun: bool) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("admin:first-token\n")
    asked, gone = asyncio.Event(), asyncio.Event()

    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].endswith("/listener"):
            return await send_reply(send, HttpReply(200, None, b"{}"))
        await receive()
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
        else:
            asked.set()
        assert (await receive())["type"] == "http.disconnect"
        gone.set()

    config = uvicorn.Config(upstream, lifespan="off", log_config=None, ws="none")
    async with running(config) as url, serving(upstream=url, tokens_file=tokens) as proxy:
        target, headers = "/nacos/v1/cs/configs/listener", {"Authorization": "Bearer first-token"}
        whole = spawn(read_all(proxy.http, target, headers, asked if begun else asyncio.Event()), name="long poll")
        await asked.wait()
        tokens.write_text("admin:other-token\n")
        proxy.app.reload(Settings(**PLAIN, tokens_file=tokens))
        assert await whole == ("cut" if begun else "401")
        await gone.wait()
        assert len(proxy.app.guard.open_streams) == 0


def test_app_has_tunnels_and_fuzzy_watch_only_where_the_upstream_has_them() -> None:
    embedded = App(build(Settings(**PLAIN), FakeClock()))
    assert embedded.grpc.fuzzy is None
    app = App(build(Settings(**PLAIN, upstream="one:8848,two:8848"), FakeClock()))
    assert isinstance(app.components.registry, NacosRegistry) and app.grpc.fuzzy is not None
    one, two = (server.capabilities for server in app.components.registry.servers.all)
    dialer = app.grpc.fuzzy.dialer
    for versions, fuzzy, absent in (
        (("", ""), False, ""),
        (("1.4.8", "1.4.8"), False, "Nacos 1.4.8 has none"),
        (("1.4.8", "2.5.1"), False, ""),
        (("3.0.3", ""), False, ""),
        (("3.0.3", "3.2.0"), True, ""),
    ):
        one.version, two.version = versions
        assert (app.grpc.fuzzy.offered(), dialer.absent()) == (fuzzy, absent)

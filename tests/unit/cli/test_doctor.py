"""The findings of the doctor, and its advice."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from nacos_proxy.app.failures import BadSettings
from nacos_proxy.app.settings import Settings
from nacos_proxy.cli.doctor import (
    Finding,
    clock_finding,
    dns_finding,
    grpc_finding,
    port_finding,
    push_finding,
    service_file_findings,
    state_finding,
    upstream_findings,
)
from nacos_proxy.runtime import SystemClock
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from tests.helpers.app import serving
from tests.helpers.faces import facing
from tests.helpers.live import GRPC_OFFSET, ProxyProcess, free_port
from tests.unit.conftest import Run


async def found(**settings: object) -> dict[str, Finding]:
    given = Settings(**{"push": "off", **settings})  # type: ignore[arg-type]
    return {finding.about: finding for finding in await upstream_findings(given, SystemClock())}


async def test_upstream_findings_of_a_healthy_server_are_all_ok() -> None:
    async with serving() as nacos:
        findings = await found(upstream=nacos.url)
    assert {about: finding.ok for about, finding in findings.items()} == dict.fromkeys(
        ("upstream", "version", "login", "push port", "clock"), True
    )
    assert findings["upstream"].seen.startswith(f"{nacos.url}/nacos answers in ")
    assert findings["version"].seen == "2.5.1, APIs: v1"
    assert findings["login"].seen == "services can be read without an account (0 in DEFAULT_GROUP)"


async def test_upstream_findings_of_a_proxy_say_that_its_events_are_followed() -> None:
    async with serving() as upper:
        assert f"write proxy+{upper.url}" in (await found(upstream=upper.url))["version"].todo
        findings = await found(upstream=f"proxy+{upper.url}")
    assert "push port" not in findings and findings["version"].todo == ""
    assert (findings["proxy"].ok, findings["proxy"].seen) == (
        True,
        "it is a nacos-proxy, whose event stream is followed",
    )


async def test_upstream_findings_name_a_nacos_that_is_called_a_proxy() -> None:
    async with facing("v1+v2") as nacos:
        finding = (await found(upstream=f"proxy+{nacos.url}"))["proxy"]
        assert (await found(upstream=nacos.url))["version"].todo == ""
    assert (finding.ok, finding.todo) == (False, "write the address of Nacos itself without 'proxy+'")


async def test_upstream_findings_of_a_proxy_that_wants_a_token_name_the_setting(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("12345678")
    token.chmod(0o600)
    async with serving(tokens="admin:12345678") as upper:
        without = await found(upstream=f"proxy+{upper.url}")
        findings = await found(upstream=f"proxy+{upper.url}", upstream_token_file=token)
    for about in ("login", "proxy"):
        assert (without[about].ok, findings[about].ok) == (False, True)
        assert without[about].todo.startswith("set upstream_token_file to ")


async def test_upstream_findings_of_an_unreachable_proxy_name_its_port() -> None:
    (finding,) = (await found(upstream=f"proxy+http://127.0.0.1:{free_port()}")).values()
    assert "(8840)" in finding.todo


async def test_upstream_findings_reach_a_proxy_on_a_unix_socket(tmp_path: Path) -> None:
    (finding,) = (await found(upstream=f"proxy+unix://{tmp_path / 'upper.sock'}")).values()
    assert f"no connection to {tmp_path / 'upper.sock'}: No such file" in finding.seen


async def test_upstream_findings_of_an_unreachable_server_say_what_to_check() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    (finding,) = (await found(upstream=url)).values()
    assert (finding.about, finding.ok) == ("upstream", False)
    assert finding.seen == f"{url}/nacos: no connection: Connection refused"
    assert "check that Nacos is running there" in finding.todo


async def test_upstream_findings_cover_every_server() -> None:
    given = Settings(upstream=f"http://127.0.0.1:{free_port()},http://127.0.0.1:{free_port()}", push="off")
    assert [finding.ok for finding in await upstream_findings(given, SystemClock())] == [False, False]


async def test_upstream_findings_name_an_invalid_address() -> None:
    (finding,) = (await found(upstream="ftp://127.0.0.1")).values()
    assert (finding.ok, finding.todo) == (False, "write it like http://10.0.0.1:8848")


async def test_upstream_findings_name_an_unreachable_address_server() -> None:
    url = f"http://127.0.0.1:{free_port()}/nacos/serverlist"
    (finding,) = (await found(endpoint=url)).values()
    assert (finding.about, finding.ok, url in finding.seen) == ("endpoint", False, True)


async def test_login_finding_of_a_refused_read_says_what_to_set() -> None:
    async with serving(tokens="admin:12345678") as nacos:
        findings = await found(upstream=nacos.url)
    assert (findings["login"].ok, findings["login"].todo) == (False, "set username and password_file")


@pytest.mark.parametrize("face", ["v1+v2", "3.0", "v3"])
@pytest.mark.parametrize(
    ("account", "todo"),
    [
        ({}, "set username and password_file"),
        ({"username": "nacos", "password": "wrong"}, "check the password and rights of 'nacos'"),
        ({"username": "nacos", "password": "right"}, ""),
    ],
    ids=["nobody", "wrong password", "right"],
)
async def test_login_finding_logs_in_to_every_kind_of_server(face: str, account: dict[str, str], todo: str) -> None:
    async with facing(face, passwords={"nacos": "right"}) as nacos:
        findings = await found(upstream=nacos.url, **account)
    assert (findings["login"].todo, findings["login"].ok) == (todo, not todo)


@pytest.mark.parametrize("face", ["v1+v2", "3.0", "v3"])
async def test_login_finding_tells_a_wrong_context_path_from_a_missing_right(face: str) -> None:
    async with facing(face) as nacos:
        findings = await found(upstream=f"{nacos.url}/elsewhere")
    assert "login" not in findings
    assert (findings["API"].ok, findings["API"].todo.startswith("set upstream_context_path")) == (False, True)
    assert findings["API"].seen.startswith("there is no Nacos API at /elsewhere")


async def test_upstream_findings_raise_bad_settings_for_a_missing_password_file(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="password_file"):
        await found(upstream="http://127.0.0.1:1", username="app", password_file=tmp_path / "none")


async def test_push_finding_of_a_closed_port_fails_only_if_push_is_on() -> None:
    clock, url = SystemClock(), f"127.0.0.1:{free_port(and_offset=GRPC_OFFSET)}"
    account = NacosRegistry(NacosPolicy(ServersPolicy((url,))), clock).own_client
    relaxed, forced = await push_finding(account, "auto", clock), await push_finding(account, "on", clock)
    assert (relaxed.ok, forced.ok) == (True, False)
    assert "takes no gRPC client" in relaxed.seen and "changes are found by polling" in relaxed.seen
    assert "changes are found by UDP push" in (await push_finding(account, "auto", clock, "1.4.8")).seen
    assert forced.todo == "open it, or set push_port"


async def test_push_finding_without_a_port_for_it() -> None:
    account = NacosRegistry(NacosPolicy(ServersPolicy(("127.0.0.1:65000",))), SystemClock()).own_client
    assert "none above port 64535" in (await push_finding(account, "auto", SystemClock())).seen


async def test_push_finding_of_a_server() -> None:
    async with facing("v1+v2", grpc=True) as server:
        findings = await found(upstream=server.url, push="on")
    assert findings["push port"].ok and "takes gRPC clients" in findings["push port"].seen


def test_clock_finding_fails_if_the_clocks_differ(running: ProxyProcess) -> None:
    clock = SystemClock()
    assert clock_finding(running.url, clock.wall).ok
    apart = clock_finding(running.url, lambda: clock.wall() + 60)
    assert (apart.ok, apart.todo) == (False, "synchronise the clocks (NTP)")
    nobody = clock_finding(f"http://127.0.0.1:{free_port()}", clock.wall)
    assert (nobody.ok, nobody.seen.startswith("could not be compared")) == (True, True)


def test_state_finding_of_a_writable_a_used_and_a_wrong_directory(tmp_path: Path, running: ProxyProcess) -> None:
    assert state_finding(Settings(state_dir=tmp_path)).seen == f"{tmp_path} can be written"
    assert state_finding(Settings(disk=False)).seen == "not kept (disk = false)"
    used = state_finding(Settings(state_dir=running.state_dir))
    assert (used.ok, "in use by another nacos-proxy" in used.seen) == (True, True)
    (tmp_path / "file").write_text("")
    wrong = state_finding(Settings(state_dir=tmp_path / "file" / "state"))
    assert (wrong.ok, wrong.todo) == (False, "choose another --state-dir, or change its permissions")


def test_state_finding_of_a_damaged_file(tmp_path: Path) -> None:
    state_finding(Settings(state_dir=tmp_path))
    (file,) = tmp_path.glob("*.sqlite3")
    file.write_bytes(b"nonsense" * 1000)
    damaged = state_finding(Settings(state_dir=tmp_path))
    assert (damaged.ok, damaged.seen) == (False, "the state file was damaged")


def test_service_file_findings_name_each_broken_file(tmp_path: Path) -> None:
    assert service_file_findings(Settings()) == []
    here = Settings(services_dir=tmp_path / "services.d")
    (missing,) = service_file_findings(here)
    assert (missing.ok, missing.seen) == (False, f"{tmp_path}/services.d cannot be read: No such file or directory")
    (tmp_path / "services.d").mkdir()
    (tmp_path / "services.d" / "a.toml").write_text('service = "a"\naddress = "127.0.0.1:1"\n')
    good = Finding("service files", True, f"1 in {tmp_path}/services.d declare 1 instances")
    assert service_file_findings(here) == [good]
    (tmp_path / "services.d" / "b.toml").write_text('service = "a"\n')
    todo = "correct it, then reload the proxy (SIGHUP)"
    broken = Finding("service file", False, "b.toml: address is required.", todo)
    assert service_file_findings(here) == [good, broken]


def test_port_finding_of_a_free_port_a_proxy_and_another_program(running: ProxyProcess, tmp_path: Path) -> None:
    assert port_finding(Settings(port=free_port())).seen.endswith("is free")
    assert port_finding(Settings(port=running.port)).seen.startswith("a nacos-proxy listens on")
    assert port_finding(Settings(uds=tmp_path / "none.sock")).seen.endswith("is free")
    (tmp_path / "file").write_text("")
    taken = port_finding(Settings(uds=tmp_path / "file"))
    assert (taken.ok, taken.todo) == (False, "choose another --port or --uds")


async def test_grpc_finding_of_a_free_port_a_proxy_and_another_program(running: ProxyProcess) -> None:
    clock = SystemClock()
    free = await grpc_finding(Settings(grpc_port=free_port()), clock)
    assert (free.ok, free.seen.endswith("is free")) == (True, True)
    served = await grpc_finding(Settings(port=running.port), clock)
    assert (served.ok, served.seen) == (True, f"127.0.0.1:{running.port + 1000} takes Nacos SDKs")
    taken = await grpc_finding(Settings(grpc_port=running.port), clock)
    assert (taken.ok, taken.todo) == (False, "choose another grpc_port, and the same in your SDKs")
    for settings, ok in ((Settings(grpc=False), True), (Settings(port=65000), False)):
        assert (await grpc_finding(settings, clock)).ok is ok


def test_examine_prints_a_line_for_each_finding(cli: Run, tmp_path: Path) -> None:
    alone = cli("doctor", "--state-dir", str(tmp_path), "--port", str(free_port()))
    assert alone.exit_code == 1, "the embedded registry is for development"
    said = ["FAIL upstream", "     -> set upstream to your Nacos, such as http", "ok   state", "ok   own port"]
    said.append("ok   own gRPC port")
    assert [line.split(":")[0] for line in alone.output.splitlines()] == said
    ill = cli("doctor", "--upstream", "http://127.0.0.1:1", "--state-dir", str(tmp_path))
    assert ill.exit_code == 1
    assert "FAIL upstream: http://127.0.0.1:1/nacos: " in ill.output
    assert "     -> check that Nacos is running there" in ill.output
    assert cli("doctor", "--port", "x").exit_code == 2


async def test_dns_finding_of_a_free_port_a_proxy_and_another_program() -> None:
    settings = Settings(dns_zone="nacos")
    assert dns_finding("127.0.0.1", 0, settings).ok
    async with serving(dns="127.0.0.1:0") as served:
        assert served.components.dns is not None
        port = int(served.components.dns.addresses[0].rpartition(":")[2])
        finding = await asyncio.to_thread(dns_finding, "127.0.0.1", port, settings)
        assert (finding.ok, finding.seen) == (True, f"127.0.0.1:{port} serves the zone nacos")
    with socket.create_server(("127.0.0.1", 0)) as other:
        finding = await asyncio.to_thread(dns_finding, *other.getsockname(), settings)
        assert (finding.ok, "in use" in finding.seen) == (False, True)

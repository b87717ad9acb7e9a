"""`nacos-proxy doctor`: one line for each thing that must be right, `ok` or what to do about it."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from proxy.calls import ListServices, ServerState
from proxy.disk import StateFile, StateLocked
from proxy.errors import ProxyError, Refused
from proxy.registry.nacos import NacosRegistry
from proxy.rest_client import Problem, RestClient, Unreached
from proxy.runtime import SystemClock
from proxy.server import nacos_policy
from proxy.settings import Loaded, Settings, load

CLOCK_TOLERANCE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Finding:
    """A line: what was looked at, whether it is right, what was seen, and what to do."""

    about: str
    ok: bool
    seen: str
    todo: str = ""


@click.command()
@click.option("--upstream", help="Nacos servers, in place of the settings'.")
@click.option("--username", help="Account, in place of the settings'.")
@click.option("--password-file", help="File with its password.")
@click.option("--state-dir", help="Directory of the state.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings.")
def doctor(file: Path | None, **flags: Any) -> None:
    """Check the upstream, the login, the push port, the clock, the state directory and our own port."""
    loaded = load({name: value for name, value in flags.items() if value is not None}, file)
    findings = [*asyncio.run(upstream_findings(loaded.settings)), state_finding(loaded.settings), port_finding(loaded)]
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
        click.echo(f"{mark} {finding.about}: {finding.seen}")
        if finding.todo:
            click.echo(f"     -> {finding.todo}")
    raise SystemExit(0 if all(finding.ok for finding in findings) else 1)


async def upstream_findings(s: Settings) -> list[Finding]:
    """What can be said of the upstream; nothing to say of the embedded registry."""
    if s.upstream == ("embedded",):
        return [Finding("upstream", True, "embedded, no server is asked")]
    clock = SystemClock()
    registry = NacosRegistry(nacos_policy(s), clock)
    findings: list[Finding] = []
    try:
        begun = clock.now()
        state = await registry.send(ServerState())
        taken = 1000 * (clock.now() - begun)
        findings.append(Finding("upstream", True, f"{', '.join(s.upstream)} answers in {taken:.1f} ms"))
        findings.append(Finding("version", True, str(state.get("version") or "not told")))
        findings.append(await _rights(registry, s))
    except Refused as error:
        findings.append(await _rights(registry, s))
        findings.append(Finding("version", True, f"not told ({error.status})"))
    except ProxyError as error:
        todo = "is Nacos running there, is the port its HTTP port (8848), does a firewall stand between?"
        findings.append(Finding("upstream", False, str(error), todo))
        return findings
    finally:
        await registry.close()
    for server in registry.servers.all:
        findings.append(await _in_thread(lambda server=server: push_finding(server.origin, s)))
        findings.append(await _in_thread(lambda server=server: clock_finding(server.origin, clock.wall())))
    return findings


async def _rights(registry: NacosRegistry, s: Settings) -> Finding:
    try:
        page = await registry.send(ListServices("public", "DEFAULT_GROUP", 1, 1))
    except Refused as error:
        todo = (
            "set username and password_file" if not s.username else f"check the password and rights of {s.username!r}"
        )
        return Finding("login", False, f"reading services was refused: {error}", todo)
    except ProxyError as error:
        return Finding("login", False, str(error), "see the line above")
    account = f"as {s.username!r}" if s.username else "without an account"
    return Finding("login", True, f"services can be read {account} ({page.count} in DEFAULT_GROUP)")


async def _in_thread(look: Callable[[], Finding]) -> Finding:
    return await asyncio.to_thread(look)


def _host_port(origin: str) -> tuple[str, int]:
    host, _, port = origin.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


def push_finding(origin: str, s: Settings) -> Finding:
    """Whether the gRPC port answers; without it the poller keeps time, which is no failure."""
    host, port = _host_port(origin)
    port = s.push_port or port + 1000
    try:
        socket.create_connection((host, port), 2).close()
    except OSError as error:
        return Finding("push port", True, f"{host}:{port} is closed ({error}); changes are found by polling")
    try:
        import nacos_sdk_rust_binding_py  # noqa: F401 # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        return Finding("push port", True, f"{host}:{port} is open; pip install 'nacos-discovery-proxy[push]' to use it")
    return Finding("push port", True, f"{host}:{port} is open")


def clock_finding(origin: str, wall: float) -> Finding:
    """The Date header of the server against our clock."""
    host, port = _host_port(origin)
    raw: socket.socket = socket.create_connection((host, port), 2)
    try:
        if origin.startswith("https"):
            raw = ssl._create_unverified_context().wrap_socket(raw)  # pyright: ignore[reportPrivateUsage]
        raw.sendall(f"GET /nacos/ HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        head = raw.recv(4096).decode("latin-1")
    except OSError as error:
        return Finding("clock", True, f"could not be compared: {error}")
    finally:
        raw.close()
    date = next((line[5:].strip() for line in head.split("\r\n") if line.lower().startswith("date:")), "")
    if not date:
        return Finding("clock", True, "the server tells no time")
    apart = abs(email.utils.parsedate_to_datetime(date).timestamp() - wall)
    ok = apart <= CLOCK_TOLERANCE
    return Finding("clock", ok, f"{apart:.0f} s apart from {host}", "" if ok else "synchronise the clocks (NTP)")


def state_finding(s: Settings) -> Finding:
    """Whether the state directory can be written and is nobody else's."""
    if not s.disk:
        return Finding("state", True, "not kept (disk = false)")
    try:
        StateFile(s.state_dir).close()
    except StateLocked as error:
        return Finding("state", True, f"{error}")
    except OSError as error:
        return Finding(
            "state", False, f"{s.state_dir}: {error.strerror}", "choose another --state-dir, or mend its rights"
        )
    return Finding("state", True, f"{s.state_dir} can be written")


def port_finding(loaded: Loaded) -> Finding:
    """Our own port: free, or a proxy of ours already there."""
    s = loaded.settings
    where = f"{s.host}:{s.port}"
    try:
        status = RestClient(f"http://{where}").call("GET", "/healthz").json()
    except Unreached:
        return Finding("own port", True, f"{where} is free, or nothing there answers")
    except (Problem, ValueError):
        return Finding("own port", False, f"{where} is taken by another program", "choose another --port")
    known = isinstance(status, dict) and status.get("status") == "ok"
    return Finding("own port", known, f"{where} has a nacos-proxy", "" if known else "choose another --port")

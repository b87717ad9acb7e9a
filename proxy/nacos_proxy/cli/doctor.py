"""`nacos-proxy doctor`: one line for each thing that must be right, `ok` or what to do about it."""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import socket
import ssl
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import click

from nacos_proxy.app.logs import printable
from nacos_proxy.app.policies import nacos_policy
from nacos_proxy.app.settings import Settings
from nacos_proxy.background.state_file import StateFile, StateLocked
from nacos_proxy.cli.rest_client import ApiProblem, RestClient, Unreached
from nacos_proxy.model.calls import ListServices, ServerState
from nacos_proxy.model.errors import ProxyError, Reason, Refused
from nacos_proxy.model.masking import shown_url
from nacos_proxy.runtime import Clock, SystemClock
from nacos_proxy.upstream.grpc.push import available
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry

CLOCK_TOLERANCE = 5.0  # seconds
LOOKS = 5  # calls whose median is the latency
PATIENCE = 2.0  # seconds for a connection of our own


@dataclass(frozen=True, slots=True)
class Finding:
    """A line: what was looked at, whether it is right, what was seen, and what to do."""

    about: str
    ok: bool
    seen: str
    todo: str = ""


def examine(settings: Settings) -> int:
    """Prints what it finds; the exit code. Raises `BadSettings`."""
    clock = SystemClock()
    findings = [*asyncio.run(upstream_findings(settings, clock)), state_finding(settings), port_finding(settings)]
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
        click.echo(f"{mark} {finding.about}: {printable(finding.seen)}")
        if finding.todo:
            click.echo(f"     -> {finding.todo}")
    return 0 if all(finding.ok for finding in findings) else 1


async def upstream_findings(s: Settings, clock: Clock) -> list[Finding]:
    """What can be said of each server; nothing to say of the embedded registry. Raises `BadSettings`."""
    if s.embedded:
        seen = "the embedded registry, for development: no Nacos is behind it"
        return [Finding("upstream", False, seen, "name your Nacos: upstream = http://10.0.0.1:8848")]
    policy = nacos_policy(s)
    try:
        registry = NacosRegistry(policy, clock)
    except ValueError as error:
        return [Finding("upstream", False, str(error), "write it like http://10.0.0.1:8848")]
    try:
        if s.endpoint:  # the list comes with the first call, however that ends
            await registry.send(ServerState())
    except ProxyError as error:
        if not registry.servers.all:
            said = f"{shown_url(s.endpoint)} names no server: {error}"
            return [Finding("endpoint", False, said, "open it with curl")]
    finally:
        await registry.close()
    findings: list[Finding] = []
    for server in registry.servers.all:
        findings += await server_findings(server.url, policy, s, clock)
    return findings


async def server_findings(url: str, policy: NacosPolicy, s: Settings, clock: Clock) -> list[Finding]:
    """One server: reachable, version, rights, push port, clock."""
    registry = NacosRegistry(replace(policy, servers=replace(policy.servers, urls=(url,), endpoint="")), clock)
    try:
        version, times = "", list[float]()
        for _ in range(LOOKS):
            begun = clock.now()
            try:
                version = str((await registry.send(ServerState())).get("version") or "")
            except Refused:
                version = ""
            times.append(1000 * (clock.now() - begun))
        findings = [Finding("upstream", True, f"{url} answers in {statistics.median(times):.1f} ms")]
        rights = await _rights(registry, url, s)
        spoken = ", ".join(registry.servers.all[0].capabilities.dialects) or "no dialect"
        findings += [Finding("version", True, f"{version or 'not told'}, answers in {spoken}"), rights]
    except ProxyError as error:
        todo = "is Nacos running there, is that its HTTP port (8848), does a firewall stand between?"
        why = str(error).removeprefix(f"{registry.servers.all[0].origin}: ")
        return [Finding("upstream", False, f"{url}: {why}", todo)]
    finally:
        await registry.close()
    host, port = _place(url)
    findings.append(await asyncio.to_thread(push_finding, host, s.push_port or port + 1000, s.push, version))
    findings.append(await asyncio.to_thread(clock_finding, url, clock.wall))
    return findings


async def _rights(registry: NacosRegistry, url: str, s: Settings) -> Finding:
    try:
        page = await registry.send(ListServices("public", "DEFAULT_GROUP", 1, 1))
    except Refused as error:
        if error.reason is Reason.GONE:
            todo = "set upstream_context_path to where its API is, or write it behind the port"
            return Finding("API", False, f"there is no Nacos below {urlsplit(url).path or '/'}: {error}", todo)
        todo = (
            "set username and password_file" if not s.username else f"check the password and rights of {s.username!r}"
        )
        return Finding("login", False, f"reading services was refused: {error}", todo)
    except ProxyError as error:
        return Finding("login", False, str(error), "see the line above")
    account = f"as {s.username!r}" if s.username else "without an account"
    return Finding("login", True, f"services can be read {account} ({page.count} in DEFAULT_GROUP)")


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def push_finding(host: str, port: int, wanted: str, version: str = "") -> Finding:
    """Whether the gRPC port answers; without it the poller keeps time, which is no failure unless push is `on`."""
    if wanted == "off":
        return Finding("push port", True, "not used (push = off); changes are found by polling")
    forced = wanted == "on"
    by_udp = version.startswith("1.") or (version.startswith(("2.", "3.")) and not available())
    instead = "changes are told by UDP, else found by polling" if by_udp else "changes are found by polling"
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        seen = f"{host}:{port} is closed ({error.strerror or error}); {instead}"
        return Finding("push port", not forced, seen, "open it, or set push_port" if forced else "")
    if not available():
        seen, todo = (
            f"{host}:{port} is open, the extra is not installed; {instead}",
            "pip install 'nacos-proxy[push]'",
        )
        return Finding("push port", not forced, seen, todo)
    return Finding("push port", True, f"{host}:{port} is open")


def clock_finding(url: str, wall: Callable[[], float]) -> Finding:
    """The Date header of the server against our clock; `wall` tells the seconds since 1970."""
    host, port = _place(url)
    connection: http.client.HTTPConnection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    if url.startswith("https"):  # only its clock is looked at
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
    try:
        connection.request("GET", urlsplit(url).path or "/")
        date = connection.getresponse().headers.get("date", "")
        told = email.utils.parsedate_to_datetime(date).timestamp() if date else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Finding("clock", True, f"could not be compared: {error}")
    finally:
        connection.close()
    if told is None:
        return Finding("clock", True, f"{host} tells no time")
    apart = max(0.0, abs(told - wall()) - 1.0)  # the header has whole seconds
    ok = apart <= CLOCK_TOLERANCE
    return Finding("clock", ok, f"{apart:.0f} s apart from {host}", "" if ok else "synchronise the clocks (NTP)")


def state_finding(s: Settings) -> Finding:
    """Whether the state directory can be written and is nobody else's."""
    if not s.disk:
        return Finding("state", True, "not kept (disk = false)")
    try:
        state = StateFile(s.state_dir)
    except StateLocked as error:
        return Finding("state", True, str(error).partition(";")[0])
    except OSError as error:
        todo = "choose another --state-dir, or mend its rights"
        return Finding("state", False, f"{s.state_dir}: {error.strerror or error}", todo)
    state.close()
    if state.trouble:
        return Finding(
            "state", False, f"{s.state_dir}: {state.trouble}", "is the disk full, does another program hold it?"
        )
    if state.set_aside is not None:
        return Finding("state", False, "the state file was damaged", f"it was set aside as {state.set_aside}")
    return Finding("state", True, f"{s.state_dir} can be written")


def port_finding(s: Settings) -> Finding:
    """Our own place: free, or a proxy of ours already there."""
    where = f"unix:{s.uds}" if s.uds else f"{f'[{s.host}]' if ':' in s.host else s.host}:{s.port}"
    if s.uds is None and _can_bind(s.host, s.port):
        return Finding("own port", True, f"{where} is free")
    if s.uds is not None and not s.uds.exists():
        return Finding("own port", True, f"{where} is free")
    scheme = "" if s.uds else "https://" if s.tls_cert else "http://"
    taken = Finding("own port", False, f"{where} is taken by another program", "choose another --port or --uds")
    try:
        with RestClient(scheme + where) as client:
            status = client.json("GET", "/healthz")
    except (Unreached, ApiProblem):
        return taken
    return Finding("own port", True, f"{where} has a nacos-proxy") if status.get("status") == "ok" else taken


def _can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True

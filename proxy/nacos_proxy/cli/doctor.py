"""`nacos-proxy doctor`: runs checks and prints a line for each, with what to do if it failed."""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import ssl
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import click
import dns.exception
import dns.message
import dns.name
import dns.query

from nacos_proxy import __version__
from nacos_proxy.app.failures import CannotStart
from nacos_proxy.app.listening import MAX_PORT, dns_sockets
from nacos_proxy.app.policies import nacos_policy
from nacos_proxy.app.setting_types import parse_dns_address
from nacos_proxy.app.settings import Settings
from nacos_proxy.background.service_files import read_files
from nacos_proxy.background.state_file import StateFile, StateLocked
from nacos_proxy.cli.client_options import can_bind
from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.rest_client import RestClient
from nacos_proxy.model.calls import Fetch, ListServices, ServerState
from nacos_proxy.model.errors import Malformed, ProxyError, Reason, Refused, UpstreamError, is_denied
from nacos_proxy.model.masking import shown_url
from nacos_proxy.model.printable import printable
from nacos_proxy.model.services import DEFAULT_GROUP, DEFAULT_NAMESPACE, ServiceKey
from nacos_proxy.runtime import Clock, SystemClock
from nacos_proxy.upstream.grpc.connection import GrpcConnection
from nacos_proxy.upstream.grpc.push import Account, open_session
from nacos_proxy.upstream.grpc.session import Session, SessionPolicy, Target
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.wire.nacos.grpc.payload import GRPC_OFFSET
from nacos_proxy.wire.nacos.shapes import read_json
from nacos_proxy.wire.service_files import BadFile

CLOCK_TOLERANCE = 5.0  # seconds
LATENCY_CALLS = 5  # the median is shown
CONNECT_TIMEOUT = 2.0  # seconds
TOKEN_TODO = "set upstream_token_file to a file with a token of the upper proxy that has the right to read"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and what to do if it failed."""

    about: str
    ok: bool
    seen: str
    todo: str = ""


def examine(settings: Settings) -> int:
    """Runs all checks and prints the findings; returns the exit code. Raises `BadSettings`."""
    clock = SystemClock()
    findings = [*asyncio.run(upstream_findings(settings, clock)), state_finding(settings), port_finding(settings)]
    findings.append(asyncio.run(grpc_finding(settings, clock)))
    findings += [dns_finding(host, port, settings) for host, port in map(parse_dns_address, settings.dns)]
    findings += service_file_findings(settings)
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
        click.echo(f"{mark} {finding.about}: {printable(finding.seen)}")
        if finding.todo:
            click.echo(f"     -> {finding.todo}")
    return 0 if all(finding.ok for finding in findings) else 1


async def upstream_findings(s: Settings, clock: Clock) -> list[Finding]:
    """Checks each server of the upstream. Raises `BadSettings`."""
    if s.embedded:
        seen = "the embedded registry, which is for development and uses no Nacos"
        return [Finding("upstream", False, seen, "set upstream to your Nacos, such as http://10.0.0.1:8848")]
    policy = nacos_policy(s)
    try:
        registry = NacosRegistry(policy, clock)
    except ValueError as error:
        return [Finding("upstream", False, str(error), "write it like http://10.0.0.1:8848")]
    try:
        if s.endpoint:  # the first call fetches the list of servers, even if the call fails
            await registry.send(ServerState())
    except ProxyError as error:
        if not registry.servers.all:
            seen = f"{shown_url(s.endpoint)} lists no server: {error}"
            return [Finding("endpoint", False, seen, "request this URL with curl")]
    finally:
        await registry.close()
    findings: list[Finding] = []
    for server in registry.servers.all:
        findings += await server_findings(server.url, policy, s, clock)
    return findings


async def server_findings(url: str, policy: NacosPolicy, s: Settings, clock: Clock) -> list[Finding]:
    """Checks one server: connection, version, login, push port, clock."""
    registry = NacosRegistry(replace(policy, servers=replace(policy.servers, urls=(url,), endpoint="")), clock)
    try:
        version, times = "", list[float]()
        for _ in range(LATENCY_CALLS):
            begun = clock.now()
            try:
                version = str((await registry.send(ServerState())).get("version") or "")
            except Refused:
                version = ""
            times.append(1000 * (clock.now() - begun))
        findings = [Finding("upstream", True, f"{url} answers in {statistics.median(times):.1f} ms")]
        login = await _login_finding(registry, url, s)
        dialects = ", ".join(registry.servers.all[0].capabilities.dialects) or "none"
        hint = "" if policy.of_proxy else await _proxy_hint(registry)
        findings += [Finding("version", True, f"{version or 'unknown'}, APIs: {dialects}", hint), login]
        if policy.of_proxy:
            findings.append(await _upper_proxy_finding(registry))
        else:
            findings.append(await push_finding(registry.own_client, s.push, clock, version))
    except ProxyError as error:
        what = "the upper proxy is running there, that this is its HTTP port (8840)"
        if not policy.of_proxy:
            what = "Nacos is running there, that this is its HTTP port (8848)"
        todo = f"check that {what}, and that no firewall blocks it"
        reason = str(error).removeprefix(f"{registry.servers.all[0].origin}: ")
        return [Finding("upstream", False, f"{url}: {reason}", todo)]
    finally:
        await registry.close()
    if not policy.uds:  # else it is this host
        findings.append(await asyncio.to_thread(clock_finding, url, clock.wall))
    return findings


async def _upper_proxy_finding(registry: NacosRegistry) -> Finding:
    """Whether the upstream is a nacos-proxy that others can follow."""
    try:
        await registry.send(Fetch(ServiceKey(DEFAULT_NAMESPACE, DEFAULT_GROUP, "nacos-proxy-doctor")))
    except ProxyError as error:
        todo = TOKEN_TODO if is_denied(error) else "write the address of Nacos itself without 'proxy+'"
        return Finding("proxy", False, str(error), todo)
    return Finding("proxy", True, "it is a nacos-proxy, whose event stream is followed")


async def _proxy_hint(registry: NacosRegistry) -> str:
    """What to do if the server is a nacos-proxy, although the setting does not say so."""
    origin = registry.servers.all[0].origin
    try:
        answer = read_json((await registry.http.get(f"{origin}/healthz")).body)
    except (ProxyError, Malformed):
        return ""
    return f"this is a nacos-proxy: write proxy+{origin} to follow its events" if answer == {"status": "ok"} else ""


async def _login_finding(registry: NacosRegistry, url: str, s: Settings) -> Finding:
    try:
        page = await registry.send(ListServices("public", "DEFAULT_GROUP", 1, 1))
    except Refused as error:
        if error.reason is Reason.GONE:
            todo = "set upstream_context_path to the path of its API, or append the path to the URL"
            return Finding("API", False, f"there is no Nacos API at {urlsplit(url).path or '/'}: {error}", todo)
        todo = f"check the password and rights of {s.username!r}" if s.username else "set username and password_file"
        if s.of_proxy and is_denied(error):
            todo = TOKEN_TODO
        return Finding("login", False, f"reading services was refused: {error}", todo)
    except ProxyError as error:
        return Finding("login", False, str(error), "see the result for the upstream")
    account = f"as {s.username!r}" if s.username else "without an account"
    return Finding("login", True, f"services can be read {account} ({page.count} in DEFAULT_GROUP)")


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


async def push_finding(account: Account, wanted: str, clock: Clock, version: str = "") -> Finding:
    """Whether the gRPC port takes a client. If not, polling finds changes, so this fails only if `wanted` is `on`."""
    if wanted == "off":
        return Finding("push port", True, "not used (push = off); changes are found by polling")
    forced = wanted == "on"
    instead = f"changes are found by {'UDP push and polling' if version.startswith('1.') else 'polling'}"
    todo = "open it, or set push_port" if forced else ""
    target = next(iter(account.grpc_targets()), None)
    if target is None:
        return Finding("push port", not forced, f"there is none above port {MAX_PORT - GRPC_OFFSET}; {instead}", todo)
    try:
        session = await open_session(target, account, _as_client(), clock, lambda _: None)
    except (OSError, UpstreamError) as error:
        return Finding("push port", not forced, f"{target} takes no gRPC client ({error}); {instead}", todo)
    session.end("checked")
    return Finding("push port", True, f"{target} takes gRPC clients")


def _as_client() -> SessionPolicy:
    return SessionPolicy(f"nacos-proxy/{__version__}", connect=CONNECT_TIMEOUT)


def clock_finding(url: str, wall: Callable[[], float]) -> Finding:
    """Compares the Date header of the server with our clock. `wall` returns the seconds since 1970."""
    host, port = _host_and_port(url)
    connection: http.client.HTTPConnection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)
    if url.startswith("https"):  # nothing secret is sent, so the certificate does not matter
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT, context=context)
    try:
        connection.request("GET", urlsplit(url).path or "/")
        date = connection.getresponse().headers.get("date", "")
        theirs = email.utils.parsedate_to_datetime(date).timestamp() if date else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Finding("clock", True, f"could not be compared: {error}")
    finally:
        connection.close()
    if theirs is None:
        return Finding("clock", True, f"{host} sends no Date header")
    apart = max(0.0, abs(theirs - wall()) - 1.0)  # the header has whole seconds
    ok = apart <= CLOCK_TOLERANCE
    return Finding("clock", ok, f"{apart:.0f} s apart from {host}", "" if ok else "synchronise the clocks (NTP)")


def state_finding(s: Settings) -> Finding:
    """Whether the state directory can be written and is not in use."""
    if not s.disk:
        return Finding("state", True, "not kept (disk = false)")
    try:
        state = StateFile(s.state_dir)
    except StateLocked as error:
        return Finding("state", True, str(error).partition(";")[0])
    except OSError as error:
        todo = "choose another --state-dir, or change its permissions"
        return Finding("state", False, f"{s.state_dir}: {error.strerror or error}", todo)
    state.close()
    if state.trouble:
        todo = "check that the disk is not full and that no other program uses the directory"
        return Finding("state", False, f"{s.state_dir}: {state.trouble}", todo)
    if state.set_aside is not None:
        return Finding(
            "state", False, "the state file was damaged", f"nothing to do: it was renamed to {state.set_aside}"
        )
    return Finding("state", True, f"{s.state_dir} can be written")


def service_file_findings(s: Settings) -> list[Finding]:
    """One finding for each service file that is wrong, and one for all others."""
    if s.services_dir is None:
        return []
    todo = "correct it, then reload the proxy (SIGHUP)"
    try:
        files = read_files(s.services_dir)
    except BadFile as error:
        return [Finding("service files", False, f"{s.services_dir} {error}", todo)]
    good = [found for found in files.values() if not isinstance(found, str)]
    seen = f"{len(good)} in {s.services_dir} declare {sum(map(len, good))} instances"
    broken = [(name, found) for name, found in files.items() if isinstance(found, str)]
    return [
        *([Finding("service files", True, seen)] if good or not broken else []),
        *(Finding("service file", False, f"{name}: {error}", todo) for name, error in broken),
    ]


def port_finding(s: Settings) -> Finding:
    """Whether the address to listen on is free, or a nacos-proxy already listens there."""
    where = f"unix:{s.uds}" if s.uds else f"{f'[{s.host}]' if ':' in s.host else s.host}:{s.port}"
    if not s.uds.exists() if s.uds else can_bind(s.host, s.port):
        return Finding("own port", True, f"{where} is free")
    scheme = "" if s.uds else "https://" if s.tls_cert else "http://"
    in_use = Finding("own port", False, f"{where} is in use by another program", "choose another --port or --uds")
    try:
        with RestClient(scheme + where) as client:
            status = client.json("GET", "/healthz")
    except (Unreached, ApiProblem):
        return in_use
    return Finding("own port", True, f"a nacos-proxy listens on {where}") if status.get("status") == "ok" else in_use


async def grpc_finding(s: Settings, clock: Clock) -> Finding:
    """Whether the gRPC port is free, or a server for Nacos SDKs listens there."""
    port = s.grpc_port or (0 if s.uds else s.port + GRPC_OFFSET)
    if not s.grpc:
        return Finding("own gRPC port", True, "not used (grpc = false)")
    if not 0 < port <= MAX_PORT:
        return Finding("own gRPC port", False, "there is none, so SDKs with gRPC cannot connect", "set grpc_port")
    where = f"{f'[{s.host}]' if ':' in s.host else s.host}:{port}"
    if can_bind(s.host, port):
        return Finding("own gRPC port", True, f"{where} is free")
    context = None
    if s.tls_cert is not None:  # nothing secret is sent, so the certificate does not matter
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    target = Target({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(s.host, s.host), port, tls=context)
    try:
        session = await Session.open(GrpcConnection.connect, target, _as_client(), clock, lambda _: None)
    except (OSError, UpstreamError):
        todo = "choose another grpc_port, and the same in your SDKs"
        return Finding("own gRPC port", False, f"{where} is in use by another program", todo)
    session.end("checked")
    return Finding("own gRPC port", True, f"{where} takes Nacos SDKs")


def dns_finding(host: str, port: int, s: Settings) -> Finding:
    """Whether an address for DNS is free, or a nacos-proxy serves the zone there."""
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        for listener in (listener for pair in dns_sockets([(host, port)]) for listener in pair):
            listener.close()
        return Finding("own DNS", True, f"{where} is free")
    except CannotStart as error:
        why = str(error)
    query = dns.message.make_query(dns.name.from_text(s.dns_zone[0]), "SOA")
    try:
        answered = bool(dns.query.udp(query, host, port=port, timeout=CONNECT_TIMEOUT).answer)
    except (OSError, dns.exception.DNSException):
        answered = False
    if answered:
        return Finding("own DNS", True, f"{where} serves the zone {s.dns_zone[0]}")
    return Finding("own DNS", False, why, "choose another address for dns; port 53 needs a socket unit of systemd")

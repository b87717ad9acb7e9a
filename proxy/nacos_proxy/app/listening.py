"""All sockets on which the proxy listens, their TLS, and who may reach them.

`serve` opens them before it imports the rest of the proxy: clients that connect meanwhile wait, and are not refused.
So this imports little.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from nacos_proxy.app.failures import BadSettings, CannotStart
from nacos_proxy.app.setting_types import parse_dns_address, split_address
from nacos_proxy.app.settings import Settings
from nacos_proxy.model.masking import shown_origin
from nacos_proxy.wire.nacos.grpc.payload import GRPC_OFFSET

SYSTEMD_FIRST = 3  # sd_listen_fds(3): the first file descriptor that systemd passes
BACKLOG = 2048
UDP_BUFFER = 1 << 20  # bytes of queries that may wait; the system may allow less
MAX_PORT = 65535
NACOS_PORT = 8848  # of an upstream without one


DnsPair: TypeAlias = tuple[socket.socket, socket.socket]
"""The UDP and the TCP socket of one address for DNS."""


def sockets(host: str, port: int, uds: Path | None = None, *, reuse_port: bool = False) -> list[socket.socket]:
    """The listening sockets that systemd passes; else one on `uds`, or on host and port (0: any free port).

    Raises `CannotStart`.
    """
    if inherited := _inherited():
        return _streams(inherited)
    return [_listen_unix(uds) if uds is not None else _listen_tcp(host, port, reuse_port=reuse_port)]


def grpc_socket(host: str, port: int, listeners: Sequence[socket.socket], *, reuse_port: bool = False) -> socket.socket:
    """The listening socket for gRPC: one that systemd passes as `grpc`, else on `port` (0: that of HTTP + 1000).

    `host` counts only if no other socket has an address. Raises `CannotStart`.
    """
    if inherited := _inherited("grpc"):
        return _streams(inherited)[0]
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            name: Any = listener.getsockname()
            host, port = str(name[0]), port or int(name[1]) + GRPC_OFFSET
            break
    if not port:
        raise CannotStart("there is no HTTP port to count from; set grpc_port")
    if port > MAX_PORT:
        raise CannotStart(f"{port} is no port; set grpc_port")
    return _listen_tcp(host, port, setting="grpc_port", reuse_port=reuse_port)


def plain_socket(address: str, setting: str) -> socket.socket:
    """A listening TCP socket at `host:port`, which a setting names. Raises `CannotStart`."""
    return _listen_tcp(*split_address(address), setting=setting)


def dns_sockets(addresses: Iterable[tuple[str, int]]) -> list[DnsPair]:
    """The pairs of sockets that systemd passes as `dns`; else one for each address (port 0: a free one).

    Raises `CannotStart`.
    """
    by_address: dict[Any, dict[int, socket.socket]] = {}
    for inherited in _inherited("dns"):
        by_address.setdefault(inherited.getsockname()[:2], {})[inherited.type] = inherited
    found: list[DnsPair] = []
    for address, kinds in by_address.items():
        if kinds.keys() != {socket.SOCK_DGRAM, socket.SOCK_STREAM}:
            raise CannotStart(
                f"systemd passes only one socket for DNS on {address}: set ListenStream and ListenDatagram"
            )
        found.append((kinds[socket.SOCK_DGRAM], kinds[socket.SOCK_STREAM]))
    try:
        for address in () if found else addresses:
            found.append(_listen_dns(*address))
    except CannotStart:
        for udp, tcp in found:
            udp.close()
            tcp.close()
        raise
    return found


def _listen_dns(host: str, port: int) -> DnsPair:
    for left in reversed(range(1 if port else 20)):  # a port that is free for TCP need not be so for UDP
        tcp = _listen_tcp(host, port, setting="address for dns")
        udp = socket.socket(tcp.family, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
        try:
            udp.bind(tcp.getsockname())
            return udp, tcp
        except OSError as error:
            udp.close()
            tcp.close()
            if not left:
                where = f"{_bracketed(host)}:{port}"
                raise CannotStart(f"cannot listen on {where} by UDP: {error.strerror or error}") from error
    raise AssertionError


_NAMED = ("grpc", "dns")  # as in FileDescriptorName=


def _inherited(name: str = "") -> list[socket.socket]:
    """The sockets that systemd passes under a name in `_NAMED`; without a name, those for HTTP."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(_inherited_count())
    given = [(n, names[n] if n < len(names) and names[n] in _NAMED else "") for n in numbers]
    return [socket.socket(fileno=SYSTEMD_FIRST + n) for n, given_name in given if given_name == name]


def _streams(inherited: list[socket.socket]) -> list[socket.socket]:
    if any(one.type != socket.SOCK_STREAM for one in inherited):
        for one in inherited:
            one.close()
        raise CannotStart("systemd passes a socket that is not for TCP: use ListenStream in the socket unit")
    return inherited


def _inherited_count() -> int:
    for_us = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(os.environ.get("LISTEN_FDS", "0")) if for_us else 0


def _listen_tcp(host: str, port: int, *, setting: str = "--port", reuse_port: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without IPPROTO_TCP, asyncio would leave Nagle's algorithm on, which delays each answer by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if reuse_port:
            _share_port(listener)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # with SO_REUSEADDR, only a second `listen` fails, not a second `bind`
    except OSError as error:
        listener.close()
        where = f"{_bracketed(host)}:{port}"
        text = f"cannot listen on {where}: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another nacos-proxy or another program; choose another {setting}"
        raise CannotStart(text) from error
    return listener


def _share_port(listener: socket.socket) -> None:
    """The system spreads connections over the processes that listen on the port. Raises `OSError`."""
    option: int | None = getattr(socket, "SO_REUSEPORT", None)
    if option is None:
        raise OSError(errno.ENOPROTOOPT, "this system cannot share a port among processes; unset reuse_port")
    listener.setsockopt(socket.SOL_SOCKET, option, 1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen_unix(path: Path) -> socket.socket:
    exists = os.path.lexists(path)
    if exists and not stat.S_ISSOCK(path.lstat().st_mode):
        raise CannotStart(f"{path} exists and is not a socket; choose another --uds")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if exists:
            _unlink_if_dead(path)
        before = os.umask(0o117)  # not chmod after bind: by then the path may be a symlink to another file
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except (OSError, CannotStart) as error:
        listener.close()
        if isinstance(error, CannotStart):
            raise
        raise CannotStart(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _unlink_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full, so the listener lives
            pass
    raise CannotStart(f"{path} is in use by another nacos-proxy; choose another --uds")


def address_of(listener: socket.socket) -> str:
    """Host and port of a listening TCP socket."""
    name: Any = listener.getsockname()
    return f"{_bracketed(name[0])}:{name[1]}"


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """The URL of a listening socket; `unix:PATH` for a Unix socket."""
    name: Any = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"{'https' if tls else 'http'}://{address_of(listener)}"


def beyond_loopback(listeners: Sequence[socket.socket]) -> list[str]:
    """The addresses that other hosts can reach. Sockets from systemd may differ from the settings."""
    addresses = [listener.getsockname()[0] for listener in listeners if listener.family != socket.AF_UNIX]
    return [address for address in addresses if not ipaddress.ip_address(address).is_loopback]


def unlink_own(listeners: Sequence[socket.socket]) -> None:
    """Removes the Unix sockets that we created. Call it while we listen: later, another proxy may own the path."""
    if _inherited_count():
        return
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            with suppress(OSError):
                os.unlink(listener.getsockname())


def tls_context(
    certificate: Path, key: Path | None, client_ca: Path | None, protocols: Sequence[str] = ()
) -> ssl.SSLContext:
    """The context for serving TLS. With `client_ca`, clients must show a certificate. Raises `CannotStart`.

    `protocols` are offered by ALPN; clients without ALPN are served, too.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = f"{certificate} with {key}" if key else str(certificate)
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            files = str(client_ca)
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # an SSLError is one
        raise CannotStart(f"cannot use the TLS certificate {files}: {error.strerror or error}") from error
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def check_exposure(s: Settings, listeners: Sequence[socket.socket] = ()) -> None:
    """Raises `CannotStart` if other hosts could connect without a token: such clients could redirect traffic."""
    reachable = beyond_loopback(listeners) or ([] if loopback(s) else [s.host])
    if reachable and not s.read_tokens() and not s.insecure:
        raise CannotStart(
            f"{reachable[0]} can be reached from other hosts: set an API token (tokens_file), or allow access without "
            "one (--insecure)"
        )
    if s.agent_check and not is_loopback(split_address(s.agent_check)[0]) and not s.insecure:
        raise CannotStart(
            f"agent_check = {s.agent_check} can be reached from other hosts, which then learn without a token what is "
            "registered: choose an address of this host only, or allow it (--insecure)"
        )


def check_dns_exposure(s: Settings, reachable: Sequence[str]) -> None:
    """Raises `CannotStart` if the operator has not said which hosts may use DNS, which has no tokens.

    `reachable`: the addresses for DNS that other hosts can reach.
    """
    if reachable and not s.dns_allow and not s.insecure:
        raise CannotStart(
            f"dns = {reachable[0]} can be reached from other hosts, and DNS has no API tokens: name the networks that "
            "may ask (dns_allow), or allow all (--insecure)"
        )


def loopback(s: Settings) -> bool:
    """Whether only this host can connect."""
    return s.uds is not None or is_loopback(s.host)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(slots=True)
class Listening:
    """What `listen` opened. `no_grpc`: why there is no socket for gRPC, without which the proxy is still of use."""

    http: Sequence[socket.socket]
    tls: ssl.SSLContext | None = None
    grpc: socket.socket | None = None
    grpc_tls: ssl.SSLContext | None = None
    no_grpc: str = ""
    agent_check: socket.socket | None = None
    dns: Sequence[DnsPair] = ()

    @property
    def reachable(self) -> list[socket.socket]:
        """Those that need an API token if other hosts can reach them."""
        return [*self.http, *([] if self.grpc is None else [self.grpc])]

    def close(self) -> None:
        """For a start that fails. Also removes our Unix sockets."""
        unlink_own(self.http)
        checks = [] if self.agent_check is None else [self.agent_check]
        for listener in (*self.reachable, *checks, *(one for pair in self.dns for one in pair)):
            listener.close()

    def lines(self, s: Settings) -> list[str]:
        """Where the proxy can be reached, for people."""
        urls = [url_of(listener, tls=self.tls is not None) for listener in self.http]
        lines = [f"listening on {url}" for url in urls]
        lines += [f"page: {url}/ui  API: {url}/docs" for url in urls[:1] if not url.startswith("unix:")]
        if s.grpc:
            where = f"off ({self.no_grpc})" if self.grpc is None else address_of(self.grpc)
            lines.append(f"gRPC for Nacos SDKs: {where}")
        if self.agent_check is not None:
            lines.append(f"agent checks of HAProxy: {address_of(self.agent_check)}")
        if self.dns:
            addresses = ", ".join(address_of(udp) for udp, _ in self.dns)
            lines.append(f"DNS for {' and '.join(s.dns_zone)}: {addresses}")
        return lines


def listen(s: Settings) -> Listening:
    """Opens all sockets that the settings ask for. Raises `CannotStart` and `BadSettings`."""
    check_exposure(s)
    tls, grpc_tls = _tls_context(s), _tls_context(s, "h2")
    listeners = sockets(s.host, s.port, s.uds, reuse_port=s.reuse_port)
    found = Listening(listeners, tls, grpc_tls=grpc_tls, no_grpc="" if s.grpc else "grpc = false")
    try:
        if s.grpc:
            try:
                found.grpc = grpc_socket(s.host, s.grpc_port, found.http, reuse_port=s.reuse_port)
            except CannotStart as error:
                found.no_grpc = str(error)
        check_exposure(s, found.reachable)
        if s.agent_check:
            found.agent_check = plain_socket(s.agent_check, "agent_check")
        if s.dns:
            found.dns = dns_sockets(map(parse_dns_address, s.dns))
        check_dns_exposure(s, beyond_loopback([udp for udp, _ in found.dns]))
        _check_upstream(s, found.http)
    except (BadSettings, CannotStart):
        found.close()
        raise
    return found


def _check_upstream(s: Settings, listeners: Sequence[socket.socket]) -> None:
    """Raises `CannotStart` if the proxy would ask itself: it would never have an answer, nor say why."""
    own = {one.getsockname()[1] for one in listeners if one.family != socket.AF_UNIX}
    if s.uds is not None and s.upstream_uds == str(s.uds):
        raise CannotStart(
            f"upstream {s.upstream[0]} is the Unix socket on which this proxy listens: choose another --uds"
        )
    for url in s.upstream_urls:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else NACOS_PORT)
        except ValueError:
            continue  # it is no address, as the upstream's own check will say
        if port in own and (is_loopback(host) or host == s.host):
            raise CannotStart(
                f"upstream {shown_origin(url)} is the address on which this proxy listens: set upstream to your Nacos, "
                "or choose another --port"
            )


def _tls_context(s: Settings, *protocols: str) -> ssl.SSLContext | None:
    return None if s.tls_cert is None else tls_context(s.tls_cert, s.tls_key, s.tls_client_ca, protocols)

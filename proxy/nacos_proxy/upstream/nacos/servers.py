"""The servers of the upstream: which are up, and which a call goes to. Pure: every method gets the time.

    a server is | while                                         | it gets
    ------------+-----------------------------------------------+----------------------------------------------------
    up          | it is reachable, with fewer than              | calls by rendezvous hashing, and those whose key is
                | `MAX_FAILURES` slow or garbled answers in a   | pinned to it (an instance's registration and its
                | row                                           | beats)
    recovering  | it was down less than `RECOVERY` seconds ago  | the same, but reads only if no other server is up
    down        | it has not answered since                     | calls if no server is up, or none is left to try;
                |                                               | probes when `retry_at` has passed

While the server of a key is down, the key is pinned to another. After the recovery it returns to its own server, at a
time that depends on the key, so that not all return at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from cachetools import LRUCache

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import Refused, TooSlow, Unreachable, UpstreamError
from nacos_proxy.model.masking import shown_url
from nacos_proxy.upstream.nacos.capabilities import Capabilities

DEFAULT_PORT = 8848
MAX_SERVERS = 100  # read from an address server's answer
MAX_ATTEMPTS = 3  # servers that one call is sent to
MAX_PINS = 100_000
MAX_FAILURES = 2  # slow or garbled answers in a row that take a server down
IDLE = 10.0  # seconds without a call until one of several servers is probed
RECOVERY = 10.0  # seconds after an outage, while a server may list outdated or unhealthy instances
RETURN_WITHIN = 30.0  # seconds after the recovery; pinned keys return in this time
PROBE_BACKOFF = Backoff(initial=0.5, maximum=15.0)

_HOST = re.compile(r"(?:[0-9A-Za-z_-]+\.)*[0-9A-Za-z_-]+\.?|\[[0-9A-Fa-f:.]+\]")
_CONTEXT = re.compile(r"(?:/(?!\.\.?(?:/|$))[0-9A-Za-z._~-]+)*")


@dataclass(frozen=True, slots=True)
class ServersPolicy:
    """`urls`: `host`, `host:port` or `http(s)://host:port[/context]`; a path in a URL is its context path.

    `endpoint`: the URL of an address server, whose answer names one server a line.
    `slow`: a timeout counts as a failure only if the server has answered nothing for this many seconds.
    """

    urls: tuple[str, ...] = ()
    endpoint: str = ""
    context_path: str = "/nacos"
    slow: float = 5.0


@dataclass(slots=True, eq=False)
class Server:
    """One server, its health and its statistics.

    `failures` counts failures since the last success, `retries` failed probes of an outage. At `retry_at` the next
    probe is due; at `back_at` the last outage ended. `latency` is a moving mean in seconds.
    """

    origin: str
    context: str
    up: bool = True
    failures: int = 0
    retry_at: float = 0.0
    retries: int = 0
    called_at: float = 0.0
    answered_at: float = float("-inf")
    back_at: float = float("-inf")
    probing: bool = False
    error: str = ""
    latency: float = 0.0
    outcomes: dict[str, int] = field(default_factory=lambda: {})
    capabilities: Capabilities = field(default_factory=Capabilities)

    @property
    def url(self) -> str:
        return self.origin + self.context

    def __repr__(self) -> str:
        return f"<Server {self.url} {'up' if self.up else 'down'}>"

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def parse_server(text: str, context_path: str = "/nacos") -> Server:
    """A server from the text of a setting. Raises `ValueError` with a text for users, which has no password."""
    address = text.strip()
    address = address if "://" in address else f"http://{address}"
    shown = shown_url(text.strip())
    if "@" in address:  # the texts below might show a part of a password
        raise ValueError(f"the server {shown!r} may have a port and a context path, and nothing else")
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError(f"{shown!r} is not an address: put an IPv6 address in brackets") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{shown!r} is neither http nor https")
    if parts.query or parts.fragment:
        raise ValueError(f"the server {host!r} may have a port and a context path, and nothing else")
    if parts.netloc.count(":") > 1 and "[" not in parts.netloc:
        raise ValueError(f"{shown!r} is not an address: put an IPv6 address in brackets, as in [::1]:{DEFAULT_PORT}")
    host = f"[{host}]" if ":" in host else host
    if _HOST.fullmatch(host) is None:
        raise ValueError(f"{shown!r} has no valid host name")
    context = parts.path.rstrip("/") or context_path.rstrip("/")
    if _CONTEXT.fullmatch(context) is None:
        raise ValueError(f"{context!r} is not a context path: it must look like /nacos")
    return Server(f"{parts.scheme}://{host}:{_port(parts, shown)}", context)


def _port(parts: SplitResult, shown: str) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return 443 if parts.scheme == "https" else DEFAULT_PORT
    if port == 0:
        raise ValueError(f"the port of {shown!r} is not a number from 1 to 65535")
    return port


def parse_addresses(body: bytes, context_path: str = "/nacos") -> list[Server]:
    """The servers in an address server's answer. Ignores comments, lines without an address and queries.

    The queries are for Nacos's own servers (`?raft_port=7848`).
    """
    found: dict[str, Server] = {}
    for line in body.decode("utf-8-sig", "replace").splitlines()[: 10 * MAX_SERVERS]:
        address = line.partition("#")[0].partition("?")[0].strip()
        if not address or len(found) >= MAX_SERVERS:
            continue
        try:
            server = parse_server(address, context_path)
        except ValueError:
            continue
        found.setdefault(server.url, server)
    return list(found.values())


Listener = Callable[[Server], None]


@dataclass(slots=True)
class _Pin:
    """A key belongs to `home`. `current` gets its calls: another server if `home` failed a call at `since`."""

    home: Server
    current: Server
    since: float


class Servers:
    """`on_up` and `on_down` are called once for each transition of a server, `on_list` for each change of the list."""

    def __init__(self, policy: ServersPolicy) -> None:
        self.policy = policy
        self.on_up: list[Listener] = []
        self.on_down: list[Listener] = []
        self.on_list: list[Callable[[], None]] = []
        self.all: list[Server] = []
        self._pins: LRUCache[Hashable, _Pin] = LRUCache(MAX_PINS)
        self.replace(parse_server(url, policy.context_path) for url in policy.urls)

    def replace(self, servers: Iterable[Server]) -> None:
        """Takes a new list, unless it is empty. Servers that stay keep their state."""
        known = {server.url: server for server in self.all}
        wanted = {server.url: known.get(server.url, server) for server in servers}
        if not wanted:
            return
        self.all = list(wanted.values())
        if wanted.keys() != known.keys():
            for listener in self.on_list:
                listener()

    @property
    def up(self) -> list[Server]:
        return [server for server in self.all if server.up]

    @property
    def have_parameter_check(self) -> bool:
        """Whether all servers are known to have Nacos's parameter check."""
        return bool(self.all) and all(server.capabilities.has_parameter_check for server in self.all)

    def candidates(self, keys: tuple[Hashable, ...], now: float, *, reading: bool = False) -> Iterator[Server]:
        """At most `MAX_ATTEMPTS` servers to try, in order. `keys`: the instance and the service of the call.

        If none is up any more, ends with the server that is to be probed next.
        """
        if len(self.all) < 2:
            yield from self.all
            return
        tried: list[Server] = []
        ordered = self._ordered(keys, now)
        if reading:
            ordered = iter(sorted(ordered, key=lambda server: now < server.back_at + RECOVERY))
        for server in ordered:
            if server.up and server not in tried and len(tried) < MAX_ATTEMPTS:
                tried.append(server)
                yield server
        left = [server for server in self.all if server not in tried]
        if left and not self.up and len(tried) < MAX_ATTEMPTS:
            yield min(left, key=lambda server: server.retry_at)

    def first(self, keys: tuple[Hashable, ...], now: float) -> Server | None:
        """The first of `candidates`, to write to."""
        return self.all[0] if len(self.all) == 1 else next(self.candidates(keys, now), None)

    def _ordered(self, keys: tuple[Hashable, ...], now: float) -> Iterator[Server]:
        for key in keys:
            pin = self._pins.get(key)
            if pin is not None:
                yield from (server for server in self._pinned(key, pin, now) if server.up and server in self.all)
        service = keys[-1] if keys else ""  # rendezvous hashing: all calls about it start at the same server
        yield from sorted(self.up, key=lambda server: _digest(f"{server.url} {service}"), reverse=True)

    def _pinned(self, key: Hashable, pin: _Pin, now: float) -> tuple[Server, ...]:
        if pin.current is pin.home:
            return (pin.home,)
        share = int.from_bytes(_digest(str(key))[:2], "big") / 65536
        due = max(pin.since, pin.home.back_at) + RECOVERY + share * RETURN_WITHIN
        return (pin.home, pin.current) if now >= due else (pin.current,)

    def pin(self, key: Hashable, server: Server, now: float) -> None:
        """Sends calls about `key` to this server while it is up, and again after an outage."""
        if len(self.all) < 2:
            return
        pin = self._pins.get(key)
        home = server if pin is None or pin.home not in self.all else pin.home
        if pin is None or pin.home is not home or pin.current is not server:
            self._pins[key] = _Pin(home, server, now)

    def unpin(self, key: Hashable) -> None:
        self._pins.pop(key, None)

    def succeeded(self, server: Server, now: float, seconds: float | None = None) -> None:
        """Notes an answer, even a refusal. `seconds`: its latency."""
        server.called_at = server.answered_at = now
        server.failures = 0
        server.error = ""
        if seconds is not None:
            server.latency = seconds if server.latency == 0.0 else server.latency * 0.9 + seconds * 0.1
        if not server.up:
            server.up, server.back_at = True, now
            for listener in self.on_up:
                listener(server)

    def failed(self, server: Server, now: float, error: UpstreamError) -> None:
        server.called_at = now
        server.error = str(error)
        if isinstance(error, TooSlow) and now - server.answered_at < self.policy.slow:
            return
        server.failures += 1
        if server.up and (server.failures >= MAX_FAILURES or isinstance(error, Unreachable)):
            server.up = False
            server.retries = 0
            server.retry_at = now + PROBE_BACKOFF.delay(0)
            for listener in self.on_down:
                listener(server)
        elif not server.up and now >= server.retry_at:  # else the call was under way when the server went down
            server.retries += 1
            server.retry_at = now + PROBE_BACKOFF.delay(server.retries)

    def to_probe(self, now: float) -> list[Server]:
        """Servers to probe now: those that are down or idle, if there are several servers."""
        if len(self.all) < 2:
            return []
        due = (s for s in self.all if (now - s.called_at >= IDLE if s.up else s.retry_at <= now))
        return [server for server in due if not server.probing]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def server_failed(error: UpstreamError, *, reading: bool) -> bool:
    """Whether an error means that the server does not work, rather than that it refuses the call.

    Gateways, and servers that are not ready, answer 502 to 504. 500 counts only after a read, because Nacos also
    answers it to bad parameters of writes.
    """
    if isinstance(error, Refused):
        return error.status in (502, 503, 504) or (reading and error.status == 500)
    return True

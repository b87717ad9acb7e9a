"""Which server a call goes to: the list, who is up, which one a service or an instance keeps to. Told the time.

Not for: sending (`http`), what a server speaks (`detect`), when a list is fetched again (`nacos`).

    a server is | while                                       | calls
    ------------+---------------------------------------------+------------------------------------------------------
    up          | no failure, or fewer than `patience` silent | get it by rendezvous hashing, or because they got it
                | or garbled answers in a row                 | before (an instance's registration and its beats)
    in doubt    | for `doubt` seconds after it was down       | as up; lists and other reads only where no other is up
    down        | from a failure until the next success       | when none is up, or none any more; probes as `retry_at`
                |                                             | passes

What is kept to a server that goes down is kept to another one meanwhile. When its own is up again it goes back, not all
at once: some time after the doubt, which is drawn from what it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from cachetools import LRUCache

from nacos_proxy.model.errors import (
    Refused,
    TooSlow,
    Unreachable,
    UpstreamError,
)
from nacos_proxy.model.masking import shown_url
from nacos_proxy.upstream.nacos.capabilities import Capabilities

DEFAULT_PORT = 8848
MOST_SERVERS = 100  # lines of an address server's answer that count
_HOST = re.compile(r"(?:[0-9A-Za-z_-]+\.)*[0-9A-Za-z_-]+\.?|\[[0-9A-Fa-f:.]+\]")
_CONTEXT = re.compile(r"(?:/(?!\.\.?(?:/|$))[0-9A-Za-z._~-]+)*")


@dataclass(frozen=True, slots=True)
class ServersPolicy:
    """Seconds, numbers, and where the servers are.

    `urls`: `host`, `host:port` or `http(s)://host:port[/context]`; where a URL has a path, that is its context path.
    `endpoint`: the URL of an address server, which names one server a line, asked again every `endpoint_every`.
    A server that failed is probed after `first_pause`, then after twice that, up to `longest_pause`; one that nobody
    called for `idle` seconds is probed too, where there are several. One that was down is in `doubt`: it lists
    instances unwell, or as they were. What was kept to it goes back to it in the `return_within` seconds behind that.
    No answer in time counts where there was none at all for `slow` seconds: a slow server is no lost one.
    """

    urls: tuple[str, ...] = ()
    endpoint: str = ""
    endpoint_every: float = 30.0
    context_path: str = "/nacos"
    first_pause: float = 0.5
    longest_pause: float = 15.0
    patience: int = 2
    doubt: float = 10.0
    home: float = 40.0
    slow: float = 5.0
    idle: float = 10.0
    remembered: int = 100_000
    attempts: int = 3
    doubt: float = 10.0
    return_within: float = 30.0
    slow: float = 5.0


@dataclass(slots=True, eq=False)
class Server:
    """One server, and what operators want to know of it.

    `failures` are those since the last success, `pause` the seconds between the last two probes of a server that is
    down, `back_at` when it was last up again, `latency` a moving mean in seconds.
    """

    origin: str
    context: str
    up: bool = True
    failures: int = 0
    retry_at: float = 0.0
    pause: float = 0.0
    called_at: float = 0.0
    answered_at: float = float("-inf")
    back_at: float = float("-inf")
    probing: bool = False
    error: str = ""
    latency: float = 0.0
    outcomes: dict[str, int] = field(default_factory=lambda: {})
    spoken: Capabilities = field(default_factory=Capabilities)

    @property
    def url(self) -> str:
        return self.origin + self.context

    def __repr__(self) -> str:
        return f"<Server {self.url} {'up' if self.up else 'down'}>"

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def parse_server(text: str, context_path: str = "/nacos", scheme: str = "http") -> Server:
    """A server from what people write. Raises `ValueError` with a sentence for them, without a password."""
    address = text.strip()
    address = address if "://" in address else f"{scheme}://{address}"
    shown = shown_url(text.strip())
    if "@" in address:  # a password may hold what would end the host, and be shown as something else
        raise ValueError(f"the server {shown!r} may have a port and a context path, and nothing else")
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError(f"{shown!r} is no address: an IPv6 one stands in brackets") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{shown!r} is neither http nor https")
    if parts.query or parts.fragment:
        raise ValueError(f"the server {host!r} may have a port and a context path, and nothing else")
    if parts.netloc.count(":") > 1 and "[" not in parts.netloc:
        raise ValueError(f"{shown!r} is no address: an IPv6 one stands in brackets, as in [::1]:{DEFAULT_PORT}")
    host = f"[{host}]" if ":" in host else host
    if _HOST.fullmatch(host) is None:
        raise ValueError(f"{shown!r} names no host")
    context = parts.path.rstrip("/") or context_path.rstrip("/")
    if _CONTEXT.fullmatch(context) is None:
        raise ValueError(f"{context!r} is no context path: it looks like /nacos")
    return Server(f"{parts.scheme}://{host}:{_port(parts, shown)}", context)


def _port(parts: SplitResult, shown: str) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return 443 if parts.scheme == "https" else DEFAULT_PORT
    if port == 0:
        raise ValueError(f"the port of {shown!r} is no number from 1 to 65535")
    return port


def parse_addresses(body: bytes, context_path: str = "/nacos") -> list[Server]:
    """The lines of an address server's answer; blank lines, comments and what is no address are left out.

    What Nacos's own servers tell each other there (`?raft_port=7848`) is not for clients.
    """
    found: dict[str, Server] = {}
    for line in body.decode("utf-8-sig", "replace").splitlines()[: 10 * MOST_SERVERS]:
        address = line.partition("#")[0].partition("?")[0].strip()
        if not address or len(found) >= MOST_SERVERS:
            continue
        try:
            server = parse_server(address, context_path)
        except ValueError:
            continue
        found.setdefault(server.url, server)
    return list(found.values())


Listener = Callable[[Server], None]


@dataclass(slots=True)
class _Kept:
    """To whom something keeps: to `home`, and to `now` since that failed it."""

    home: Server
    now: Server
    since: float


class Servers:
    """`on_up` and `on_down` are called once per transition of a server, `on_list` when the list is another one."""

    def __init__(self, policy: ServersPolicy) -> None:
        self.policy = policy
        self.on_up: list[Listener] = []
        self.on_down: list[Listener] = []
        self.on_list: list[Callable[[], None]] = []
        self.all: list[Server] = []
        self._keeps: LRUCache[Hashable, _Kept] = LRUCache(policy.remembered)
        self.replace(parse_server(url, policy.context_path) for url in policy.urls)

    def replace(self, servers: Iterable[Server]) -> None:
        """A new list; a server that was in the old one stays as it is. An empty list changes nothing."""
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
    def checking(self) -> bool:
        """Whether all are known to have Nacos's parameter check."""
        return bool(self.all) and all(server.spoken.checks for server in self.all)

    def candidates(self, keys: tuple[Hashable, ...], now: float, *, reading: bool = False) -> Iterator[Server]:
        """Whom to ask, in order, at most `attempts`. `keys` say what the call is about, the closest first.

        Where none is up, or none any more, the last is that whose probe comes first: a call deserves a try.
        """
        if len(self.all) < 2:
            yield from self.all
            return
        tried: list[Server] = []
        ordered = self._ordered(keys, now)
        if reading:  # a stable order: what is in doubt comes last
            ordered = iter(sorted(ordered, key=lambda server: self.doubted(server, now)))
        for server in ordered:
            if server.up and server not in tried and len(tried) < self.policy.attempts:
                tried.append(server)
                yield server
        left = [server for server in self.all if server not in tried]
        if left and not self.up and len(tried) < self.policy.attempts:
            yield min(left, key=lambda server: server.retry_at)

    def doubted(self, server: Server, now: float) -> bool:
        """Whether it has come back so lately that its lists may be old."""
        return now < server.back_at + self.policy.doubt

    def _ordered(self, keys: tuple[Hashable, ...], now: float) -> Iterator[Server]:
        for key in keys:
            kept = self._keeps.get(key)
            if kept is not None:
                yield from (s for s in self._kept_to(key, kept, now) if s.up and s in self.all)
        yield from sorted(self.up, key=lambda server: _weight(server, keys), reverse=True)

    def _kept_to(self, key: Hashable, kept: _Kept, now: float) -> tuple[Server, ...]:
        if kept.now is kept.home:
            return (kept.home,)
        share = int.from_bytes(_digest(str(key))[:2], "big") / 65536
        due = max(kept.since, kept.home.back_at) + self.policy.doubt + share * self.policy.return_within
        return (kept.home, kept.now) if now >= due else (kept.now,)

    def keep(self, key: Hashable, server: Server, now: float) -> None:
        """What `key` names keeps to this server while it is up, and comes back to it when it is up again."""
        if len(self.all) < 2:
            return
        kept = self._keeps.get(key)
        home = server if kept is None or kept.home not in self.all else kept.home
        if kept is None or kept.home is not home or kept.now is not server:
            self._keeps[key] = _Kept(home, server, now)

    def forget(self, key: Hashable) -> None:
        self._keeps.pop(key, None)

    def succeeded(self, server: Server, now: float, seconds: float | None = None) -> None:
        """It answered, if only with a no."""
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
        if server.up and (server.failures >= self.policy.patience or isinstance(error, Unreachable)):
            server.up = False
            server.pause = self.policy.first_pause
            server.retry_at = now + server.pause
            for listener in self.on_down:
                listener(server)
        elif not server.up and now >= server.retry_at:  # not one of many calls that were under way when it went
            server.pause = min(server.pause * 2, self.policy.longest_pause)
            server.retry_at = now + server.pause

    def to_probe(self, now: float) -> list[Server]:
        """Those to ask whether they are there, where calls alone would not tell."""
        if len(self.all) < 2:
            return []
        idle = self.policy.idle
        due = (s for s in self.all if (now - s.called_at >= idle if s.up else s.retry_at <= now))
        return [server for server in due if not server.probing]


def _weight(server: Server, keys: tuple[Hashable, ...]) -> bytes:
    """Rendezvous hashing on the last key, the service: all that is about it starts at the same server."""
    return _digest(f"{server.url} {keys[-1] if keys else ''}")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def failing(error: UpstreamError, *, reading: bool) -> bool:
    """Whether an error says that the server is in trouble, rather than that it does not like the call.

    Gateways and a server that is not ready say 502 to 504; 500 is also the word for bad parameters, so of a write
    it says nothing of the server.
    """
    if isinstance(error, Refused):
        return error.status in (502, 503, 504) or (reading and error.status == 500)
    return True

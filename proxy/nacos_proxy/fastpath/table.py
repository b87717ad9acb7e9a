"""The bounded table of prepared responses. It is pure: callers pass the time.

Rules:
1. The table drops a response at its `valid_until`, or at once when its invalidation key is forgotten.
   `revalidate` extends `valid_until` while polls confirm the same data, so an unchanged service is not rendered again.
2. The table rejects a response whose invalidation key was forgotten while the response was being made (`since`).
3. It admits a lookup key the second time that it sees the key, so clients that never repeat a request cannot flush it.
   Its memory of seen keys is bounded.
4. One number bounds both entries and bytes: an entry costs its bytes, but at least `size / entries`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

from cachetools import LRUCache

from nacos_proxy.wire.http import Cacheable, RouteName

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
LookupKey: TypeAlias = bytes | tuple[bytes, ...]
"""At the head stage: a whole request head, with its kind of socket if that is not plain TCP.

At the target stage: the kind of socket, the request target, and the headers in `asgi.KEY_HEADERS`.
"""

_OVERHEAD = 1500  # bytes of an entry beside its content, measured with tracemalloc
_AGE_HEADERS = (b"age", b"cache-status")
_FORBIDDEN = frozenset({b"connection", b"set-cookie", b"trailer", b"transfer-encoding", b"upgrade"})
_STATUS_LINE = {status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode() for status in (200, 304)}


@dataclass(frozen=True, slots=True)
class ResponseTablePolicy:
    """Bounds: `size` (bytes), `entries`, and per entry `max_head` and `max_body` (bytes).

    The table remembers at least the last `remembered` lookup keys that it saw once.
    """

    entries: int = 20_000
    size: int = 64 << 20
    max_head: int = 8192
    max_body: int = 4 << 20
    remembered: int = 20_000


@dataclass(slots=True)
class HitCounts:
    """The number of repeated responses of one route and status, by lookup stage."""

    head: int = 0
    target: int = 0


class PreparedResponse:
    """A response under one lookup key, with lower-case header names.

    Its Age and Cache-Status are right until `rendered_until` (seconds); `render` updates them. `closes`: the requests
    under this key want the connection to be closed.
    """

    __slots__ = (
        "_default_headers", "_raw", "_raw_heads", "_templates", "body", "cacheable", "closes", "cost", "headers",
        "hits", "make_body", "path", "rendered_until", "status",
    )  # fmt: skip

    def __init__(
        self,
        cacheable: Cacheable,
        status: int,
        headers: Headers,
        body: bytes,
        *,
        path: str = "",
        hits: HitCounts | None = None,
        closes: bool = False,
    ) -> None:
        self.cacheable = cacheable
        self.status = status
        self.body = body
        self.make_body = cacheable.make_body
        self.path = path
        self.hits = hits if hits is not None else HitCounts()
        self.closes = closes
        self.headers = [(name.lower(), value) for name, value in headers]
        self.rendered_until = float("-inf")
        self.cost = 0
        self._templates = tuple(
            (i, name, _own_entry(value).replace(b"%", b"%%") + b"; hit; ttl=%d")
            for i, (name, value) in enumerate(self.headers)
            if name in _AGE_HEADERS
        )
        self._raw = b""  # the result of `to_bytes`
        self._raw_heads: dict[int, bytes] = {}  # instead of `_raw` if there is `make_body`: heads by the body's length
        self._default_headers: Headers = ()  # those in `_raw` or `_raw_heads`

    def copy(self, *, closes: bool = False) -> PreparedResponse:
        """The response for another lookup key."""
        return PreparedResponse(
            self.cacheable, self.status, self.headers, self.body, path=self.path, hits=self.hits, closes=closes
        )

    def render(self, now: float) -> None:
        """Updates Age and the ttl of Cache-Status (RFC 9111 5.1, RFC 9211) for `now`, which is before `valid_until`.

        Cache-Status says "hit", even if the original response was a miss.
        """
        cacheable = self.cacheable
        age, ttl = max(0, int(now - cacheable.confirmed_at)), int(cacheable.valid_until - now)
        for i, name, hit in self._templates:
            self.headers[i] = (name, b"%d" % age if name == b"age" else hit % ttl)
        self._discard_raw()
        self.rendered_until = min(cacheable.confirmed_at + age + 1, cacheable.valid_until - ttl)

    def headers_for(self, length: int) -> Headers:
        """The headers for a body of this length (bytes)."""
        return [(n, b"%d" % length) if n == b"content-length" else (n, v) for n, v in self.headers]

    def to_bytes(self, default_headers: Headers) -> bytes:
        """The HTTP/1.1 message. When a default header changes, such as Date, the server makes a new list of them."""
        if self._default_headers is not default_headers:
            self._discard_raw()
            self._default_headers = default_headers
        return self._raw or self._write()

    def _write(self) -> bytes:
        if self.make_body is None:
            self._raw = self._head(len(self.body)) + self.body
            return self._raw
        body = self.make_body()
        head = self._raw_heads.get(len(body))
        if head is None:
            head = self._raw_heads[len(body)] = self._head(len(body))
        return head + body

    def _head(self, length: int) -> bytes:
        headers = (*self._default_headers, *self.headers_for(length))
        lines = (b"%b: %b\r\n" % (name.lower(), value) for name, value in headers)
        return b"".join((_STATUS_LINE[self.status], *lines, b"\r\n"))

    def _discard_raw(self) -> None:
        self._raw = b""
        if self._raw_heads:
            self._raw_heads.clear()

    @property
    def size(self) -> int:
        """Bytes of memory, including the copy that `to_bytes` keeps."""
        return 2 * len(self.body) + 2 * sum(len(n) + len(v) + 4 for n, v in self.headers) + len(self.path) + _OVERHEAD


def _own_entry(cache_status: bytes) -> bytes:
    """The header up to our name in the last entry; the entries before are of caches behind us."""
    others, comma, own = cache_status.rpartition(b", ")
    return others + comma + own.partition(b";")[0]


def is_repeatable(status: int, headers: Headers, body: bytes) -> bool:
    """Whether a response can be sent again: complete, of known length, and without anything for one connection only."""
    names = [name.lower() for name, _ in headers]
    if status not in _STATUS_LINE or not _FORBIDDEN.isdisjoint(names):
        return False
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    return lengths == [b"%d" % len(body)] or (status == 304 and not lengths and not body)


def key_length(key: LookupKey) -> int:
    """The key's length in bytes."""
    return len(key) if isinstance(key, bytes) else sum(map(len, key))


class ResponseTable:
    """`hit_counts` are by (route, status); `serial` grows each time an invalidation key is forgotten."""

    def __init__(self, policy: ResponseTablePolicy) -> None:
        self.policy = policy
        self.hit_counts: dict[tuple[RouteName, int], HitCounts] = {}
        self.serial = 0
        self._min_cost = max(1, policy.size // max(1, policy.entries))
        self._entries = _Entries(policy.size)
        self._seen = SeenKeys(policy.remembered)
        self._forgotten: deque[Hashable] = deque(maxlen=1024)

    def find(self, key: LookupKey, now: float) -> PreparedResponse | None:
        """The response under a key, rendered for `now`; None if there is none or it is no longer fresh."""
        response = self._entries.responses.get(key)
        if response is None or now < response.rendered_until:
            return response
        return self._revalidate(key, response, now)

    def _revalidate(self, key: LookupKey, response: PreparedResponse, now: float) -> PreparedResponse | None:
        cacheable = response.cacheable
        renewed = cacheable.revalidate(now) if cacheable.revalidate is not None else None
        if renewed is not None:
            cacheable = response.cacheable = cacheable._replace(confirmed_at=renewed[0], valid_until=renewed[1])
        if now >= cacheable.valid_until:
            del self._entries[key]
            return None
        # Marks the entry as used (LRU): about once a second, because it would slow down an ordinary hit of 0.1 us.
        self._entries[key]  # pyright: ignore[reportUnusedExpression]
        response.render(now)
        return response

    def admits(self, key: LookupKey) -> bool:
        """Whether a response for this key would be kept: not too long, and seen before. Remembers the key."""
        return key_length(key) <= self.policy.max_head and self._seen.check_and_add(key)

    def offer(self, key: LookupKey, response: PreparedResponse, since: int) -> bool:
        """Keeps a response, and returns whether it did. `since`: the `serial` before the response was made.

        The caller calls `admits` first, because recording a response costs more. The table then owns the response.
        """
        response.cost = max(self._min_cost, response.size + key_length(key))
        if len(response.body) > self.policy.max_body or response.cost > self.policy.size:
            return False
        if self._was_forgotten(response.cacheable.invalidation_key, since):
            return False
        self._entries.put(key, response)
        return True

    def _was_forgotten(self, invalidation_key: Hashable, since: int) -> bool:
        changes = self.serial - since
        if changes > len(self._forgotten):
            return True
        return any(self._forgotten[-i] == invalidation_key for i in range(1, changes + 1))

    def forget(self, invalidation_key: Hashable) -> None:
        """Drops the responses of this invalidation key, because their data has changed."""
        self.serial += 1
        self._forgotten.append(invalidation_key)
        self._entries.drop(invalidation_key)

    def clear(self) -> None:
        """Drops everything, for example when access rights changed."""
        self.serial += (self._forgotten.maxlen or 0) + 1
        self._entries.clear()

    def hits_of(self, route: RouteName, status: int) -> HitCounts:
        return self.hit_counts.setdefault((route, status), HitCounts())

    @property
    def bytes(self) -> int:
        """The cost of all entries."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        keys = len(self._entries.lookup_keys)
        return f"<ResponseTable {len(self)} of {keys} keys, {self.bytes} of {self.policy.size} bytes>"


class _Entries(LRUCache[LookupKey, PreparedResponse]):
    """The entries, with two indexes: `responses` finds one without marking it as used; `lookup_keys` is by invalidation
    key.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, getsizeof=lambda response: response.cost)
        self.responses: dict[LookupKey, PreparedResponse] = {}
        self.lookup_keys: dict[Hashable, set[LookupKey]] = {}

    def put(self, key: LookupKey, response: PreparedResponse) -> None:
        if key in self.responses:
            del self[key]
        self[key] = response
        self.responses[key] = response
        self.lookup_keys.setdefault(response.cacheable.invalidation_key, set()).add(key)

    def drop(self, invalidation_key: Hashable) -> None:
        for key in tuple(self.lookup_keys.get(invalidation_key, ())):
            del self[key]

    def __delitem__(self, key: LookupKey) -> None:
        super().__delitem__(key)
        invalidation_key = self.responses.pop(key).cacheable.invalidation_key
        keys = self.lookup_keys[invalidation_key]
        keys.discard(key)
        if not keys:
            del self.lookup_keys[invalidation_key]

    def clear(self) -> None:
        super().clear()
        self.responses.clear()
        self.lookup_keys.clear()


class SeenKeys:
    """Hashes of lookup keys in two generations: at least the last `remembered`, at most twice as many.

    If two keys share a hash, the second is admitted the first time it is seen, which does no harm.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = max(1, remembered)
        self._young: set[int] = set()
        self._old: set[int] = set()

    def check_and_add(self, key: Hashable) -> bool:
        hashed = hash(key)
        if hashed in self._young:
            return True
        seen = hashed in self._old
        if len(self._young) >= self._remembered:
            self._old, self._young = self._young, set()
        self._young.add(hashed)
        return seen

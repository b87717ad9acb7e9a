"""The bounded table of prepared answers. Not for: sockets, ASGI, deciding what may be repeated (the mark says it).

Pure: told the time. The rules:
1. A stale answer is never found: an answer is gone at its `valid_until`, and at once when its key is forgotten. What
   is confirmed meanwhile (`renew`) stays, so that a service whose polls find no change is never made anew.
2. An answer whose key was forgotten while it was being made is not taken (`since`).
3. A place (a request head, or a target) is kept from its second sight on, so that clients that never repeat
   themselves cannot flush the table. Which places were seen is remembered in bounded space.
4. Entries and bytes are bounded by one number: an entry costs its bytes, at least its share of the size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cachetools import LRUCache

from nacos_proxy.wire.http import Cacheable

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
LookupKey: TypeAlias = bytes | tuple[bytes, ...]
"""Where an answer is found: a whole request head as it came over plain TCP, or what no bytes on a socket are equal to:
a head with its kind of socket, or a target with its kind of socket and the headers that matter.
"""

_OVERHEAD = 1500  # what an entry takes beside its bytes, measured with tracemalloc
_COUNTING = (b"age", b"cache-status")
_FORBIDDEN = frozenset({b"connection", b"set-cookie", b"trailer", b"transfer-encoding", b"upgrade"})


@dataclass(frozen=True, slots=True)
class ResponseTablePolicy:
    """`size` in bytes, for at most `entries`; longer heads and bodies than these (bytes) are not kept.

    `remembered` is how many places are remembered at least between their first and second sight.
    """

    entries: int = 20_000
    size: int = 64 << 20
    max_head: int = 8192
    max_body: int = 4 << 20
    remembered: int = 20_000


@dataclass(slots=True)
class Tally:
    """How many answers of one kind and status were repeated, by the door that gave them."""

    head: int = 0
    target: int = 0


class Answer:
    """One prepared response at one place, right until `until` (seconds); `render` then makes it right again.

    `headers` are the rendered ones, names in lower case. `whole`, `heads` and `defaults` belong to the protocol door:
    the response that it wrote, or, where the body is drawn, the heads by its length; the default headers in them.
    """

    __slots__ = (
        "body", "cost", "counting", "defaults", "draw", "headers", "heads", "mark", "path", "status", "tally", "until",
        "whole",
    )  # fmt: skip

    def __init__(
        self,
        mark: Cacheable,
        status: int,
        headers: Headers,
        body: bytes,
        *,
        path: str = "",
        tally: Tally | None = None,
    ) -> None:
        self.mark = mark
        self.status = status
        self.body = body
        self.draw = mark.draw
        self.path = path
        self.tally = tally if tally is not None else Tally()
        self.headers = [(name.lower(), value) for name, value in headers]
        self.counting = tuple(
            (i, name, value.partition(b";")[0].replace(b"%", b"%%") + b"; hit; ttl=%d")
            for i, (name, value) in enumerate(self.headers)
            if name in _COUNTING
        )
        self.until = float("-inf")
        self.cost = 0
        self.whole = b""
        self.heads: dict[int, bytes] = {}
        self.defaults: object = None

    def copy(self) -> Answer:
        """The same answer for another place."""
        return Answer(self.mark, self.status, self.headers, self.body, path=self.path, tally=self.tally)

    def render(self, now: float) -> None:
        """Puts Age and the ttl of Cache-Status right (RFC 9111 5.1, RFC 9211), up to the moment when one changes.

        A repeated answer is a hit, also where the one that it repeats was not. Only before `valid_until`.
        """
        age, ttl = max(0, int(now - self.mark.born)), int(self.mark.valid_until - now)
        for i, name, hit in self.counting:
            self.headers[i] = (name, b"%d" % age if name == b"age" else hit % ttl)
        self.unwrite()
        self.until = min(self.mark.born + age + 1, self.mark.valid_until - ttl)

    def unwrite(self) -> None:
        """What was written of it is no longer right."""
        self.whole = b""
        if self.heads:
            self.heads.clear()

    def sized(self, length: int) -> Headers:
        """The headers for a body of this length (bytes)."""
        return [(n, b"%d" % length) if n == b"content-length" else (n, v) for n, v in self.headers]

    @property
    def size(self) -> int:
        """Bytes; what the protocol door writes counts too."""
        return 2 * len(self.body) + 2 * sum(len(n) + len(v) + 4 for n, v in self.headers) + len(self.path) + _OVERHEAD


def repeatable(status: int, headers: Headers, body: bytes) -> bool:
    """Whether a response as it was sent can be sent again: complete, length known, nothing of one connection."""
    names = [name.lower() for name, _ in headers]
    if status not in (200, 304) or not _FORBIDDEN.isdisjoint(names):
        return False
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    return lengths == [b"%d" % len(body)] or (status == 304 and not lengths and not body)


def length(place: LookupKey) -> int:
    """Bytes."""
    return len(place) if isinstance(place, bytes) else sum(map(len, place))


class ResponseTable:
    """The table. `tallies` counts by (kind, status); `serial` grows with each change of a key."""

    def __init__(self, policy: ResponseTablePolicy) -> None:
        self.policy = policy
        self.tallies: dict[tuple[str, int], Tally] = {}
        self.serial = 0
        self._least = max(1, policy.size // max(1, policy.entries))
        self._kept = _Kept(policy.size)
        self._known = _Doorkeeper(policy.remembered)
        self._forgotten: deque[Hashable] = deque(maxlen=1024)

    def find(self, place: LookupKey, now: float) -> Answer | None:
        """The answer of a place, right at `now`; None where there is none, or where it is no longer fresh."""
        answer = self._kept.ready.get(place)
        if answer is None or now < answer.until:
            return answer
        return self._again(place, answer, now)

    def _again(self, place: LookupKey, answer: Answer, now: float) -> Answer | None:
        renewed = answer.mark.renew(now) if answer.mark.renew is not None else None
        if renewed is not None:
            answer.mark = answer.mark._replace(born=renewed[0], valid_until=renewed[1])
        if now >= answer.mark.valid_until:
            del self._kept[place]
            return None
        # an entry's use counts here, at most about once a second each, and not in the 0.1 us of an ordinary hit
        self._kept[place]  # pyright: ignore[reportUnusedExpression]
        answer.render(now)
        return answer

    def wants(self, place: LookupKey) -> bool:
        """Whether an answer for this place would be kept: not too long, and seen before. Remembers it from now on."""
        return length(place) <= self.policy.max_head and self._known.knows(place)

    def offer(self, place: LookupKey, answer: Answer, since: int) -> bool:
        """Keep an answer that was made after `serial` was `since`; it is ours from then on. Says whether it was kept.

        `wants` is the caller's to ask: before a response is recorded, which costs more than to ask.
        """
        answer.cost = max(self._least, answer.size + length(place))
        if len(answer.body) > self.policy.max_body or answer.cost > self.policy.size:
            return False
        if self._changed(answer.mark.key, since):
            return False
        self._kept.put(place, answer)
        return True

    def _changed(self, key: Hashable, since: int) -> bool:
        changes = self.serial - since
        if changes > len(self._forgotten):
            return True
        return any(self._forgotten[-i] == key for i in range(1, changes + 1))

    def forget(self, key: Hashable) -> None:
        """What the answers of this key were made from has changed: they are gone. O(answers of the key)."""
        self.serial += 1
        self._forgotten.append(key)
        self._kept.drop(key)

    def clear(self) -> None:
        """Everything may have changed: who may ask, or how answers look."""
        self.serial += self._forgotten.maxlen or 0
        self.serial += 1
        self._kept.clear()

    def tally(self, kind: str, status: int) -> Tally:
        """The counter that answers of a kind and status share."""
        return self.tallies.setdefault((kind, status), Tally())

    @property
    def bytes(self) -> int:
        """The cost of all entries."""
        return int(self._kept.currsize)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<Answers {len(self)} of {len(self._kept.by_key)} keys, {self.bytes} of {self.policy.size} bytes>"


class _Kept(LRUCache[LookupKey, Answer]):
    """The entries, with two views that hold the same: `ready` finds without counting a use, `by_key` for forgetting."""

    def __init__(self, size: int) -> None:
        super().__init__(size, getsizeof=lambda answer: answer.cost)
        self.ready: dict[LookupKey, Answer] = {}
        self.by_key: dict[Hashable, set[LookupKey]] = {}

    def put(self, place: LookupKey, answer: Answer) -> None:
        if place in self.ready:
            del self[place]
        self[place] = answer
        self.ready[place] = answer
        self.by_key.setdefault(answer.mark.key, set()).add(place)

    def drop(self, key: Hashable) -> None:
        for place in tuple(self.by_key.get(key, ())):
            del self[place]

    def __delitem__(self, place: LookupKey) -> None:
        super().__delitem__(place)
        key = self.ready.pop(place).mark.key
        places = self.by_key[key]
        places.discard(place)
        if not places:
            del self.by_key[key]

    def clear(self) -> None:
        super().clear()
        self.ready.clear()
        self.by_key.clear()


class _Doorkeeper:
    """Remembers places by their hash, in two generations: at least the last `remembered`, at most twice as many.

    Two places with one hash are taken for one; the second is then kept at its first sight, which harms nothing.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = max(1, remembered)
        self._young: set[int] = set()
        self._old: set[int] = set()

    def knows(self, place: LookupKey) -> bool:
        seen = hash(place)
        if seen in self._young:
            return True
        known = seen in self._old
        if len(self._young) >= self._remembered:
            self._old, self._young = self._young, set()
        self._young.add(seen)
        return known

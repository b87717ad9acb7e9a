"""HTTP as values: requests, replies, forms, and the handles that a front end and the fast path exchange."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol
from urllib.parse import quote_plus, unquote

from nacos_proxy.model.services import (
    EMPTY,
)
from nacos_proxy.wire.multipart import MULTIPART_TYPE, read_multipart
from nacos_proxy.wire.nacos.rules import NACOS, Rules

JSON_TYPE = "application/json"


TEXT_TYPE = "text/plain;charset=UTF-8"


FORM_TYPE = "application/x-www-form-urlencoded"


Pairs = tuple[tuple[str, str], ...]


class HttpRequest(NamedTuple):
    """A request without its connection. `path` starts behind the context path: `/v1/ns/instance/list`.

    `headers` has lower-case names. `query` and `form` are decoded pairs in the order of the wire. `context` is the
    context path that stood before the path; error pages show both. `rules` is what its values are held to.
    """

    method: str
    path: str
    query: Pairs = ()
    form: Pairs = ()
    headers: Mapping[str, str] = EMPTY
    context: str = "/nacos"
    rules: Rules = NACOS

    @classmethod
    def parse(
        cls,
        method: str,
        path: str,
        query: str,
        body: bytes,
        headers: Mapping[str, str],
        context: str = "/nacos",
        rules: Rules = NACOS,
    ) -> HttpRequest:
        """From the raw query string and body; the body counts only where it is a form. Raises `BadCall`."""
        form = form_pairs(headers.get("content-type", ""), body)
        return cls(method, path, pairs(query), form, headers, context, rules)

    @property
    def parameters(self) -> dict[str, str]:
        """Query and form as one; of a name in both, or twice, the first counts, the query before the form."""
        merged: dict[str, str] = {}
        for name, value in (*self.query, *self.form):
            merged.setdefault(name, value)
        return merged

    @property
    def target(self) -> str:
        """Path and query as they go on the wire."""
        return f"{self.path}?{encoded(self.query)}" if self.query else self.path

    @property
    def body(self) -> bytes:
        """The form as it goes on the wire, with `FORM_TYPE`; empty where there is none."""
        return encoded(self.form).encode()


def form_pairs(content_type: str, body: bytes) -> Pairs:
    """The parameters of a form of either type (nacos-http.md 1.2). Raises `BadCall`, but never of an empty body."""
    media = content_type.partition(";")[0].strip().lower()
    if media == FORM_TYPE:
        return pairs(body.decode("utf-8", "replace"))
    return read_multipart(content_type, body) if body and media == MULTIPART_TYPE else ()


def pairs(text: str) -> Pairs:
    """As `urllib.parse.parse_qsl` reads them, blank values kept, at half its cost."""
    if not text:
        return ()
    if "+" in text:
        text = text.replace("+", " ")
    split = (piece.partition("=") for piece in text.split("&") if piece)
    if "%" not in text:
        return tuple((name, value) for name, _, value in split)
    return tuple((unquote(name), unquote(value)) for name, _, value in split)


def first_of(*texts: bytes) -> dict[str, str]:
    """Parameters by name, of several the first that says something, as servers read them (UTF-8)."""
    found: dict[str, str] = {}
    for text in texts:
        for name, value in pairs(text.decode("utf-8", "replace")):
            found[name] = found.get(name) or value
    return found


def encoded(pairs: Pairs) -> str:
    """As `urllib.parse.urlencode` writes them; what is short comes again and again."""
    return "&".join([f"{_quoted(n)}={_quoted(v) if len(v) < _SHORT else quote_plus(v)}" for n, v in pairs])


_SHORT = 64


_quoted = lru_cache(maxsize=2048)(quote_plus)  # the names that are asked for have no end, so it stays below 1 MiB


PLAIN = ("Accept-Encoding", "identity")  # what we ask every server for: a few bytes of gzip can unfold to gigabytes


CODED = "the answer is compressed ({}), although that was not asked for: turn it off in what answers there"


def coded(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """The content codings of an answer as its raw headers name them, '' where it is plain (RFC 9110 8.4)."""
    named = (value for name, value in fields if name.lower() == b"content-encoding")
    codings = (part.strip().lower() for value in named for part in value.split(b","))
    return ", ".join(coding[:40].decode("latin-1") for coding in codings if coding not in (b"", b"identity"))


class HttpReply(NamedTuple):
    """An answer. `content_type` None means that the header is absent, which some Nacos refusals are."""

    status: int
    content_type: str | None
    body: bytes
    headers: Pairs = ()


class Cacheable(NamedTuple):
    """The mark of an answer that may be given again without asking the app, put into the ASGI scope under `CACHEABLE`.

    Set before `http.response.start`, and only for an answer from a fresh entry. `key` names what must not have changed,
    `born` is the moment at which its Age was 0 and `valid_until` the one at which it stops being fresh, both in seconds
    of the app's monotonic clock; `kind` counts it in the metrics. `draw` makes the body anew for each answer where the
    choice is the answer (`pick`); its length may differ each time. `renew` is asked now and then, with the moment, and
    gives `born` and `valid_until` as they are by then; None where what the answer was made of is not confirmed.
    """

    key: Hashable
    born: float
    valid_until: float
    kind: str = "read"
    draw: Callable[[], bytes] | None = None
    renew: Callable[[float], tuple[float, float] | None] | None = None


CACHEABLE = "nacos_proxy.repeatable"


class Channel(Protocol):
    """A response body that goes straight to the transport, without a task: for streams with many idle readers.

    Got from `take = scope["extensions"][STREAM]`, after `http.response.start` was sent without a content-length:
    `take()` gives a `Channel`, or None where this request cannot have one (then send it the ordinary way). From then
    on the app sends no more and returns; the connection keeps the channel alive. Chunks are framed once with `frame`
    and may be shared by all channels.
    """

    @staticmethod
    def frame(data: bytes) -> bytes:
        """The bytes as they travel (chunked coding, RFC 9112 7.1); of b"" it is b""."""
        ...

    def write(self, chunk: bytes) -> bool:
        """Hands framed bytes over, always. False: the reader is slow, write no more until `on_drain` calls; or gone."""
        ...

    def on_drain(self, callback: Callable[[], None]) -> None:
        """`callback` is called each time when a slow reader has caught up."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """`callback` is called once, when the stream has ended, whoever ended it; at once if it has ended already."""
        ...

    def farewell(self, chunk: bytes) -> None:
        """Framed bytes to write before the end, where this server ends the stream because it stops."""
        ...

    def close(self) -> None:
        """Ends the stream as it should be; the connection can carry the next request. Harmless when done before."""
        ...


STREAM = "nacos_proxy.stream"

"""HTTP as values: requests, replies, forms, and the handles that a front end and the fast path exchange."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import quote_plus, unquote

from nacos_proxy.model.limits import NACOS, Rules
from nacos_proxy.model.services import EMPTY
from nacos_proxy.wire.multipart import MULTIPART_TYPE, read_multipart

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain;charset=UTF-8"
FORM_TYPE = "application/x-www-form-urlencoded"

_SPECIAL = re.compile(r"[^\w.~-]", re.ASCII).search  # the characters that `quote_plus` changes

Pairs = tuple[tuple[str, str], ...]


class HttpRequest(NamedTuple):
    """A request without its connection. `path` starts after the context path: `/v1/ns/instance/list`.

    Names in `headers` are lower case. `query` and `form` are decoded pairs in their original order. `context` is the
    context path (error pages show it). `rules` are the checks for the values.
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
        """Parses the raw query string, and the body if it is a form. Raises `BadCall`."""
        form = form_pairs(headers.get("content-type", ""), body)
        return cls(method, path, pairs(query), form, headers, context, rules)

    @property
    def parameters(self) -> dict[str, str]:
        """Query and form together. If a name is given twice, the first value wins, the query before the form."""
        merged: dict[str, str] = {}
        for name, value in (*self.query, *self.form):
            merged.setdefault(name, value)
        return merged

    @property
    def target(self) -> str:
        """Path and query, encoded."""
        return f"{self.path}?{_encoded(self.query)}" if self.query else self.path

    @property
    def body(self) -> bytes:
        """The form, encoded as `FORM_TYPE`; empty if there is none."""
        return _encoded(self.form).encode()


def _encoded(parameters: Pairs) -> str:
    """As `urllib.parse.urlencode`, at half its cost: most names and values need no quoting."""
    return "&".join([f"{_quoted(name)}={_quoted(value)}" for name, value in parameters])


def _quoted(text: str) -> str:
    return quote_plus(text) if _SPECIAL(text) else text


def form_pairs(content_type: str, body: bytes) -> Pairs:
    """The parameters of a URL-encoded or multipart form (nacos-http.md 1.2). Raises `BadCall`, except for no body."""
    media = content_type.partition(";")[0].strip().lower()
    if media == FORM_TYPE:
        return pairs(body.decode("utf-8", "replace"))
    return read_multipart(content_type, body) if body and media == MULTIPART_TYPE else ()


def pairs(text: str) -> Pairs:
    """As `urllib.parse.parse_qsl` with blank values kept, at half its cost."""
    if not text:
        return ()
    if "+" in text:
        text = text.replace("+", " ")
    split = (piece.partition("=") for piece in text.split("&") if piece)
    if "%" not in text:
        return tuple((name, value) for name, _, value in split)
    return tuple((unquote(name), unquote(value)) for name, _, value in split)


def first_of(*texts: bytes) -> dict[str, str]:
    """Parameters by name, decoded as UTF-8. If a name occurs more than once, its first non-empty value wins."""
    found: dict[str, str] = {}
    for text in texts:
        for name, value in pairs(text.decode("utf-8", "replace")):
            found[name] = found.get(name) or value
    return found


class HttpReply(NamedTuple):
    """An answer. With `content_type` None it has no such header, as some refusals of Nacos."""

    status: int
    content_type: str | None
    body: bytes
    headers: Pairs = ()

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """All headers, with lower-case names."""
        raw: list[tuple[bytes, bytes]] = []
        if self.status not in (204, 304):  # RFC 9110 8.6: no length for a 204, and not that of the empty body for a 304
            raw.append((b"content-length", str(len(self.body)).encode()))
        if self.content_type is not None:
            raw.append((b"content-type", self.content_type.encode("latin-1")))
        return raw + [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]


def header_of(headers: Pairs, name: str) -> str:
    """The value of a header, whose name is in lower case in `headers`; '' if there is none."""
    return next((value for known, value in headers if known == name), "")


class RouteName(NamedTuple):
    """What answers a request, for the metrics: the part of the proxy, and a method and path without values."""

    frontend: str
    template: str

    @property
    def path(self) -> str:
        """The template without the method."""
        return self.template.rpartition(" ")[2]


OTHER = RouteName("other", "other")  # no route of ours, or refused before there was one


Revalidate = Callable[[float], tuple[float, float] | None]


class Cacheable(NamedTuple):
    """Marks a response that the fast path may repeat without asking the app; put into the ASGI scope under `CACHEABLE`.

    Set it before `http.response.start`, and only for a response made from a fresh entry. Times are seconds of the app's
    monotonic clock.

    - `invalidation_key`: the response is dropped when this key is forgotten;
    - `confirmed_at`: when its Age was 0; `valid_until`: when it stops being fresh;
    - `route`: how the metrics count it;
    - `make_body`: makes a new body, of any length, for each response (`pick`, where the choice is the response);
    - `revalidate`: called about once a second with the time, while the response is repeated; returns the new
      `confirmed_at` and `valid_until`, or None if the data was not confirmed since.
    """

    invalidation_key: Hashable
    confirmed_at: float
    valid_until: float
    route: RouteName = OTHER
    make_body: Callable[[], bytes] | None = None
    revalidate: Revalidate | None = None


class Repeatable(Protocol):
    """A write that the server may begin again without the app if the same request comes again, with other ids.

    `path` is raw. `rules`: the checks that it passed; under other rules it goes to the app again.
    """

    route: RouteName
    method: str
    path: str
    query: str
    rules: Rules

    def begin(self, answered: Callable[[HttpReply], object]) -> bool:
        """Begins it for the request of the context, and calls `answered` later, once. False: send it to the app."""
        ...


CACHEABLE = "nacos_proxy.cacheable"
REMEMBER = "nacos_proxy.remember"  # in the ASGI scope, perhaps: a function that gets the `Repeatable` of the request
REPEATED = "nacos_proxy.repeated"  # in the ASGI scope: the `RouteName` of the prepared response that answers a request
RULES = "nacos_proxy.rules"  # in the ASGI scope: the `Rules` of a request


class Channel(Protocol):
    """A response body written straight to the transport, without a task: for streams with many idle readers.

    Send `http.response.start` without a content-length, then call `scope["extensions"][STREAM]()`. It returns a
    `Channel`, or None if this request cannot have one: then send the body by ASGI. With a channel, the app returns
    without another ASGI message, and the connection keeps the channel alive. Frame a chunk once with `frame`; all
    channels can share the result.
    """

    @staticmethod
    def frame(data: bytes) -> bytes:
        """The bytes in chunked coding (RFC 9112 7.1); b"" for b""."""
        ...

    def write(self, chunk: bytes) -> bool:
        """Accepts framed bytes in any case. Returns False if the reader is slow or gone: then wait for `on_drain`."""
        ...

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Calls `callback` each time a slow reader has caught up."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, when the stream has ended for whatever reason; at once if it has already ended."""
        ...

    def farewell(self, chunk: bytes) -> None:
        """Sets the framed bytes to write last if this server stops."""
        ...

    def close(self) -> None:
        """Ends the body so that the connection can carry the next request. Does nothing if it has already ended."""
        ...


STREAM = "nacos_proxy.stream"
HAS_LEFT = "nacos_proxy.has_left"  # in the ASGI scope: a function that says whether the client of a request has left

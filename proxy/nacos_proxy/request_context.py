"""The client's request that a task works for: its id, for log lines and for the upstream, its trace, and its way.

A task inherits it from the task that starts it. Background work has none (`runtime.Supervisor`). It is for operators
alone: nothing that an answer depends on belongs here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from itertools import count
from os import urandom
from typing import NamedTuple

ID_HEADER = "X-Request-Id"
HOPS_HEADER = "X-Nacos-Proxy-Hops"
"""The proxies that a request has passed, as their ids, so that each notices if its own upstream leads back to it."""
MAX_HOPS = 4  # a request that has passed so many is refused
GRPC = "grpc"  # the scheme and the method of requests of SDKs by gRPC; their path and route is the class of the request

# As long as anybody's ids are, in characters that are harmless in a header and in a log line: the token characters of
# RFC 9110, and those of base64, URNs and addresses.
_SANE = re.compile(rb"[\w!#$%&'*+.^`|~/:=@-]{1,128}", re.ASCII)

_run, _numbers = urandom(4).hex(), count(1)  # importing `secrets` would cost each client command some milliseconds


_HOPS = re.compile(r"[\w.-]{1,64}(?: *, *[\w.-]{1,64}){0,15}", re.ASCII)


def hops_of(given: bytes) -> tuple[str, ...]:
    """The proxies that a request has passed; none if it has no such header, or a senseless one."""
    text = given.decode("latin-1")
    return tuple(hop.strip() for hop in text.split(",")) if _HOPS.fullmatch(text) else ()


def loop_in(hops: Sequence[str], own: str) -> str:
    """Why a request that has passed these proxies is refused by the proxy `own`, '' if it is not."""
    if own in hops:
        return "this request has come through this proxy before: its upstream leads back to it; correct `upstream`"
    if len(hops) >= MAX_HOPS:
        return f"this request has passed {len(hops)} proxies, at most {MAX_HOPS - 1} may stand above each other"
    return ""


def new_id() -> str:
    """An id that no other request has: a random number for this run of the proxy, and the request's number in it."""
    return f"{_run}-{next(_numbers):x}"


def sane_id(given: bytes) -> str:
    """The id that a client sent; '' if it sent none, or one that is too long or has other characters.

    `given` is the field's value, perhaps with the white space that may stand around it (RFC 9110 5.5).
    """
    given = given.strip(b"\t ")
    return given.decode("ascii") if _SANE.fullmatch(given) else ""


class Incoming(NamedTuple):
    """A request as it begins. Header names are lower case; `path` is raw and has no query."""

    id: str
    method: str
    path: str
    client: str = ""
    scheme: str = "http"
    headers: Iterable[tuple[bytes, bytes]] = ()


class Answered(NamedTuple):
    """A request that was answered, for the access log. `route` is the path without its values; '' if there is none.

    `status` is 499 if the client left before the answer began. `seconds` last until the end of the answer, but of an
    event stream until its beginning. `size` is that of the body in bytes. `repeated`: from prepared bytes, not timed.
    """

    method: str
    path: str
    query: str
    route: str
    status: int
    seconds: float
    size: int
    client: str
    id: str
    repeated: bool = False


class UpstreamCall:
    """A call to the upstream for a request, as a context manager. Set `status` to that of the reply."""

    __slots__ = ("headers", "status")

    def __init__(self, headers: Sequence[tuple[str, str]]) -> None:
        self.headers = headers
        """To send along."""
        self.status = 0

    def __enter__(self) -> UpstreamCall:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        pass


class RequestContext:
    """A request without a trace. A subclass adds one. `hops`: the proxies that the request has passed.

    `traced`: somebody wants to know of each `call`.
    """

    __slots__ = ("hops", "id")

    traced = False

    def __init__(self, id: str) -> None:
        self.id = id
        self.hops: Sequence[str] = ()

    @property
    def log_fields(self) -> Mapping[str, str]:
        """For each log line about the request."""
        return {"requestId": self.id}

    def call(self, method: str, url: Callable[[], str]) -> UpstreamCall:
        """A call to the upstream begins. `url` is asked only if somebody wants to see it."""
        return UpstreamCall(((ID_HEADER, self.id),))

    def ended(self, answered: Answered) -> None:
        """The request is answered."""


Begin = Callable[[Incoming], RequestContext]
"""Makes the context of a request that begins."""


_current: ContextVar[RequestContext | None] = ContextVar("nacos_proxy.request", default=None)


def current_request() -> RequestContext | None:
    """The request that this task works for."""
    return _current.get()


def work_for(request: RequestContext) -> None:
    """From here on this task, and those that it starts, work for a request. Call it in a task of the request's own."""
    _current.set(request)

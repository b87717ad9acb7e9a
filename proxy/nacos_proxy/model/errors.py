"""Errors, grouped by whose fault they are.

    ProxyError
    ├─ BadCall            the caller's fault; names the parameter               400
    ├─ Denied             the token is missing, or lacks the right              401, 403
    ├─ NothingKnown       no snapshot here, and no upstream to ask              503
    └─ UpstreamError      the upstream's fault
       ├─ Refused         the upstream refused; its status and text are kept    as given
       ├─ Unreachable     no answer; `arrived`: the call may have arrived       502
       ├─ TooSlow         no answer in time; the call may have arrived          504
       │  └─ Busy         all our connections stayed in use; nothing was sent   503
       └─ Garbled         the answer cannot be understood                       502

Each error has an HTTP status. Only `arrived` decides whether a write may be retried on the next server.
Decoders raise `Malformed`; their callers turn it into `BadCall` (bytes of a client) or `Garbled` (bytes of a server).
"""

from __future__ import annotations

from enum import Enum


class Violation(Enum):
    """What is wrong with a parameter (`BadCall`). Each dialect has its own text and code for it."""

    MISSING = "missing"
    ILLEGAL = "illegal"  # Nacos's own parameter check refuses it (nacos-http.md 1.6)
    NOT_A_NUMBER = "not a number"
    NOT_A_BOOLEAN = "not a boolean"
    WEIGHT = "weight"
    METADATA = "metadata"
    INSTANCE = "instance"  # Nacos rejects the instance: cluster with '_', heartbeat times in the wrong order
    GROUPED_NAME = "grouped name"  # v2 beat and patch require group@@name
    EMPTY_GROUP = "empty group"  # v1 '@@x'
    SELECTOR = "selector"
    SWITCH = "switch"  # a value that the switch does not accept
    BODY = "body"  # not JSON, too large, or of the wrong shape
    OTHER = "other"


class Reason(Enum):
    """Why a server refused a call (`Refused`). Each dialect has its own status and code for it."""

    INSTANCE_NOT_FOUND = "instance not found"
    NO_INSTANCES = "no instances"
    SERVICE_NOT_FOUND = "service not found"
    SERVICE_EXISTS = "service exists"
    SERVICE_NOT_EMPTY = "service not empty"
    WRONG_KIND = "ephemeral or persistent as a whole"
    CHECKER_AT_WORK = "health check still working"
    CLUSTER_NOT_FOUND = "cluster not found"
    NO_RIGHT = "no right"
    NO_PEER = "no peer"  # the node failed to forward the call to a peer that is down or just starting
    GONE = "gone"
    OTHER = "other"


ABSENT = (Reason.INSTANCE_NOT_FOUND, Reason.NO_INSTANCES, Reason.SERVICE_NOT_FOUND, Reason.CLUSTER_NOT_FOUND)


class ProxyError(Exception):
    """The base class. `str()` is a message for people and contains no secrets."""

    status = 500


class Malformed(Exception):
    """The input cannot be decoded. The message says which part is wrong, and why."""


class Misplaced(Malformed):
    """The answer belongs to another request: the connection is out of step."""


class BadCall(ProxyError):
    """The caller's fault. `parameter` is the name that the caller used, or '' for the whole body."""

    status = 400

    def __init__(self, parameter: str, violation: Violation, text: str, *, value: str = "", status: int = 400) -> None:
        super().__init__(text)
        self.parameter = parameter
        self.violation = violation
        self.text = text
        self.value = value
        self.status = status


class Denied(ProxyError):
    """This proxy (not the upstream) denies the call: the token is missing (401) or lacks the right (403)."""

    def __init__(self, text: str, *, status: int = 403) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class NothingKnown(ProxyError):
    """There is no snapshot to answer a read, and no upstream to ask. `__cause__` is the reason."""

    status = 503


class UpstreamError(ProxyError):
    """The upstream's fault. `arrived`: the call may have taken effect."""

    status = 502
    arrived = False


class Refused(UpstreamError):
    """The upstream refused the call.

    `status`, `content_type` and `body` are in `dialect` ('v1', 'v2', 'v3'; '' for the embedded registry). A client of
    the same dialect gets them unchanged. `text` is the message without its wrapping.
    """

    def __init__(
        self,
        reason: Reason,
        text: str,
        *,
        status: int = 400,
        dialect: str = "",
        content_type: str | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.status = status
        self.dialect = dialect
        self.content_type = content_type
        self.body = body


class Unreachable(UpstreamError):
    """No answer. `arrived` is False only if the connection was never made."""

    def __init__(self, text: str, *, arrived: bool) -> None:
        super().__init__(text)
        self.arrived = arrived


class TooSlow(UpstreamError):
    """No answer in time. The call may have arrived."""

    status = 504
    arrived = True


class Busy(TooSlow):
    """All our connections to the server stayed in use too long. Nothing was sent, so the server has not failed."""

    status = 503
    arrived = False


class Garbled(UpstreamError):
    """The answer is not HTTP, not JSON, or not the expected JSON.

    `answered`: the server itself, not a gateway, sent an HTTP answer. So the server is up.
    """

    arrived = True

    def __init__(self, text: str, *, answered: bool = False) -> None:
        super().__init__(text)
        self.answered = answered


def is_loop(error: ProxyError | None) -> bool:
    """Whether an upper proxy refused the call because of the proxies that it has passed (`loop_in`).

    A client can name any, so that says something about its request alone.
    """
    return isinstance(error, Refused) and error.status == 508


def is_unavailable(error: ProxyError | None) -> bool:
    """Whether the outcome of a call (None: success) shows that the upstream is unavailable."""
    if isinstance(error, Refused):
        return error.status >= 500 or error.reason is Reason.NO_PEER
    return isinstance(error, Unreachable | TooSlow | Garbled)


def is_denied(error: BaseException | None) -> bool:
    """Whether the upstream denied the call to this client."""
    return isinstance(error, Refused) and error.reason is Reason.NO_RIGHT


def is_unknown_token(error: BaseException | None) -> bool:
    """Whether the upstream rejected the token itself (unknown or expired), not the rights of its account.

    A server that knows the account answers `authorization failed!`; 1.4.6 may answer `resource name invalid`
    (nacos-http.md 7.4).
    """
    text = str(error).lower()
    return is_denied(error) and "authorization failed" not in text and "resource name invalid" not in text


def counts_for_upstream(error: ProxyError | None, *, fetching: bool) -> bool:
    """Whether an outcome counts for or against the upstream as a whole.

    A single unreadable list does not count, because the server answered. Two outcomes count only for fetches: 500 and
    501, because they can also mean bad parameters, and NO_PEER, because the node itself is up. `Busy` never counts,
    because nothing was sent, and neither does `is_loop`.
    """
    if is_loop(error):
        return False
    if fetching:
        return not isinstance(error, Busy) and not (isinstance(error, Garbled) and error.answered)
    ambiguous = isinstance(error, Refused) and (error.status in (500, 501) or error.reason is Reason.NO_PEER)
    return not ambiguous and not isinstance(error, Busy)

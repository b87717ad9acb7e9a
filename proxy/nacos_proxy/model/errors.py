"""What can go wrong, and whose fault it is.

    ProxyError
    ├─ BadCall            the caller's fault; names the parameter               400
    ├─ Denied             no token, or not the right to do this                 401, 403
    ├─ NothingKnown       no snapshot here, and nobody to ask                   503
    └─ UpstreamError      the other side's fault
       ├─ Refused         it answered, and said no: status and text kept        as given
       ├─ Unreachable     no answer; `arrived` says whether it may have come    502
       ├─ TooSlow         no answer in time; it may have arrived                504
       │  └─ Busy         it waited in vain for a connection of ours            503
       └─ Garbled         an answer that is none                                502

Each carries what the edge needs: the status, the parameter, and whether a write may have arrived, which alone
decides whether it may be tried on the next server. A decoder raises `Malformed`, which never leaves the role that
called it: from a client's bytes it becomes `BadCall`, from a server's `Garbled`.
"""

from __future__ import annotations

from enum import Enum


class Violation(Enum):
    """What is wrong with a parameter (`BadCall`). Each dialect has its own words and codes for it."""

    MISSING = "missing"
    ILLEGAL = "illegal"  # Nacos's own parameter check refuses it (nacos-http.md 1.6)
    NOT_A_NUMBER = "not a number"
    NOT_A_BOOLEAN = "not a boolean"
    WEIGHT = "weight"
    METADATA = "metadata"
    INSTANCE = "instance"  # an instance that Nacos does not accept: cluster with '_', heart beat times out of order
    GROUPED_NAME = "grouped name"  # v2 beat and patch want group@@name
    EMPTY_GROUP = "empty group"  # v1 '@@x'
    SELECTOR = "selector"
    SWITCH = "switch"  # a value that a server's switch does not take
    BODY = "body"  # not JSON, too large, not of the right shape
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
    NO_PEER = "no peer"  # the node asked another one, which is gone or has just come: of the call it says nothing
    GONE = "gone"
    OTHER = "other"


ABSENT = (Reason.INSTANCE_NOT_FOUND, Reason.NO_INSTANCES, Reason.SERVICE_NOT_FOUND, Reason.CLUSTER_NOT_FOUND)


class ProxyError(Exception):
    """The root. `str()` is a sentence for people, without secrets."""

    status = 500


class Malformed(Exception):
    """What was read cannot be understood; says what and where."""


class Misplaced(Malformed):
    """The answer to another question than was asked: what comes on that connection is out of step."""


class BadCall(ProxyError):
    """The caller's fault. `parameter` is the name that the caller used, '' when it is the whole body."""

    status = 400

    def __init__(self, parameter: str, violation: Violation, text: str, *, value: str = "", status: int = 400) -> None:
        super().__init__(text)
        self.parameter = parameter
        self.violation = violation
        self.text = text
        self.value = value
        self.status = status


class Denied(ProxyError):
    """No token (401) or not the right to do this (403), said by this proxy, not by the upstream."""

    def __init__(self, text: str, *, status: int = 403) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class NothingKnown(ProxyError):
    """A read for which there is no snapshot here and nobody to ask; `__cause__` says why."""

    status = 503


class UpstreamError(ProxyError):
    """The other side's fault. `arrived`: may the call have had its effect?"""

    status = 502
    arrived = False


class Refused(UpstreamError):
    """The upstream answered, and said no.

    `dialect` ('v1', 'v2', 'v3', '' for the embedded registry) tells in which dialect `status`, `content_type` and
    `body` are; a client of that dialect gets them unchanged. `text` is the message without its wrapping.
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
    """No answer. `arrived` is False only where the connection was never made."""

    def __init__(self, text: str, *, arrived: bool) -> None:
        super().__init__(text)
        self.arrived = arrived


class TooSlow(UpstreamError):
    """No answer in time; the call may have arrived."""

    status = 504
    arrived = True


class Busy(TooSlow):
    """All our connections to the server were taken for too long. It was not asked, so it has not failed."""

    status = 503
    arrived = False


class Garbled(UpstreamError):
    """An answer that is none: not HTTP, not JSON, not the JSON that was asked for.

    `answered`: it was an answer of HTTP and no page of something in between, so somebody is there.
    """

    arrived = True

    def __init__(self, text: str, *, answered: bool = False) -> None:
        super().__init__(text)
        self.answered = answered


def away(error: ProxyError | None) -> bool:
    """Whether an upstream that says this, or nothing, cannot be counted on."""
    if isinstance(error, Refused):
        return error.status >= 500 or error.reason is Reason.NO_PEER
    return isinstance(error, Unreachable | TooSlow | Garbled)


def no_right(error: BaseException | None) -> bool:
    """Whether the upstream does not let this client do it."""
    return isinstance(error, Refused) and error.reason is Reason.NO_RIGHT


def stranger(error: BaseException | None) -> bool:
    """Whether the upstream does not know who asks, or no longer: the token, and not what its account may.

    All versions say `authorization failed!` where they know the account (nacos-http.md 7.4); 1.4.6 has one more.
    """
    text = str(error).lower()
    return no_right(error) and "authorization failed" not in text and "resource name invalid" not in text


def telling(error: ProxyError | None, *, fetching: bool) -> bool:
    """Whether an outcome says anything of the upstream as a whole.

    One list that cannot be read does not: it is there, and all else may be well. To calls that are no fetch 500 is also
    the word for bad parameters, a node that misses its peer is there itself, and what waited in our own queue was not
    even asked.
    """
    if fetching:
        return not isinstance(error, Busy) and not (isinstance(error, Garbled) and error.answered)
    vague = isinstance(error, Refused) and (error.status in (500, 501) or error.reason is Reason.NO_PEER)
    return not vague and not isinstance(error, Busy)

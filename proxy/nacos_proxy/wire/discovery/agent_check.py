"""HAProxy's agent check: a line that names an instance, answered by a line of words. HAProxy ignores an empty answer.

Each answer sets all that an earlier one may have set: tried with HAProxy 2.6.12, `drain` alone leaves a server down,
and `up` alone leaves it in maintenance. HAProxy shows the text behind `#` only if the answer says `up` or `down`.

A percentage is a share of the weight in HAProxy's configuration, so it is only for lines that ask for it: on weights
from DNS (`server-template`) it would pull 50 down to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nacos_proxy.model.addresses import address_of
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import GROUP_SEPARATOR, Instance, ServiceKey, Snapshot
from nacos_proxy.wire.rest.query import ServiceQuery, read_address

MAX_LINE = 1024


class Words(NamedTuple):
    """`state` is for the metrics."""

    state: str
    line: bytes


UP, DRAIN = Words("up", b"up ready"), Words("drain", b"up drain #weight 0")
DOWN, DISABLED = Words("down", b"down ready #unhealthy"), Words("maint", b"down maint #disabled")
GONE = Words("maint", b"down maint #not registered")
_WORST_FIRST = (DISABLED, DOWN, DRAIN, UP)


class Question(NamedTuple):
    """`address` as `address_of` writes it. `weight`: whether the answer may have a percentage."""

    service: ServiceKey
    address: str
    weight: bool


class Answer(NamedTuple):
    """`percent`: the weight as a share of the greatest in the service, from 1 to 100."""

    words: Words
    percent: int = 0


def read_question(line: bytes, rules: Rules) -> Question | None:
    """`orders/10.0.0.1:8080`, `group@@orders/…` or `namespace/group@@orders/…`, then ` weight` or nothing.

    None for anything else.
    """
    try:
        name, slash, rest = line.decode().strip().rpartition("/")
        address, _, option = rest.partition(" ")
        if not slash or option.strip() not in ("", "weight"):
            return None
        group, separator, service = name.rpartition(GROUP_SEPARATOR)
        namespace, _, group = group.rpartition("/")
        key = ServiceQuery(namespace=namespace).service_key(f"{group}{separator}{service}", rules)
        place = read_address(address, rules)
    except (BadCall, UnicodeDecodeError):
        return None
    return Question(key, address_of(place.ip, place.port).lower(), bool(option.strip()))


def answers_of(snapshot: Snapshot) -> Mapping[str, Answer]:
    """The answers for the instances of a service, by `address`. Of several at one address the best counts."""
    shown = snapshot.select().hosts
    top = max((host.weight for host in shown), default=0.0)
    rows = [(host.address.lower(), Answer(DISABLED)) for host in snapshot.instances if not host.enabled]
    rows += [(host.address.lower(), Answer(_words(host), _percent(host, top))) for host in shown]
    return dict(sorted(rows, key=lambda row: (_WORST_FIRST.index(row[1].words), row[1].percent)))


def _words(host: Instance) -> Words:
    return DOWN if not host.healthy else UP if host.weight > 0 else DRAIN


def _percent(host: Instance, top: float) -> int:
    return max(1, round(100 * (host.weight / top))) if host.weight > 0 else 0


def write_answer(answer: Answer, weight: bool) -> bytes:
    """`weight`: the question asked for a percentage."""
    percent = b" %d%%" % answer.percent if weight and answer.words is UP else b""
    return answer.words.line + percent + b"\n"

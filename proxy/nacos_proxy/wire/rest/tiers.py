"""What an upper proxy tells a lower one, both ways: whole snapshots, the services to follow, what still holds.

A whole snapshot has everything that a proxy knows of a service, and so more than clients see: disabled instances, the
true health, the threshold. Services are named as `{NAMESPACE: {GROUP: {NAME: …}}}`, which is short.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, cast
from urllib.parse import quote

import orjson
from pydantic import Field

from nacos_proxy.model.errors import Malformed, Misplaced, NothingKnown, Reason, Refused
from nacos_proxy.model.services import GROUP_SEPARATOR, ServiceKey, Snapshot, Via
from nacos_proxy.wire.http import HttpReply, HttpRequest, header_of
from nacos_proxy.wire.nacos.hosts import hosts_json, read_each
from nacos_proxy.wire.nacos.shapes import read_exactly
from nacos_proxy.wire.rest.bodies import RequestBody
from nacos_proxy.wire.rest.problem import KINDS

T = TypeVar("T")
Tree = dict[str, dict[str, dict[str, T]]]

EVENTS = "/api/v1/events"
WHOLE = "/api/v1/services/{service}/whole"

NO_PROXY = (
    "the answer (status {}) is not that of a nacos-proxy of this version; if it is Nacos, write it without 'proxy+'"
)
READ_HEADERS = ("age", "cache-status")
"""Those that `read_reply_via` reads."""

BEGIN, SNAPSHOT, CHANGE, CURRENT, UPSTREAM = "begin", "snapshot", "change", "current", "upstream"
"""The kinds of events: the state of the stream and of the upstream; a list as it is, and as it has become; that all
lists were sent and still hold; the upstream's loss and return."""


def tree_of(services: Mapping[ServiceKey, T]) -> Tree[T]:
    found: Tree[T] = {}
    for (namespace, group, name), value in services.items():
        found.setdefault(namespace, {}).setdefault(group, {})[name] = value
    return found


def services_in(tree: Tree[T]) -> dict[ServiceKey, T]:
    return {
        ServiceKey(namespace, group, name): value
        for namespace, groups in tree.items()
        for group, names in groups.items()
        for name, value in names.items()
    }


class FollowBody(RequestBody):
    """The services to follow, and the revision that the reader has of each."""

    services: Annotated[
        Tree[str],
        Field(description="By namespace, group and name: the revision that is known already, or an empty text."),
    ]


def write_follow(revisions: Mapping[ServiceKey, str]) -> bytes:
    return orjson.dumps({"services": tree_of(revisions)})


def whole_json(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that is compared in a snapshot, and what else a registry says of it."""
    key = snapshot.key
    return {
        "name": key.grouped,
        "namespaceId": key.namespace,
        "revision": snapshot.revision,
        "protectThreshold": snapshot.threshold,
        "masking": snapshot.masking,
        "cacheMillis": snapshot.cache_millis,
        "lastRefTime": snapshot.last_ref_time,
        "byCluster": snapshot.by_cluster,
        "unreadable": list(snapshot.unreadable),
        "hosts": hosts_json(snapshot.instances, key),
        "extra": dict(snapshot.extra),
    }


def via_json(via: Via) -> dict[str, Any]:
    return {"age": round(via.age, 3), "stale": via.stale, "cacheStatus": via.status}


class Whole(NamedTuple):
    """A snapshot and the upper proxy's own text for its revision."""

    snapshot: Snapshot
    revision: str


def read_whole(value: Any) -> Whole:
    """The snapshot in `whole_json`, with `via` if there are the fields of `via_json`. Raises `Malformed`."""
    try:
        group, _, name = value["name"].partition(GROUP_SEPARATOR)
        key = ServiceKey(value["namespaceId"], group, name)
        hosts = read_each(value["hosts"], key)
        return Whole(
            Snapshot.of(
                key,
                hosts.instances,
                threshold=float(value["protectThreshold"]),
                masking=value["masking"] is True,
                cache_millis=int(value["cacheMillis"]),
                extra=dict(value["extra"]),
                last_ref_time=int(value["lastRefTime"]),
                by_cluster=value["byCluster"] is True,
                unreadable=(*map(str, value["unreadable"]), *hosts.unreadable),
                via=read_via(value) if "age" in value else None,
            ),
            str(value["revision"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"no list of a nacos-proxy: {error!r}") from None


def read_via(value: Any) -> Via:
    """Raises `KeyError`, `TypeError` and `ValueError`."""
    return Via(max(0.0, float(value["age"])), value["stale"] is True, str(value["cacheStatus"]))


def write_fetch(key: ServiceKey) -> HttpRequest:
    """The request for a whole snapshot."""
    path = WHOLE.format(service=quote(key.grouped, safe="@"))
    return HttpRequest("GET", path, (("namespace", key.namespace),))


def read_list(key: ServiceKey, reply: HttpReply) -> Snapshot:
    """The snapshot in an answer to `write_fetch`, without `via`. Raises `Malformed` and `Refused`.

    `Malformed` also if the upper proxy knows nothing of the service, because that says nothing of other services.
    """
    if reply.status == 200:
        snapshot = read_whole(read_exactly(reply.body)).snapshot
        if snapshot.key != ServiceKey.of(key.grouped, namespace=key.namespace):  # '' is public
            raise Misplaced(f"asked for {key}, but the answer is about {snapshot.key}")
        return snapshot
    try:
        problem: Any = read_exactly(reply.body)
        text, kind = str(problem["detail"]), str(problem["type"])
    except (Malformed, KeyError, TypeError):
        raise Malformed(NO_PROXY.format(reply.status)) from None
    if kind.endswith(KINDS[NothingKnown].slug):
        raise Malformed(text)
    known = {reason.value: reason for reason in Reason}
    denied = Reason.NO_RIGHT if reply.status in (401, 403) else Reason.OTHER
    raise Refused(known.get(str(problem.get("reason")), denied), text, status=reply.status)


def read_reply_via(reply: HttpReply) -> Via:
    """How old a read is, from `Age` and `Cache-Status` (RFC 9111 5.1, RFC 9211). Raises `Malformed` without them."""
    age, status = header_of(reply.headers, "age"), header_of(reply.headers, "cache-status")
    if not age.isdecimal() or not status:
        raise Malformed(NO_PROXY.format(reply.status))
    return Via(float(age), "detail=" in status.rpartition(",")[2], status)


class Current(NamedTuple):
    """All lists were sent. `via` says how old they are at most, None if nobody knows; not those of `unconfirmed`."""

    via: Via | None = None
    unconfirmed: frozenset[ServiceKey] = frozenset()


def write_current(via: Via | None, unconfirmed: Iterable[ServiceKey]) -> bytes:
    return orjson.dumps(
        {
            "confirmed": None if via is None else via_json(via),
            "unconfirmed": tree_of(dict.fromkeys(unconfirmed, True)),
        }
    )


def read_current(value: Any) -> Current:
    """Raises `Malformed`."""
    try:
        confirmed = value["confirmed"]
        via = None if confirmed is None else read_via(confirmed)
        return Current(via, frozenset(services_in(cast("Tree[bool]", value["unconfirmed"]))))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"no state of a stream: {error!r}") from None


class Begin(NamedTuple):
    """A stream begins. `reset`: this is another run of the upper proxy than the one whose last id was given.

    `outage`: why the upper proxy cannot reach its upstream, '' if it can.
    """

    reset: bool
    outage: str


def write_begin(begin: Begin) -> bytes:
    return orjson.dumps(begin._asdict())


def read_begin(value: Any) -> Begin:
    """Raises `Malformed`."""
    try:
        return Begin(value["reset"] is True, str(value["outage"]))
    except (KeyError, TypeError) as error:
        raise Malformed(f"no beginning of a stream: {error!r}") from None


def read_data(data: str) -> Any:
    """The JSON of an event. Raises `Malformed`."""
    return read_exactly(data.encode())

"""The JSON of our own API: bodies → calls; snapshots, instances and changes → JSON.

Not for: parameters (`query`), errors (`problem`), streams (`sse`), headers of freshness (`catalog.look`). What a caller
sends is read strictly: an unknown field is an error that names it, since a misspelt `weigth` would route traffic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from nacos_proxy.model.calls import (
    Beat,
    BeatResult,
    Deregister,
    ListServices,
    Register,
    ServicePage,
    Update,
)
from nacos_proxy.model.errors import BadCall, Malformed, Violation
from nacos_proxy.model.limits import check_weight
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    EMPTY,
    Change,
    Instance,
    Selection,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.hosts import hosts_json, list_json
from nacos_proxy.wire.nacos.rules import NACOS, Rules
from nacos_proxy.wire.nacos.shapes import read_exactly
from nacos_proxy.wire.rest.query import (
    InstanceAddress,
    Query,
    View,
    checked,
    illegal,
    missing,
    read_cluster,
    read_ip,
    read_port,
    unknown,
)

# --- bodies → calls ----------------------------------------------------------------------------------------------


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a text")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, "true or false")
    return value


def _weight(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number")
    return check_weight(float(value))


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "a whole number")
    return value


def _metadata(name: str, value: object) -> Mapping[str, str]:
    # JSON has text keys only
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        text = f"Param '{name}' is illegal, it must be an object whose values are texts."
        raise BadCall(name, Violation.METADATA, text)
    return value  # pyright: ignore[reportUnknownVariableType]


def _as_it_is(name: str, value: object) -> object:
    return value


def _wrong_type(name: str, wanted: str) -> BadCall:
    return BadCall(name, Violation.BODY, f"Param '{name}' is illegal, it must be {wanted}.")


_FIELDS: dict[str, Callable[[str, object], Any]] = {
    "ip": _text,
    "port": _whole,
    "cluster": _text,
    "clusterName": _text,
    "weight": _weight,
    "metadata": _metadata,
    "ephemeral": _flag,
    "enabled": _flag,
    "healthy": _flag,
    "managed": _as_it_is,
}
_INSTANCE_FIELDS = ("weight", "metadata", "ephemeral", "enabled", "healthy")
REGISTER_FIELDS = tuple(_FIELDS)
UPDATE_FIELDS = ("weight", "enabled", "metadata")
BEAT_FIELDS = ("weight", "metadata", "ephemeral")


def read_object(body: bytes, fields: Collection[str], rules: Rules) -> dict[str, Any]:
    """A JSON object with none but these fields, each read and checked. Raises `BadCall` that names the field."""
    try:
        value = read_exactly(body)
    except Malformed as error:
        raise BadCall("", Violation.BODY, f"The body is {error}") from None
    if not isinstance(value, dict):
        raise BadCall("", Violation.BODY, "The body must be a JSON object.")
    given: dict[str, object] = value  # pyright: ignore[reportUnknownVariableType]
    for name in given:
        if name not in fields:
            raise unknown(name, fields, Violation.BODY)
    found = {name: _FIELDS[name](name, item) for name, item in given.items()}
    checked(rules.metadata, found.get("metadata", EMPTY))
    return found


@dataclass(frozen=True, slots=True)
class Registering:
    """A registration as our API takes it; `managed` is the JSON that asks us to beat for it, None where it does not."""

    call: Register
    managed: object = None


def read_register(service: ServiceKey, body: bytes, rules: Rules = NACOS) -> Registering:
    fields = read_object(body, REGISTER_FIELDS, rules)
    for name in ("ip", "port"):
        if name not in fields:
            raise missing(name)
    clusters = {fields[name] for name in ("cluster", "clusterName") if fields.get(name)}
    if len(clusters) > 1:
        raise illegal("cluster", "Params 'cluster' and 'clusterName' name two different clusters.")
    ip, port, managed = fields["ip"], read_port(fields["port"]), fields.get("managed")
    ip = read_ip(ip[1:-1] if ip.startswith("[") and ip.endswith("]") else ip, rules)
    cluster = clusters.pop() if clusters else DEFAULT_CLUSTER
    checked(rules.cluster, cluster)
    rest = {name: fields[name] for name in _INSTANCE_FIELDS if name in fields}
    instance = Instance(ip, port, cluster, **rest)
    checked(rules.instance, instance)
    return Registering(Register(service, instance), managed)


def read_update(service: ServiceKey, address: InstanceAddress, query: Query, body: bytes) -> Update:
    """A PATCH: only what the body names changes."""
    fields = read_object(body, UPDATE_FIELDS, query.rules)
    if not fields:
        raise BadCall("", Violation.BODY, f"The body names nothing to change; known are: {', '.join(UPDATE_FIELDS)}.")
    cluster = read_cluster(query) or DEFAULT_CLUSTER
    return Update(service, address.ip, address.port, cluster, partial=True, **fields)


def read_deregister(service: ServiceKey, address: InstanceAddress, query: Query) -> Deregister:
    cluster = read_cluster(query) or DEFAULT_CLUSTER
    return Deregister(service, address.ip, address.port, cluster, query.flag("ephemeral", True))


def read_beat(service: ServiceKey, address: InstanceAddress, query: Query, body: bytes) -> Beat:
    """With a body a full beat, which registers an unknown instance; without one a light beat."""
    cluster = read_cluster(query) or DEFAULT_CLUSTER
    if not body.strip():
        return Beat(service, address.ip, address.port, cluster, query.flag("ephemeral", True))
    fields = read_object(body, BEAT_FIELDS, query.rules)
    ephemeral = fields.pop("ephemeral", query.flag("ephemeral", True))
    instance = Instance(address.ip, address.port, cluster, ephemeral=ephemeral, **fields)
    checked(query.rules.instance, instance)
    return Beat(service, address.ip, address.port, cluster, ephemeral, full=instance)


# --- values → JSON -----------------------------------------------------------------------------------------------


def snapshot_json(snapshot: Snapshot, view: View, *, stale: bool = False) -> dict[str, Any]:
    """The fields of a Nacos list in its order, then `namespaceId`, `revision` and `stale` of ours."""
    shown = list_json(ServiceView(snapshot, view.of(snapshot)), view.clusters)
    return {**shown, "namespaceId": snapshot.key.namespace, "revision": snapshot.revision, "stale": stale}


def change_json(change: Change, view: View) -> dict[str, Any] | None:
    """The snapshot after the change, `added`, `modified`, `removed` and `source`; None where the view shows none."""
    before, after, key = view.of(change.before), view.of(change.after), change.key
    seen = change
    if not (_unfiltered(before, change.before) and _unfiltered(after, change.after)):
        seen = Change(_with_hosts(change.before, before), _with_hosts(change.after, after), change.source)
    added, modified, removed = seen.added, seen.modified, seen.removed
    frame = (before.protected, change.before.cache_millis, change.before.extra)
    if not (added or modified or removed) and frame == (after.protected, change.after.cache_millis, change.after.extra):
        return None
    return {
        **snapshot_json(change.after, view),
        "added": hosts_json(added, key),
        "modified": hosts_json(modified, key),
        "removed": hosts_json(removed, key),
        "source": change.source,
    }


def _unfiltered(shown: Selection, snapshot: Snapshot) -> bool:
    return len(shown.hosts) == len(snapshot.instances) and not shown.protected


def _with_hosts(snapshot: Snapshot, shown: Selection) -> Snapshot:
    return replace(snapshot, instances=shown.hosts)


def instances_json(snapshot: Snapshot, view: View, *, stale: bool = False) -> dict[str, Any]:
    """Every instance that is known with its true health, also disabled ones, which a snapshot hides."""
    clusters = view.cluster_set
    rows = [i for i in snapshot.instances if not clusters or i.cluster in clusters]
    rows = [i for i in rows if i.healthy or not view.healthy_only]
    key = snapshot.key
    return {
        "name": key.grouped,
        "namespaceId": key.namespace,
        "count": len(rows),
        "instances": hosts_json(rows, key),
        "revision": snapshot.revision,
        "stale": stale,
    }


def page_json(call: ListServices, page: ServicePage, *, stale: bool = False) -> dict[str, Any]:
    return {
        "namespaceId": call.namespace,
        "groupName": call.group,
        "count": page.count,
        "page": call.page,
        "size": call.size,
        "services": list(page.names),
        "stale": stale,
    }


def beat_json(result: BeatResult) -> dict[str, Any]:
    """As Nacos answers a beat, then what else the server said."""
    ours = {"clientBeatInterval": result.interval, "code": result.code, "lightBeatEnabled": result.light}
    return {**ours, **{name: value for name, value in result.extra.items() if name not in ours}}


# --- validators --------------------------------------------------------------------------------------------------


def etag(revision: str, *variant: object) -> str:
    """The entity tag of one representation of a snapshot: the revision, and what else its bytes depend on."""
    if not any(variant):
        return f'"{revision}"'
    return f'"{revision}-{blake2b(repr(variant).encode("utf-8", "replace"), digest_size=4).hexdigest()}"'


def tag_matches(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match (a list, `*`, weak ones too) covers the tag (RFC 9110 13.1.2, weak comparison)."""
    return if_none_match.strip() == "*" or tag in re.findall(r'"[^"]*"', if_none_match)

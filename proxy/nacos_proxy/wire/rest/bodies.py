"""The JSON of our own API: pydantic models of request bodies → calls; snapshots, instances and changes → JSON.

An unknown field is an error that names the field: with a misspelt `weight` ignored, traffic would go elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from nacos_proxy.model.calls import Beat, Deregister, ListServices, Register, ServicePage, Update
from nacos_proxy.model.errors import BadCall, Malformed, Violation
from nacos_proxy.model.limits import MAX_WEIGHT, NACOS, Rules, check_weight
from nacos_proxy.model.services import DEFAULT_CLUSTER, Change, Instance, Selection, ServiceKey, Snapshot
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.hosts import hosts_json, list_json
from nacos_proxy.wire.nacos.shapes import read_exactly
from nacos_proxy.wire.rest.query import (
    InstanceAddress,
    InstanceQuery,
    KindQuery,
    View,
    checked,
    illegal,
    read_ip,
    read_port,
    unknown,
)

MAX_REASON = 200  # characters


def read_object(body: bytes) -> Any:
    """A JSON object. Raises `BadCall`."""
    try:
        value = read_exactly(body)
    except Malformed as error:
        raise BadCall("", Violation.BODY, f"The body is {error}") from None
    if not isinstance(value, dict):
        raise BadCall("", Violation.BODY, "The body must be a JSON object.")
    return value  # pyright: ignore[reportUnknownVariableType]


def _read_metadata(value: object, info: ValidationInfo) -> object:
    # JSON has text keys only
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        text = f"Param '{info.field_name}' is illegal, it must be an object whose values are texts."
        raise BadCall("metadata", Violation.METADATA, text)
    return value  # pyright: ignore[reportUnknownVariableType]


Weight = Annotated[float, AfterValidator(check_weight), Field(json_schema_extra={"minimum": 0, "maximum": MAX_WEIGHT})]
Metadata = Annotated[dict[str, str], BeforeValidator(_read_metadata)]


class RequestBody(BaseModel):
    """A request body. Unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in given:
            if name not in cls.model_fields:
                raise unknown(name, [*cls.model_fields], Violation.BODY)
        return given

    def given(self, *excluded: str) -> dict[str, Any]:
        """The fields that the body names."""
        return {name: getattr(self, name) for name in self.model_fields_set if name not in excluded}


class RegisterBody(RequestBody):
    """An instance to register."""

    ip: str
    port: Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": 65535})]
    cluster: Annotated[str, Field(description="`DEFAULT` if left out.")] = ""
    clusterName: Annotated[str, Field(description="The same as `cluster`, as Nacos calls it.")] = ""
    weight: Weight = 1.0
    metadata: Metadata = {}
    ephemeral: bool = True
    enabled: bool = True
    healthy: bool = True
    managed: Annotated[
        Any, Field(description="How the proxy checks the service, to beat for it: `interval`, `timeout`, `check`.")
    ] = None


def _hide_defaults(schema: dict[str, Any]) -> None:
    # Generated clients may send every default. In a PATCH each would be a change; in a beat, `ephemeral` would override
    # the query's.
    for field in schema["properties"].values():
        field.pop("default", None)


class UpdateBody(RequestBody):
    """What to change."""

    model_config = ConfigDict(json_schema_extra=_hide_defaults)

    weight: Weight = 1.0
    enabled: bool = True
    metadata: Metadata = {}


class BeatBody(RequestBody):
    """A full beat."""

    model_config = ConfigDict(json_schema_extra=_hide_defaults)

    weight: Weight = 1.0
    metadata: Metadata = {}
    ephemeral: bool = True


class MaintenanceBody(RequestBody):
    """Why an instance is kept out of traffic."""

    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""


def read_register(service: ServiceKey, body: RegisterBody, rules: Rules = NACOS) -> Register:
    """Ignores `managed`. Raises `BadCall`."""
    checked(rules.metadata, body.metadata)
    clusters = {name for name in (body.cluster, body.clusterName) if name}
    if len(clusters) > 1:
        raise illegal("cluster", "Params 'cluster' and 'clusterName' name two different clusters.")
    ip, port = body.ip, read_port(body.port)
    ip = read_ip(ip[1:-1] if ip.startswith("[") and ip.endswith("]") else ip, rules)
    cluster = clusters.pop() if clusters else DEFAULT_CLUSTER
    checked(rules.cluster, cluster)
    instance = Instance(ip, port, cluster, **body.given("ip", "port", "cluster", "clusterName", "managed"))
    checked(rules.instance, instance)
    return Register(service, instance)


def read_update(
    service: ServiceKey, address: InstanceAddress, query: InstanceQuery, body: UpdateBody, rules: Rules = NACOS
) -> Update:
    """A PATCH: changes only the fields that the body names. Raises `BadCall`."""
    if not body.model_fields_set:
        known = ", ".join(UpdateBody.model_fields)
        raise BadCall("", Violation.BODY, f"The body names nothing to change; known are: {known}.")
    checked(rules.metadata, body.metadata)
    cluster = query.checked_cluster(rules) or DEFAULT_CLUSTER
    return Update(service, address.ip, address.port, cluster, partial=True, **body.given())


def read_deregister(
    service: ServiceKey, address: InstanceAddress, query: InstanceQuery, ephemeral: bool, rules: Rules = NACOS
) -> Deregister:
    """Raises `BadCall`."""
    cluster = query.checked_cluster(rules) or DEFAULT_CLUSTER
    return Deregister(service, address.ip, address.port, cluster, ephemeral)


def read_beat(
    service: ServiceKey, address: InstanceAddress, query: KindQuery, body: BeatBody | None, rules: Rules = NACOS
) -> Beat:
    """With a body a full beat, which registers an unknown instance; without one a light beat. Raises `BadCall`."""
    cluster = query.checked_cluster(rules) or DEFAULT_CLUSTER
    if body is None:
        return Beat(service, address.ip, address.port, cluster, query.ephemeral)
    checked(rules.metadata, body.metadata)
    ephemeral = body.ephemeral if "ephemeral" in body.model_fields_set else query.ephemeral
    instance = Instance(address.ip, address.port, cluster, ephemeral=ephemeral, **body.given("ephemeral"))
    checked(rules.instance, instance)
    return Beat(service, address.ip, address.port, cluster, ephemeral, full=instance)


def snapshot_json(snapshot: Snapshot, view: View, *, stale: bool = False) -> dict[str, Any]:
    """The fields of a Nacos list in its order, then our own: `namespaceId`, `revision` and `stale`."""
    shown = list_json(ServiceView(snapshot, view.of(snapshot)), view.clusters)
    return {**shown, "namespaceId": snapshot.key.namespace, "revision": snapshot.revision, "stale": stale}


def change_json(change: Change, view: View) -> dict[str, Any] | None:
    """The snapshot after a change, with `added`, `modified`, `removed`, `source`; None if the view hides the change."""
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
    """Every known instance with its true health, including disabled ones, which a snapshot hides."""
    clusters, matches = view.cluster_set, view.selector.matches
    rows = [i for i in snapshot.instances if (not clusters or i.cluster in clusters) and matches(i.metadata)]
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


def etag(revision: str, *variant: object) -> str:
    """The entity tag of one representation of a snapshot: the revision, and all else that its bytes depend on."""
    if not any(variant):
        return f'"{revision}"'
    return f'"{revision}-{blake2b(repr(variant).encode("utf-8", "replace"), digest_size=4).hexdigest()}"'


def tag_matches(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match (a list, `*`, weak ones too) covers the tag (RFC 9110 13.1.2, weak comparison)."""
    return if_none_match.strip() == "*" or tag in re.findall(r'"[^"]*"', if_none_match)

"""The shapes of our API's JSON and its parameters, for people who read `/docs`. Not for: making or checking them.

The tests hold that what is answered has these shapes.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Open(BaseModel):
    """A shape that a server's own fields may extend."""

    model_config = ConfigDict(extra="allow")


class Instance(_Open):
    """One instance of a service."""

    instanceId: str
    ip: str
    port: int
    weight: float
    healthy: bool
    enabled: bool
    ephemeral: bool
    clusterName: str
    serviceName: str
    metadata: dict[str, str | None]
    instanceHeartBeatInterval: int
    instanceHeartBeatTimeOut: int
    ipDeleteTimeout: int
    instanceIdGenerator: str | None = None


class Snapshot(_Open):
    """A service as a reader sees it. `lastRefTime` (ms since 1970) is when this state was first seen."""

    name: str
    groupName: str
    clusters: str
    cacheMillis: int
    hosts: list[Instance]
    lastRefTime: int
    checksum: str
    allIPs: bool
    reachProtectionThreshold: bool
    valid: bool
    namespaceId: str
    revision: str
    stale: bool


class Change(Snapshot):
    """The data of a `change` event."""

    added: list[Instance]
    modified: list[Instance]
    removed: list[Instance]
    source: str


class Instances(BaseModel):
    """Every known instance of a service."""

    name: str
    namespaceId: str
    count: int
    instances: list[Instance]
    revision: str
    stale: bool


class ServicePage(BaseModel):
    """One page of the names of a group's services; `count` is the number of all."""

    namespaceId: str
    groupName: str
    count: int
    page: int
    size: int
    services: list[str]
    stale: bool


class BeatAnswer(_Open):
    """What the registry says to a beat; `clientBeatInterval` is in milliseconds."""

    clientBeatInterval: int
    code: int
    lightBeatEnabled: bool


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    parameter: str | None = None
    reason: str | None = None
    upstreamStatus: int | None = None
    arrived: bool | None = None


class TargetGroup(BaseModel):
    """A target group of Prometheus's HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str]


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "description": description, **more}


def _flag(description: str, default: bool) -> dict[str, Any]:
    return {"schema": {"type": "boolean", "default": default}, "description": description}


PARAMETERS: dict[str, dict[str, Any]] = {
    "service": _text("The service's name, or `group@@name`.", example="orders"),
    "namespace": _text("The namespace's id; `public` where it is left out."),
    "group": _text("The group; `DEFAULT_GROUP` where it is left out. A `group@@` in the name wins."),
    "clusters": _text("Only instances of these clusters, separated by commas; all where it is left out."),
    "cluster": _text("The instance's cluster."),
    "healthy_only": _flag("Only healthy instances.", False),
    "ephemeral": _flag("Whether the instance is ephemeral (kept by beats) or persistent.", True),
    "address": _text("`ip:port`, an IPv6 address in brackets, in any spelling.", example="10.0.0.5:8080"),
    "page": {"schema": {"type": "integer", "minimum": 1, "default": 1}, "description": "Counts from 1."},
    "size": {"schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "description": "Per page."},
    "limit": {
        "schema": {"type": "integer", "minimum": 0, "maximum": 1000000, "default": 1000},
        "description": "How many services are shown.",
    },
    "offset": {
        "schema": {"type": "integer", "minimum": 0, "maximum": 1000000, "default": 0},
        "description": "How many services, in the order of their names, come before.",
    },
    "index": _text("The `revision` that the caller knows; empty is none."),
    "wait": _text("How long to wait at most: `30s`, `1500ms`, `2m`; five minutes is the longest.", example="30s"),
    "strategy": {
        "schema": {"enum": ["weighted", "round_robin", "random", "hash"], "default": "weighted"},
        "description": "How to choose. Weight 0 and disabled instances are never chosen.",
    },
    "key": _text("For `hash`: what is to be kept on its instance, for example a user's id."),
    "format": {
        "schema": {"enum": ["json", "text"]},
        "description": "`text` gives `ip:port`; so does `Accept: text/plain`.",
    },
    "lastEventId": _text("The id to resume behind, for readers that cannot send the `Last-Event-ID` header."),
}

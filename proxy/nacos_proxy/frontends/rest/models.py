"""pydantic models of our API's answers, for the OpenAPI document.

Answers are not made from them: they are prepared bytes. Tests check that the answers fit the models.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Open(BaseModel):
    """A server's own fields may stand beside these."""

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


class Whole(BaseModel):
    """All that the proxy knows of a service."""

    name: str
    namespaceId: str
    revision: str
    protectThreshold: float
    masking: bool
    cacheMillis: int
    lastRefTime: int
    byCluster: bool
    unreadable: list[str]
    hosts: list[Instance]
    extra: dict[str, Any]


class Instances(BaseModel):
    """Every known instance of a service."""

    name: str
    namespaceId: str
    count: int
    instances: list[Instance]
    revision: str
    stale: bool


class Picked(BaseModel):
    """Instances to send requests to, the first choice first."""

    name: str
    namespaceId: str
    count: int
    instances: list[Instance]


class Drain(BaseModel):
    """How far the drain of an instance is: `draining`, `deregistering`, `drained` or `cancelled`."""

    name: str
    namespaceId: str
    address: str
    state: str
    secondsLeft: float
    error: str


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


class DiscoveryResponse(BaseModel):
    """Envoy's, with resources of one type."""

    version_info: str
    type_url: str
    resources: list[dict[str, Any]]

"""pydantic models of our API's answers, for the OpenAPI document.

Answers are not made from them: they are prepared bytes. Tests check that the answers fit the models.
"""

from __future__ import annotations

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

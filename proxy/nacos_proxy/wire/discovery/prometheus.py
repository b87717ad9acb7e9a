"""Prometheus's HTTP service discovery (`http_sd`). A `null`, or a name that is no label, would cost the whole list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from pydantic import BaseModel

from nacos_proxy.model.services import Instance, Metadata, ServiceKey
from nacos_proxy.wire.discovery.addresses import scheme
from nacos_proxy.wire.discovery.base import Format, Shown
from nacos_proxy.wire.nacos.hosts import instance_id_of

_NOT_IN_LABELS = re.compile(r"[^0-9A-Za-z_]")
_PATH, _CONTEXT_PATHS = "prometheus.io/path", ("management.context-path", "context-path")
_PREFIX = "__meta_nacos_"


class TargetGroup(BaseModel):
    """A target group of Prometheus's HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str]


def target_groups(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """One target group per instance, because their labels differ."""
    return [_group(host, labels) for one in shown for host, labels in _labelled(one)]


def nacos_target_groups(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """As Nacos's own `/nacos/prometheus` writes them: metadata become labels under their own names.

    Nacos (tried with 2.5.1) fails as a whole if two names become the same label, leaves names that Prometheus refuses
    (`e/f`), which costs the whole list, and writes IPv6 addresses without brackets. Here each of these is a target.
    """
    return [
        _group(host, {"__meta_clusterName": host.cluster, **_metadata_labels(host, "")})
        for one in shown
        for host in one.hosts
    ]


def _group(host: Instance, labels: dict[str, str]) -> dict[str, Any]:
    return {"targets": [host.address], "labels": labels}


def _labelled(shown: Shown) -> Iterator[tuple[Instance, dict[str, str]]]:
    clusters = "".join(f",{name}" for name in sorted({host.cluster for host in shown.hosts})) + ","
    for host in shown.hosts:
        labels = {**_metadata_labels(host, f"{_PREFIX}metadata_"), **_own_labels(host, shown.key)}
        labels[f"{_PREFIX}clusters"] = clusters
        yield host, labels | _scrape_labels(host.metadata)


def _own_labels(host: Instance, key: ServiceKey) -> dict[str, str]:
    return {
        f"{_PREFIX}namespace": key.namespace,
        f"{_PREFIX}group": key.group,
        f"{_PREFIX}service": key.name,
        f"{_PREFIX}cluster": host.cluster,
        f"{_PREFIX}instance_id": instance_id_of(host, key),
        f"{_PREFIX}address": host.ip,
        f"{_PREFIX}port": str(host.port),
        f"{_PREFIX}weight": f"{host.weight:g}",
        f"{_PREFIX}healthy": "true" if host.healthy else "false",
        f"{_PREFIX}enabled": "true" if host.enabled else "false",
        f"{_PREFIX}ephemeral": "true" if host.ephemeral else "false",
    }


def _metadata_labels(host: Instance, prefix: str) -> dict[str, str]:
    """Each entry as a label. If several names become the same label (`a.b`, `a-b`), the later ones end in `_2`, `_3`.

    A name that needs no change comes first and keeps its label.
    """
    given = ((name, text, _label(prefix + name)) for name, text in host.metadata.items() if text is not None)
    found: dict[str, str] = {}
    for _, text, label in sorted(given, key=lambda row: (row[2] != prefix + row[0], row[0])):
        if label in found:
            label = next(other for number in count(2) if (other := f"{label}_{number}") not in found)
        found[label] = text
    return found


@lru_cache(maxsize=4096)
def _label(name: str) -> str:
    label = _NOT_IN_LABELS.sub("_", name)
    return label if label[:1].isalpha() or label[:1] == "_" else f"_{label}"


def _scrape_labels(metadata: Metadata) -> dict[str, str]:
    """How to scrape, as Spring Boot and others say it: the job's own settings count if these labels are missing."""
    labels: dict[str, str] = {}
    if scheme(metadata) == "https":
        labels["__scheme__"] = "https"
    if path := metadata.get(_PATH):
        labels["__metrics_path__"] = f"/{path.lstrip('/')}"
    elif context := next((text for name in _CONTEXT_PATHS if (text := metadata.get(name))), None):
        labels["__metrics_path__"] = f"/{context.strip('/')}/actuator/prometheus".replace("//", "/")
    return labels


FORMAT = Format(
    name="prometheus",
    summary="Targets for Prometheus (http_sd)",
    description="One target group per instance, its data as `__meta_nacos_*` labels. Metadata `secure=true` or "
    "`protocol=https` sets `__scheme__`; `prometheus.io/path`, or `management.context-path` or `context-path` before "
    "`/actuator/prometheus`, sets `__metrics_path__`.",
    example=[{"targets": ["10.0.0.5:8080"], "labels": {"__meta_nacos_service": "orders"}}],
    write=target_groups,
    several=True,
    healthy_only=False,
    model=list[TargetGroup],
)

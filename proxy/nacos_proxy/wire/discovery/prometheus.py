"""Prometheus's HTTP service discovery (`http_sd`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nacos_proxy.model.services import Instance, ServiceKey

_NOT_IN_LABELS = re.compile(r"[^0-9A-Za-z_]")


def target_groups(hosts: Sequence[Instance], key: ServiceKey) -> list[dict[str, Any]]:
    """One target group per instance, because their labels differ."""
    return [{"targets": [host.address], "labels": _labels(host, key)} for host in hosts]


def _labels(host: Instance, key: ServiceKey) -> dict[str, str]:
    given = ((name, text) for name, text in sorted(host.metadata.items()) if text is not None)
    own = {f"__meta_nacos_metadata_{_NOT_IN_LABELS.sub('_', name)}": text for name, text in given}
    return {
        **own,
        "__meta_nacos_namespace": key.namespace,
        "__meta_nacos_group": key.group,
        "__meta_nacos_service": key.name,
        "__meta_nacos_cluster": host.cluster,
        "__meta_nacos_weight": f"{host.weight:g}",
        "__meta_nacos_healthy": "true" if host.healthy else "false",
        "__meta_nacos_ephemeral": "true" if host.ephemeral else "false",
    }

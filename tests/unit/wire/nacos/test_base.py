"""Calls that only clients make."""

from __future__ import annotations

from nacos_proxy.wire.nacos.base import ReadPage, ReadService
from tests.helpers.build import KEY


def test_read_service_splits_clusters_for_filtering_and_keeps_them_for_the_echo() -> None:
    call = ReadService(KEY, "c1,,c2,")
    assert call.clusters == "c1,,c2,"
    assert call.cluster_set == {"c1", "c2"}
    assert ReadPage(KEY).cluster_set == frozenset()

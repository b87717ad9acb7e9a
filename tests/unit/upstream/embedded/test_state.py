"""One service of the embedded registry."""

from __future__ import annotations

import math

import pytest

from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.services import InstanceKey
from nacos_proxy.upstream.embedded.state import EMPTY_SERVICE_LIVES, InstanceOverrides, Service
from tests.helpers.build import KEY, instance

PLACE = InstanceKey("10.0.0.1", 80, "DEFAULT")


def service(*, ephemeral: bool = True) -> Service:
    return Service(KEY, ephemeral, empty_since=0.0)


def test_service_deadline_is_when_something_happens_next() -> None:
    one = service()
    assert one.deadline() == EMPTY_SERVICE_LIVES
    one.register(instance("10.0.0.1"), 10.0)
    assert (one.deadline(), one.deadline_of("10.0.0.1", 80)) == (25.0, 25.0)
    one.register(instance("10.0.0.2"), 12.0)
    assert (one.deadline(), one.deadline_of("10.0.0.2", 80)) == (25.0, 27.0)
    assert one.expire(25.0)
    assert (one.deadline(), one.deadline_of("10.0.0.1", 80)) == (27.0, 40.0)
    assert one.deadline_of("10.9.9.9", 80) == math.inf


def test_service_deadline_is_never_for_a_persistent_service_with_instances() -> None:
    one = service(ephemeral=False)
    one.register(instance("10.0.0.1", ephemeral=False), 0.0)
    assert (one.deadline(), one.deadline_of("10.0.0.1", 80)) == (math.inf, math.inf)
    assert not one.expire(1e9)
    one.deregister("10.0.0.1", 80, False, 100.0)
    assert one.deadline() == 100.0 + EMPTY_SERVICE_LIVES


def test_service_register_refuses_the_other_kind_with_the_text_of_nacos() -> None:
    with pytest.raises(Refused, match="is ephemeral service, can't register persistent instance") as caught:
        service().register(instance("10.0.0.1", ephemeral=False), 0.0)
    assert caught.value.reason is Reason.WRONG_KIND
    with pytest.raises(Refused, match="is persistent service, can't register ephemeral instance"):
        service(ephemeral=False).register(instance("10.0.0.1"), 0.0)


def test_service_override_holds_for_its_cluster_and_ends_with_the_instance() -> None:
    one = service()
    one.register(instance("10.0.0.1", weight=3.0), 0.0)
    one.override(InstanceKey("10.0.0.1", 80, "c9"), InstanceOverrides(weight=9.0))
    assert one.snapshot().instances[0].weight == 3.0
    one.override(PLACE, InstanceOverrides(weight=5.0))
    assert one.snapshot().instances[0].weight == 5.0
    one.expire(30.0)
    one.register(instance("10.0.0.1", weight=3.0), 31.0)
    assert one.snapshot().instances[0].weight == 3.0


def test_service_overrides_of_without_overrides_change_nothing() -> None:
    one = service()
    assert one.overrides_of(PLACE) == InstanceOverrides()
    one.register(instance("10.0.0.1", weight=3.0, enabled=False), 0.0)
    assert one.overrides_of(PLACE) == InstanceOverrides(3.0, False)
    one.override(PLACE, InstanceOverrides(4.0))
    assert one.overrides_of(PLACE) == InstanceOverrides(4.0)


def test_service_snapshot_is_the_same_object_while_unchanged() -> None:
    one = service()
    one.register(instance("10.0.0.1"), 0.0)
    first = one.snapshot()
    one.beat("10.0.0.1", 80, 1.0)
    assert one.snapshot() is first
    one.expire(16.0)
    assert one.snapshot() is not first
    assert one.beat("10.9.9.9", 80, 1.0) is None

"""The shapes in `/docs` are those of the JSON: every field is named, in its order."""

from __future__ import annotations

from nacos_proxy.frontends.rest.models import Instance, Instances, Snapshot
from nacos_proxy.model.services import Change as ModelChange
from nacos_proxy.model.views import View
from nacos_proxy.wire.nacos.hosts import host_json
from nacos_proxy.wire.rest.bodies import change_json, instances_json, snapshot_json
from tests.helpers.build import KEY, instance, snapshot
from tests.unit.frontends.conftest import Change

A = snapshot(instance())


def test_models_have_the_fields_of_the_answers_in_their_order() -> None:
    change = change_json(ModelChange(snapshot(), A, "poll"), View())
    assert change is not None
    for shape, shown in (
        (Instance, host_json(instance(), KEY)),
        (Snapshot, snapshot_json(A, View())),
        (Instances, instances_json(A, View())),
        (Change, change),
    ):
        assert list(shape.model_fields) == list(shown)

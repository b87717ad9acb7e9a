"""Calls as values."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nacos_proxy.model import calls
from nacos_proxy.model.calls import Beat, Call, Deregister, Fetch, Update, Write
from tests.helpers.build import KEY, instance, key

KINDS = [
    kind for kind in vars(calls).values() if isinstance(kind, type) and issubclass(kind, Call) and kind is not Call
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_call_is_a_frozen_dataclass(kind: type[Any]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [k for k in KINDS if issubclass(k, Write)], ids=lambda kind: kind.__name__)
def test_every_write_has_its_service_first(kind: type[Any]) -> None:
    assert dataclasses.fields(kind)[0].name == "service"


def test_update_drops_nulls_from_metadata() -> None:
    assert Update(KEY, "10.0.0.1", 80, metadata={"a": "1", "b": None}).metadata == {"a": "1"}
    assert Update(KEY, "10.0.0.1", 80).metadata is None
    assert Update(KEY, "10.0.0.1", 80, metadata={}).metadata == {}


def test_calls_compare_by_value() -> None:
    assert Fetch(KEY) == Fetch(key("orders")) and hash(Fetch(KEY)) == hash(Fetch(key("orders")))
    assert Deregister(KEY, "10.0.0.1", 80) == Deregister(KEY, "10.0.0.1", 80, "DEFAULT", True)
    assert Update(KEY, "10.0.0.1", 80) != Update(KEY, "10.0.0.1", 80, partial=True)
    assert Beat(KEY, "10.0.0.1", 80) != Beat(KEY, "10.0.0.1", 80, full=instance())

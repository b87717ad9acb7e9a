"""What the embedded registry says of itself is what 2.5.1 was recorded to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from proxy.registry.switches import STATE, SWITCHES
from tests.helpers.recordings import load


@pytest.mark.parametrize(("case", "ours"), [("v1 operator switches", SWITCHES), ("v1 server state", STATE)])
def test_it_has_the_fields_of_the_recording_in_their_order(case: str, ours: Mapping[str, Any]) -> None:
    [recorded] = [row.body for row in load("nacos-2.5.1") if row.case == case]
    assert list(ours) == list(recorded)
    assert {name for name in ours if type(ours[name]) is not type(recorded[name])} == set()

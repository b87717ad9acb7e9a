"""What is written to the state file is read as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nacos_proxy.background.state_rows import (
    UNREADABLE,
    dump_writes,
    journal_row,
    load_lasting,
    load_waiting,
    load_writes,
    registry_row,
)
from nacos_proxy.catalog.journal import Journal, LocalWrite
from nacos_proxy.model.calls import Beat, Deregister, Register, Update
from nacos_proxy.model.services import EMPTY, Checking
from nacos_proxy.upstream.embedded.persistence import SWITCHES_KEY
from nacos_proxy.upstream.embedded.state import InstanceOverrides, PersistentService
from nacos_proxy.upstream.embedded.switches import SWITCHES
from tests.helpers.build import KEY, instance

A = instance("::1", 80, cluster="blue", weight=2.0, enabled=False, metadata={"zone": "ä"}, extra={"x": [1]})
WRITES: list[LocalWrite] = [
    Register(KEY, A),
    Deregister(KEY, "::1", 80, "blue"),
    Update(KEY, "::1", 80, weight=0.0, enabled=False, metadata={"a": "1"}, partial=True),
    Update(KEY, "::1", 80),
    Beat(KEY, "::1", 80, full=A),
    Beat(KEY, "::1", 80),
]


def test_load_writes_reverses_dump_writes() -> None:
    assert load_writes(KEY, dump_writes(WRITES)) == tuple(WRITES)


def test_load_waiting_reverses_journal_row_and_what_is_done_has_no_body() -> None:
    journal = Journal()
    journal.add(WRITES[0], 7.0)
    place, gone = (KEY, "::1", 80), (KEY, "::2", 80)
    kept, done = (journal_row((p, journal.get(p))) for p in (place, gone))
    assert load_waiting(kept) == (place, journal.get(place))
    assert done[-1] == b""


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"kind":"Fetch"}]', b'[{"kind":"Register","more":1}]'])
def test_load_raises_for_a_row_that_cannot_be_understood(body: bytes) -> None:
    if body == b"{}":
        assert load_writes(KEY, body) == ()
        return
    with pytest.raises(UNREADABLE):
        load_writes(KEY, body)


KEPT = PersistentService(
    False, True, 0.5, {"a": None}, {"type": "label", "expression": "x"},
    {"c": Checking({"type": "TCP"}, 81, False, {"m": "1"})},
    ((replace(A, ephemeral=False), False, InstanceOverrides(2.0, False, {"b": "2"})),
     (instance(ephemeral=False), True, None)),
)  # fmt: skip


ODD: list[dict[str, Any]] = [{"ip": 1}, {"metadata": ["a"]}, {"metadata": "ab"}]


def test_load_lasting_reverses_registry_row() -> None:
    assert load_lasting(registry_row((KEY, KEPT))) == (KEY, KEPT)
    assert load_lasting(registry_row((KEY, PersistentService(True, True, 0.0, EMPTY, {"type": "none"}, EMPTY, ()))))[
        1
    ] == PersistentService(True, True, 0.0, {}, {"type": "none"}, {}, ())
    odd = {**SWITCHES, "unknown": 1, "clientBeatInterval": "soon"}
    assert load_lasting(registry_row((SWITCHES_KEY, odd)))[1] == {
        name: value for name, value in SWITCHES.items() if name != "clientBeatInterval"
    }
    assert registry_row((KEY, None))[-1] == b""


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"[]", b'{"checks":{},"places":[1]}', b'{"checks":{},"places":[],"x":1}'),
        *(
            registry_row((KEY, replace(KEPT, places=((replace(A, **odd), True, None), *KEPT.places))))[-1]
            for odd in ODD
        ),
    ],
)
def test_load_lasting_raises_for_a_row_that_cannot_be_understood(body: bytes) -> None:
    for place in (KEY, SWITCHES_KEY):
        if place == KEY or body[:1] != b"{":
            with pytest.raises(UNREADABLE):
                load_lasting((*place, body))

"""What is written to the state file is read as it was."""

from __future__ import annotations

import pytest

from proxy.calls import Beat, Deregister, Register, Update
from proxy.catalog.journal import Journal, JournalPolicy, Local
from proxy.rows import UNREADABLE, dump_writes, journal_row, load_waiting, load_writes
from tests.helpers.build import KEY, instance

A = instance("::1", 80, cluster="blue", weight=2.0, enabled=False, metadata={"zone": "ä"}, extra={"x": [1]})
WRITES: list[Local] = [
    Register(KEY, A),
    Deregister(KEY, "::1", 80, "blue"),
    Update(KEY, "::1", 80, weight=0.0, enabled=False, metadata={"a": "1"}, partial=True),
    Update(KEY, "::1", 80),
    Beat(KEY, "::1", 80, full=A),
    Beat(KEY, "::1", 80),
]


def test_a_write_comes_back_as_it_was() -> None:
    assert load_writes(KEY, dump_writes(WRITES)) == tuple(WRITES)


def test_what_waits_of_a_place_comes_back_and_what_is_done_has_no_body() -> None:
    journal = Journal(JournalPolicy())
    journal.add(WRITES[0], 7.0)
    place, gone = (KEY, "::1", 80), (KEY, "::2", 80)
    kept, done = (journal_row((p, journal.get(p))) for p in (place, gone))
    assert load_waiting(kept) == (place, journal.get(place))
    assert done[-1] == b""


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"kind":"Fetch"}]', b'[{"kind":"Register","more":1}]'])
def test_what_cannot_be_understood_says_so(body: bytes) -> None:
    if body == b"{}":
        assert load_writes(KEY, body) == ()
        return
    with pytest.raises(UNREADABLE):
        load_writes(KEY, body)

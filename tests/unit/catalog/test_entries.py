"""Under which bound an entry is kept: pinned ones under none, names that nobody registered under one of their own."""

import itertools

from cachetools import LRUCache

from nacos_proxy.catalog.entries import (
    LANES,
    READS,
    REGISTERED_HERE,
    UNLIKELY,
    Entry,
    EntryStore,
    discovery,
)
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import instance, key, snapshot

READER = ("127.0.0.1", 1)
NAMES = (key(f"s{number}") for number in itertools.count())


def shelf(known: int = 2, unknown: int = 2) -> EntryStore:
    return EntryStore(LRUCache(known), LRUCache(unknown))


def known_entry() -> Entry:
    service = next(NAMES)
    return Entry(service, visible=snapshot(instance(), service=service))


def unknown_entry() -> Entry:
    return Entry(next(NAMES))


def place(on: EntryStore, *entries: Entry) -> list[ServiceKey]:
    for entry in entries:
        on.put(entry)
    return [entry.key for entry in entries]


def test_names_that_nobody_registered_push_out_each_other_and_nothing_else() -> None:
    kept = shelf()
    real = place(kept, known_entry(), known_entry())
    names = place(kept, *(unknown_entry() for _ in range(1_000)))
    assert all(kept.get(name) is not None for name in real)
    assert [name for name in names if kept.get(name) is not None] == names[-2:]
    assert len(kept) == 4


def test_known_services_push_out_the_one_that_was_looked_at_longest_ago() -> None:
    kept = shelf(known=2)
    first, second = place(kept, known_entry(), known_entry())
    assert kept.get(first) is not None
    place(kept, known_entry())
    assert kept.get(first) is not None
    assert kept.get(second) is None


def test_who_is_listened_to_or_registered_here_is_never_pushed_out() -> None:
    kept = shelf(known=1, unknown=1)
    listened, owned = known_entry(), unknown_entry()
    listened.join(READER)
    owned.local_registrations = 1
    place(kept, listened, owned, *(known_entry() for _ in range(5)), *(unknown_entry() for _ in range(5)))
    assert kept.get(listened.key) is listened
    assert kept.get(owned.key) is owned
    assert len(kept) == 4


def test_an_entry_moves_when_what_is_known_of_it_changes_and_stays_one() -> None:
    kept = shelf()
    entry = unknown_entry()
    place(kept, entry)
    for change in ("known", "pinned", "known", "unknown"):
        entry.watchers.clear()
        if change == "pinned":
            entry.join(READER)
        entry.visible = snapshot(instance(), service=entry.key) if change != "unknown" else None
        kept.put(entry)
        assert kept.get(entry.key) is entry
        assert len(kept) == 1
        assert [len(part) for part in (kept.pinned, kept.known, kept.unknown)] == [
            int(change == name) for name in ("pinned", "known", "unknown")
        ]


def test_an_emptied_service_counts_as_unknown_until_someone_listens() -> None:
    entry = unknown_entry()
    entry.visible = snapshot(service=entry.key)
    assert entry.unknown
    entry.join(READER)
    assert not entry.unknown and entry.pinned


def test_entries_come_pinned_first_and_may_move_meanwhile() -> None:
    kept = shelf()
    pinned, known, unknown = known_entry(), known_entry(), unknown_entry()
    pinned.join(READER)
    place(kept, unknown, known, pinned)
    seen = []
    for entry in kept:
        seen.append(entry)
        entry.watchers.clear()
        kept.put(entry)
    assert seen[0] is pinned and set(map(id, seen)) == {id(pinned), id(known), id(unknown)}


def test_iterating_does_not_change_the_eviction_order() -> None:
    """A scrape evicted services in use and kept idle ones."""
    kept = shelf()
    used, idle = place(kept, known_entry(), known_entry())
    assert kept.get(used) is not None
    assert {entry.key for entry in kept} == {used, idle}
    place(kept, known_entry())
    assert (kept.get(used) is not None, kept.get(idle)) == (True, None)


def test_each_leave_undoes_one_join() -> None:
    entry = known_entry()
    entry.join(READER)
    entry.join(READER)
    for left in (1, 0, 0):
        entry.leave(READER)
        assert (entry.listeners, entry.pinned) == (left, left > 0)


def test_an_entry_waits_by_who_wants_it() -> None:
    """Streams each have a lane, unlikely names one for each client, and reads and discovery one for themselves."""
    entry = known_entry()
    entry.ever_nonempty = True
    assert entry.lanes(read_since=0) == (discovery(entry.key),)
    entry.last_read = 1
    assert entry.lanes(read_since=0) == (READS,)
    entry.last_read, entry.local_registrations = -1, 1
    assert entry.lanes(read_since=0) == (REGISTERED_HERE,)
    other = ("10.0.0.1", 7)
    assert (entry.join(READER), entry.join(other)) == (READER, other)
    assert list(entry.lanes(read_since=0)) == [READER, other]
    for stream in range(1000):  # of one client a few are looked at, so that others' are
        entry.join((READER[0], 100 + stream))
    assert len(list(entry.lanes(read_since=0))) == LANES + 1 and other in entry.lanes(read_since=0)
    entry.ever_nonempty, entry.local_registrations = False, 0
    assert entry.join(other) == ("10.0.0.1", UNLIKELY)
    assert list(entry.lanes(read_since=0)) == [("127.0.0.1", UNLIKELY), ("10.0.0.1", UNLIKELY)]

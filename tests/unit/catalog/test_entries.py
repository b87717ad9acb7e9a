"""Entries, their lanes, and which of them the store evicts."""

import itertools
from functools import partial

from cachetools import LRUCache

from nacos_proxy.catalog.entries import MAX_LANES, READS, REGISTERED_HERE, UNLIKELY, Entry, EntryStore, discovery_lane
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import instance, key, snapshot

READER = ("127.0.0.1", 1)
NAMES = (key(f"s{number}") for number in itertools.count())


def store(known: int = 2, unknown: int = 2) -> EntryStore:
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


def test_entry_store_evicts_unknown_services_only_for_unknown_services() -> None:
    kept = store()
    real = place(kept, known_entry(), known_entry())
    names = place(kept, *(unknown_entry() for _ in range(1_000)))
    assert all(kept.get(name) is not None for name in real)
    assert [name for name in names if kept.get(name) is not None] == names[-2:]
    assert len(kept) == 4


def test_entry_store_evicts_the_least_recently_used_known_service() -> None:
    kept = store(known=2)
    first, second = place(kept, known_entry(), known_entry())
    assert kept.get(first) is not None
    place(kept, known_entry())
    assert kept.get(first) is not None
    assert kept.get(second) is None


def sleeping(on: EntryStore, number: int) -> list[ServiceKey]:
    """Dormant entries of known services."""
    entries = [known_entry() for _ in range(number)]
    on.dormant.update((entry.key, partial(on.put, entry)) for entry in entries)
    return [entry.key for entry in entries]


def test_entry_store_get_and_iter_make_dormant_entries() -> None:
    kept = store(known=3)
    names = sleeping(kept, 3)
    assert (len(kept), len(kept.known)) == (3, 0)
    found = kept.get(names[1])
    assert found is not None and found.key == names[1]
    assert (len(kept), len(kept.known)) == (3, 1)
    assert {entry.key for entry in kept} == set(names)
    assert (len(kept), len(kept.known), kept.wake(1)) == (3, 3, 0)


def test_entry_store_wake_evicts_no_used_service_for_a_dormant_one() -> None:
    kept = store(known=2)
    (used,) = place(kept, known_entry())
    oldest, latest = sleeping(kept, 2)
    assert kept.wake(1) == 1
    assert kept.wake(1) == 0
    assert (kept.get(oldest), kept.get(used) is None, kept.get(latest) is None) == (None, False, False)


def test_entry_store_get_finds_nothing_if_a_dormant_entry_cannot_be_made() -> None:
    kept = store()
    kept.dormant[key("spoilt")] = lambda: None
    assert (kept.get(key("spoilt")), len(kept)) == (None, 0)


def test_entry_store_never_evicts_pinned_entries() -> None:
    kept = store(known=1, unknown=1)
    listened, owned = known_entry(), unknown_entry()
    listened.add_watcher(READER)
    owned.local_registrations = 1
    place(kept, listened, owned, *(known_entry() for _ in range(5)), *(unknown_entry() for _ in range(5)))
    assert kept.get(listened.key) is listened
    assert kept.get(owned.key) is owned
    assert len(kept) == 4


def test_entry_store_put_moves_an_entry_that_changed() -> None:
    kept = store()
    entry = unknown_entry()
    place(kept, entry)
    for change in ("known", "pinned", "known", "unknown"):
        entry.watchers.clear()
        if change == "pinned":
            entry.add_watcher(READER)
        entry.visible = snapshot(instance(), service=entry.key) if change != "unknown" else None
        kept.put(entry)
        assert kept.get(entry.key) is entry
        assert len(kept) == 1
        assert [len(part) for part in (kept.pinned, kept.known, kept.unknown)] == [
            int(change == name) for name in ("pinned", "known", "unknown")
        ]


def test_entry_unknown_holds_for_an_empty_service_until_someone_listens() -> None:
    entry = unknown_entry()
    entry.visible = snapshot(service=entry.key)
    assert entry.unknown
    entry.add_watcher(READER)
    assert not entry.unknown and entry.pinned


def test_entry_store_iterates_pinned_entries_first_while_entries_move() -> None:
    kept = store()
    pinned, known, unknown = known_entry(), known_entry(), unknown_entry()
    pinned.add_watcher(READER)
    place(kept, unknown, known, pinned)
    seen = []
    for entry in kept:
        seen.append(entry)
        entry.watchers.clear()
        kept.put(entry)
    assert seen[0] is pinned and set(map(id, seen)) == {id(pinned), id(known), id(unknown)}


def test_entry_store_iteration_does_not_change_the_eviction_order() -> None:
    """A scrape evicted services in use and kept idle ones."""
    kept = store()
    used, idle = place(kept, known_entry(), known_entry())
    assert kept.get(used) is not None
    assert {entry.key for entry in kept} == {used, idle}
    place(kept, known_entry())
    assert (kept.get(used) is not None, kept.get(idle)) == (True, None)


def test_entry_remove_watcher_undoes_one_add_watcher() -> None:
    entry = known_entry()
    entry.add_watcher(READER)
    entry.add_watcher(READER)
    for left in (1, 0, 0):
        entry.remove_watcher(READER)
        assert (entry.watcher_count, entry.pinned) == (left, left > 0)


def test_entry_lanes_depend_on_who_wants_the_service() -> None:
    """A stream has a lane of its own; the unlikely services of a client share one, and so do reads and discovery."""
    entry = known_entry()
    entry.ever_nonempty = True
    assert entry.lanes(read_since=0) == (discovery_lane(entry.key),)
    entry.last_read = 1
    assert entry.lanes(read_since=0) == (READS,)
    entry.last_read, entry.local_registrations = -1, 1
    assert entry.lanes(read_since=0) == (REGISTERED_HERE,)
    other = ("10.0.0.1", 7)
    assert (entry.add_watcher(READER), entry.add_watcher(other)) == (READER, other)
    assert list(entry.lanes(read_since=0)) == [READER, other]
    for stream in range(1000):  # only a few of one client count, so that others are considered
        entry.add_watcher((READER[0], 100 + stream))
    assert len(list(entry.lanes(read_since=0))) == MAX_LANES + 1 and other in entry.lanes(read_since=0)
    entry.ever_nonempty, entry.local_registrations = False, 0
    assert entry.add_watcher(other) == ("10.0.0.1", UNLIKELY)
    assert list(entry.lanes(read_since=0)) == [("127.0.0.1", UNLIKELY), ("10.0.0.1", UNLIKELY)]

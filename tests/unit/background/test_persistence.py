"""The last known state: what a kill, a full disk, a damaged file leave of it."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import resource
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.background.persistence import CONTACTS_EVERY, EVERY, PATIENCE, Persistence, PersistencePolicy
from nacos_proxy.background.state_file import FILE, Batch, StateFile, StateLocked
from nacos_proxy.background.state_rows import JOURNAL_TABLE, REGISTRY_TABLE, dump_snapshot, load_snapshot
from nacos_proxy.catalog.cache import CachePolicy
from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.freshness import CacheControl, Freshness
from nacos_proxy.catalog.journal import JournalEntry
from nacos_proxy.catalog.registrations import CONNECTION, RegistrationKey
from nacos_proxy.catalog.udp_subscribers import UdpSubscribers, UdpSubscribersPolicy
from nacos_proxy.core.agent import Agent, AgentPolicy
from nacos_proxy.model.calls import Beat, CreateService, Deregister, Fetch, Metrics, Register, Update
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot, diff
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.embedded.registry import EmbeddedRegistry
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf

POLICY = PersistencePolicy()


class Life:
    """An agent and its disk between a start and an end; `ends` is a graceful stop, `killed` is none."""

    def __init__(
        self, directory: Path, clock: FakeClock, *, shelf: Shelf | None = None, policy: PersistencePolicy = POLICY,
        local: bool = False, udp_subscribers: UdpSubscribers | None = None, **more: Any,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.registry = ScriptedRegistry(shelf or Shelf())
        self.agent: Agent = agent(
            self.registry, clock, lambda change: self.disk.mark(change), policy=AgentPolicy(outage_writes=local), **more
        )
        self.file = StateFile(directory)
        self.disk = Persistence(self.file, self.agent, policy, udp_subscribers=udp_subscribers)

    def names(self) -> list[str]:
        return sorted(e.key.name for e in self.agent.catalog.cache.entries() if e.visible is not None)

    def registered(self) -> list[str]:
        return sorted(r.instance.address for r in self.agent.catalog.registrations)

    async def ends(self) -> None:
        await self.disk.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def rows(directory: Path, table: str = "service") -> list[tuple[Any, ...]]:
    """What another program sees in the file."""
    db = sqlite3.connect(directory / FILE)
    try:
        return db.execute(f"SELECT * FROM {table} ORDER BY name").fetchall()
    finally:
        db.close()


def alter(directory: Path, statement: str, *values: object) -> None:
    db = sqlite3.connect(directory / FILE)
    try:
        with db:
            db.execute(statement, values)
    finally:
        db.close()


# what is written, and read again

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_instances = st.builds(
    Instance,
    ip=_text,
    port=st.integers(0, 65535),
    cluster=_text,
    weight=st.floats(0, 10_000),
    healthy=st.booleans(),
    enabled=st.booleans(),
    ephemeral=st.booleans(),
    metadata=st.dictionaries(_text, _text, max_size=3),
    instance_id=_text,
    extra=st.dictionaries(_text, st.none() | st.integers(-(2**53), 2**53) | _text | st.lists(_text), max_size=3),
)
_snapshots = st.builds(
    Snapshot.of,
    st.just(KEY),
    st.lists(_instances, max_size=4),
    threshold=st.floats(0, 1),
    masking=st.booleans(),
    cache_millis=st.integers(0, 100_000),
    extra=st.dictionaries(_text, _text, max_size=2),
    last_ref_time=st.integers(0, 2**53),
)


@given(_snapshots)
def test_load_snapshot_reverses_dump_snapshot(was: Snapshot) -> None:
    back = load_snapshot(KEY, dump_snapshot(was))
    assert back == was
    assert (back.revision, back.last_ref_time) == (was.revision, was.last_ref_time)


async def test_restore_serves_the_last_known_state_with_its_age(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance(metadata={"zone": "a"}))))
    known = (await first.agent.read(KEY)).snapshot
    await first.ends()
    await clock.advance(60)

    second = Life(tmp_path, clock)
    assert second.disk.restore() == 1
    look = await second.agent.read(KEY)
    assert (look.snapshot, look.age, look.from_disk, look.freshness) == (known, 60.0, True, Freshness.STALE)
    await second.ends()


async def test_restore_does_not_replace_what_was_fetched_since_the_start(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance("10.0.0.1"))))
    await first.agent.read(KEY)
    await first.ends()
    second = Life(tmp_path, clock, shelf=Shelf(snapshot(instance("10.0.0.2"))))
    await second.agent.read(KEY)
    second.disk.restore()
    look = await second.agent.read(KEY)
    assert look.snapshot is not None
    assert [i.ip for i in look.snapshot.instances] == ["10.0.0.2"]
    await second.ends()


async def test_restore_keeps_an_emptied_service_empty(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await first.agent.read(KEY)
    await first.disk.flush()
    await first.agent.write(Deregister(KEY, "10.0.0.1", 80))
    await first.ends()
    second = Life(tmp_path, clock)
    second.disk.restore()
    look = second.agent.catalog.cache.lookup(KEY, clock.now())
    assert look.snapshot is not None and look.snapshot.instances == ()
    await second.ends()


async def test_start_writes_batches_periodically(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    life.disk.start()
    await life.agent.read(KEY)
    assert rows(tmp_path) == []
    await clock.advance(EVERY)
    while not life.disk.written:
        await asyncio.sleep(0)
    assert [row[2] for row in rows(tmp_path)] == ["orders"]
    await life.ends()


async def test_flush_writes_once_for_a_batch_and_not_at_all_without_changes(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(*(snapshot(instance(), service=key(f"s{n}")) for n in range(50))))
    for n in range(50):
        await life.agent.read(key(f"s{n}"))
    await life.disk.flush()
    await life.disk.flush()
    assert life.disk.written == 1
    assert len(rows(tmp_path)) == 50
    await life.ends()


async def test_flush_writes_confirmations_without_a_change(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await life.agent.read(KEY)
    await life.disk.flush()
    (before,) = rows(tmp_path)
    await clock.advance(40)
    life.agent.refresh(KEY)
    await clock.advance(0)
    await life.disk.flush()
    (after,) = rows(tmp_path)
    assert after[4] - before[4] == 40
    assert after[3] == before[3]
    await life.ends()


async def test_restore_with_a_clock_that_was_set_back_makes_nothing_younger_than_now(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await first.agent.read(KEY)
    await first.ends()
    second = Life(tmp_path, FakeClock(wall=0.0))
    second.disk.restore()
    assert second.agent.catalog.cache.lookup(KEY, second.clock.now()).age == 0.0
    await second.ends()


# bounds


async def test_flush_keeps_the_services_confirmed_last(tmp_path: Path, clock: FakeClock) -> None:
    policy = PersistencePolicy(max_rows=3)
    life = Life(
        tmp_path, clock, shelf=Shelf(*(snapshot(instance(), service=key(f"s{n}")) for n in range(6))), policy=policy
    )
    for n in range(6):
        await life.agent.read(key(f"s{n}"))
        await life.disk.flush()
        await clock.advance(31)
    await life.ends()
    assert [row[2] for row in rows(tmp_path)] == ["s3", "s4", "s5"]


async def test_flush_writes_a_service_again_whose_row_was_dropped_for_newer_ones(
    tmp_path: Path, clock: FakeClock
) -> None:
    shelf = Shelf(*(snapshot(instance(), service=key(name)) for name in "abc"))
    life = Life(tmp_path, clock, shelf=shelf, policy=PersistencePolicy(max_rows=2))
    for name in "abca":
        await life.agent.read(key(name), CacheControl(no_cache=True))
        await life.disk.flush()
        await clock.advance(31)
    await life.ends()
    assert [row[2] for row in rows(tmp_path)] == ["a", "c"]


async def test_restore_gives_a_small_cache_the_services_confirmed_last(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(*(snapshot(instance(), service=key(n)) for n in "zyxw")))
    for name in "zyxw":
        await first.agent.read(key(name))
        await clock.advance(1)
    await first.ends()
    second = Life(tmp_path, clock, cache=CachePolicy(max_services=2))
    second.disk.restore()
    assert second.names() == ["w", "x"]
    await second.ends()


async def test_restore_drops_no_service_for_one_without_instances(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(*(snapshot(instance(), service=key(n)) for n in "abyz")))
    for name in "abyz":
        await first.agent.read(key(name))
    for name in "yz":
        await first.agent.write(Deregister(key(name), "10.0.0.1", 80))
    await first.ends()
    second = Life(tmp_path, clock, cache=CachePolicy(max_services=2))
    second.disk.restore()
    await second.ends()
    assert second.names() == ["a", "b", "y", "z"]
    assert sorted(row[2] for row in rows(tmp_path)) == ["a", "b", "y", "z"]


async def test_flush_writes_a_service_that_never_changes(tmp_path: Path, clock: FakeClock) -> None:
    """What is confirmed unchanged is no change that anybody is told of, and known all the same."""
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(service=key("empty"))))
    await life.agent.read(key("empty"))
    await clock.advance(CONTACTS_EVERY)
    await life.agent.read(key("empty"), CacheControl(no_cache=True))
    await life.disk.flush()
    assert [row[2] for row in rows(tmp_path)] == ["empty"]
    await life.ends()


async def test_close_writes_what_has_no_row(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(service=key("empty"))))
    await life.disk.flush()
    await life.agent.read(key("empty"))
    await life.ends()
    assert [row[2] for row in rows(tmp_path)] == ["empty"]


@pytest.mark.parametrize("jump", [30 * 86_400, -30 * 86_400])
async def test_flush_drops_no_row_when_the_clock_jumps(tmp_path: Path, clock: FakeClock, jump: float) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await life.agent.read(KEY)
    await life.disk.flush()
    for by in (jump, -jump):
        clock.oversleep(by)
        await clock.advance(CONTACTS_EVERY)
        await life.disk.flush()
        assert len(rows(tmp_path)) == 1
    await life.ends()
    second = Life(tmp_path, clock)
    clock.oversleep(jump)
    assert second.disk.restore() == 1
    await second.ends()


async def test_flush_deletes_the_row_of_a_service_that_left_memory(tmp_path: Path, clock: FakeClock) -> None:
    shelf = Shelf(*(snapshot(instance(), service=key(n)) for n in "abc"))
    life = Life(tmp_path, clock, shelf=shelf, cache=CachePolicy(max_services=2))
    for name in "abc":
        await life.agent.read(key(name))
        await life.disk.flush()
    assert [row[2] for row in rows(tmp_path)] == ["a", "b", "c"]
    await clock.advance(CONTACTS_EVERY)
    await life.disk.flush()
    assert [row[2] for row in rows(tmp_path)] == ["b", "c"]
    await life.ends()


# registrations


async def register(life: Life, *ips: str, beat: bool = True, **fields: Any) -> None:
    for ip in ips:
        await life.agent.write(Register(KEY, instance(ip, **fields)))
        if beat:
            await life.agent.write(Beat(KEY, ip, 80))


async def test_restore_keeps_registrations_and_watches_their_services(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock)
    await register(first, "10.0.0.1", "10.0.0.2", metadata={"zone": "a"})
    await first.agent.write(Deregister(KEY, "10.0.0.2", 80))
    await first.ends()
    second = Life(tmp_path, clock)
    second.disk.restore()
    (known,) = second.agent.catalog.registrations
    assert (known.instance, known.beats) == (instance("10.0.0.1", metadata={"zone": "a"}), True)
    assert KEY in second.agent.catalog.cache.watched_keys()
    await second.ends()


async def test_restore_after_a_kill_does_not_forget_a_beating_client(tmp_path: Path, clock: FakeClock) -> None:
    """Beats are written down every 30 s only, after which Nacos itself drops a client that is silent."""
    first = Life(tmp_path, clock)
    await register(first, "10.0.0.1")
    await first.disk.flush()
    for _ in range(5):  # 29 s of beats, none of them written yet
        await clock.advance(5.8)
        await first.agent.write(Beat(KEY, "10.0.0.1", 80))
        await first.disk.flush()
    first.file.close()  # a kill: no last batch
    await clock.advance(2)

    second = Life(tmp_path, clock)
    second.disk.restore()
    assert second.registered() == ["10.0.0.1:80"]
    await second.ends()


async def test_restore_after_a_long_time_keeps_only_persistent_and_managed_instances(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock)
    await register(first, "10.0.0.1")
    await register(first, "10.0.0.2", beat=False)
    await register(first, "10.0.0.3", beat=False, ephemeral=False)
    await register(first, "10.0.0.4", beat=False)
    managed = first.agent.catalog.registrations.find(KEY, "10.0.0.4", 80)
    assert managed is not None
    managed.check = {"check": {"ttl": "30s"}}
    await first.ends()
    await clock.advance(3600)
    second = Life(tmp_path, clock)
    second.disk.restore()
    assert second.registered() == ["10.0.0.3:80", "10.0.0.4:80"]
    await second.ends()


async def test_restore_keeps_the_instances_of_connections_if_they_cannot_have_lapsed_long_ago(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock)
    await register(first, "10.0.0.1")
    (of_connection,) = first.agent.catalog.registrations
    of_connection.check = CONNECTION
    await first.ends()
    for later, kept in ((50.0, ["10.0.0.1:80"]), (12.0, [])):  # 30 s of silence, 31 s in which beats may be unwritten
        await clock.advance(later)
        next_one = Life(tmp_path, clock)
        next_one.disk.restore()
        assert next_one.registered() == kept
        assert [r.last_heard for r in next_one.agent.catalog.registrations] == [clock.now()] * len(kept)
        next_one.file.close()


async def test_persist_registrations_makes_them_and_their_end_survive_a_kill(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock)
    for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        await register(first, ip)
    await asyncio.gather(*(first.disk.persist_registrations([(KEY, f"10.0.0.{n}", 80)]) for n in (1, 2)))
    assert len(rows(tmp_path, "registration")) == 2
    await first.agent.write(Deregister(KEY, "10.0.0.1", 80))
    await first.disk.persist_registrations([(KEY, "10.0.0.1", 80), (KEY, "10.0.0.9", 80)])
    first.file.close()  # a kill: no last batch
    second = Life(tmp_path, clock)
    second.disk.restore()
    assert second.registered() == ["10.0.0.2:80"]
    await second.ends()


async def test_persist_registrations_that_fails_is_a_degraded_state_and_written_later(
    tmp_path: Path, clock: FakeClock
) -> None:
    life = Life(tmp_path, clock)
    await register(life, "10.0.0.1")
    await life.disk.flush()
    await register(life, "10.0.0.2")
    alter(tmp_path, "ALTER TABLE registration RENAME TO away")
    await life.disk.persist_registrations([(KEY, "10.0.0.2", 80)])
    assert "no such table" in life.disk.failing
    await life.disk.persist_registrations([(KEY, "10.0.0.2", 80)])
    alter(tmp_path, "ALTER TABLE away RENAME TO registration")
    await life.disk.flush()
    assert (life.disk.failing, len(rows(tmp_path, "registration"))) == ("", 2)
    await life.ends()


async def test_flush_deletes_the_last_registration(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock)
    await register(life, "10.0.0.1")
    await life.disk.flush()
    assert len(rows(tmp_path, "registration")) == 1
    await life.agent.write(Deregister(KEY, "10.0.0.1", 80))
    await life.disk.flush()
    assert rows(tmp_path, "registration") == []
    await life.ends()


# what the upstream has not heard of


async def outage(life: Life) -> None:
    """It goes away, and that is known."""
    life.registry.script = lambda call: Unreachable("refused", arrived=False)
    while life.agent.catalog.breaker.up:
        with pytest.raises(Unreachable):
            await life.agent.send(Metrics())


WAITING = [
    Register(KEY, instance("10.0.0.9", metadata={"zone": "b"})),
    Update(KEY, "10.0.0.9", 80, weight=3.0, metadata={"zone": "c"}),
    Deregister(KEY, "10.0.0.1", 80),
    Beat(KEY, "10.0.0.8", 80, full=instance("10.0.0.8")),
]


def waiting(life: Life) -> list[Any]:
    journal = life.agent.outage.journal
    return [write for place in journal for write in journal.of(place)]


async def test_persist_journal_makes_an_accepted_write_survive_a_kill(tmp_path: Path, clock: FakeClock) -> None:
    first = Life(tmp_path, clock, local=True)
    await register(first, "10.0.0.1")
    await first.disk.flush()
    await outage(first)
    for write in WAITING:
        assert (await first.agent.write(write)).how == "local"
    first.file.close()  # a kill: no last batch
    await clock.advance(2)

    second = Life(tmp_path, clock, local=True)
    second.disk.restore()
    assert waiting(second) == WAITING
    assert second.registered() == ["10.0.0.8:80", "10.0.0.9:80"]
    look = await second.agent.read(KEY)
    assert look.snapshot is not None
    assert [(i.ip, i.weight, i.metadata) for i in look.snapshot.instances if i.ip == "10.0.0.9"] == [
        ("10.0.0.9", 3.0, {"zone": "c"})
    ]
    for place in second.agent.outage.journal:
        assert await second.agent.outage.send_waiting(place)
    await second.disk.flush()
    assert rows(tmp_path, "journal") == []
    await second.ends()


async def test_restore_after_a_long_time_does_not_register_clients_that_cannot_be_alive(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock, local=True)
    await outage(first)
    for write in WAITING:
        await first.agent.write(write)
    await first.ends()
    await clock.advance(60)
    second = Life(tmp_path, clock, local=True)
    second.disk.restore()
    for place in second.agent.outage.journal:
        await second.agent.outage.send_waiting(place)
    assert second.registry.calls == [WAITING[2]]
    await second.ends()


async def test_restore_adds_the_journal_to_an_older_file(tmp_path: Path, clock: FakeClock) -> None:
    await Life(tmp_path, clock).ends()
    alter(tmp_path, "DROP TABLE journal")
    life = Life(tmp_path, clock, local=True)
    life.disk.restore()
    await outage(life)
    await life.agent.write(WAITING[2])
    assert len(rows(tmp_path, "journal")) == 1
    await life.ends()


async def test_persist_journal_that_fails_is_a_degraded_state_and_written_later(
    tmp_path: Path, clock: FakeClock
) -> None:
    life = Life(tmp_path, clock, local=True)
    await outage(life)
    alter(tmp_path, "DROP TABLE journal")
    assert (await life.agent.write(WAITING[2])).how == "local"
    assert "no such table" in life.disk.failing
    alter(tmp_path, JOURNAL_TABLE)
    await life.disk.flush()
    assert (life.disk.failing, len(rows(tmp_path, "journal"))) == ("", 1)
    await life.ends()


# what lasts of the embedded registry


class Own:
    """The embedded registry and its disk between a start and an end."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        self.registry = EmbeddedRegistry(clock)
        self.agent = agent(self.registry, clock)
        self.file = StateFile(directory)
        self.disk = Persistence(self.file, self.agent, POLICY, embedded=self.registry)
        self.disk.restore()


LASTING = instance(ephemeral=False)


async def test_persist_registry_makes_concurrent_writes_wait_until_they_are_on_disk(
    tmp_path: Path, clock: FakeClock
) -> None:
    """The first takes what all have changed; the others found nothing left to write, and did not wait."""
    life, answered = Own(tmp_path, clock), list[list[Any]]()

    async def register(number: int) -> None:
        await life.registry.send(Register(key(f"s{number}"), LASTING))
        answered.append(rows(tmp_path, "registry"))

    await asyncio.gather(*(register(number) for number in range(3)))
    assert [len(found) for found in answered] == [3, 3, 3]
    await life.disk.close()


async def test_persist_registry_makes_a_persistent_instance_survive_a_kill(tmp_path: Path, clock: FakeClock) -> None:
    first = Own(tmp_path, clock)
    await asyncio.gather(*(first.agent.write(Register(key(f"s{n}"), LASTING)) for n in range(5)))
    await first.agent.write(Register(KEY, instance()))
    first.file.close()  # a kill: no last batch

    second = Own(tmp_path, clock)
    found = [await second.registry.send(Fetch(key(f"s{n}"))) for n in range(5)]
    assert [snapshot.instances for snapshot in found] == [(LASTING,)] * 5
    assert (await second.registry.send(Fetch(KEY))).instances == (), "its client registers it again"
    await second.agent.write(Deregister(key("s1"), "10.0.0.1", 80, ephemeral=False))
    second.file.close()
    third = Own(tmp_path, clock)
    assert (await third.registry.send(Fetch(key("s1")))).instances == ()
    await third.disk.close()


async def test_flush_deletes_what_the_embedded_registry_expired(tmp_path: Path, clock: FakeClock) -> None:
    life = Own(tmp_path, clock)
    await life.registry.send(CreateService(KEY))
    assert [row[:3] for row in rows(tmp_path, "registry")] == [tuple(KEY)]
    clock.jump(61.0)
    await life.registry.send(Fetch(KEY))
    await life.disk.flush()
    assert rows(tmp_path, "registry") == []
    await life.disk.close()


async def test_restore_adds_the_registry_to_an_older_file(tmp_path: Path, clock: FakeClock) -> None:
    await Life(tmp_path, clock).ends()
    alter(tmp_path, "DROP TABLE registry")
    life = Own(tmp_path, clock)
    await life.agent.write(Register(KEY, LASTING))
    assert len(rows(tmp_path, "registry")) == 1
    await life.disk.close()


async def test_restore_leaves_out_only_a_registry_row_that_cannot_be_understood(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    first = Own(tmp_path, clock)
    for name in "ab":
        await first.agent.write(Register(key(name), LASTING))
    await first.disk.close()
    alter(tmp_path, "UPDATE registry SET body = '{' WHERE name = 'a'")
    second = Own(tmp_path, clock)
    assert repr(second.registry) == "<EmbeddedRegistry 1 services, 1 instances>"
    assert "1 rows of the state file could not be understood" in caplog.text
    await second.disk.close()


async def test_persist_registry_on_a_disk_that_fails_is_written_later(tmp_path: Path, clock: FakeClock) -> None:
    life = Own(tmp_path, clock)
    alter(tmp_path, "DROP TABLE registry")
    for name in "ab":
        await life.agent.write(Register(key(name), LASTING))
    assert "no such table" in life.disk.failing
    alter(tmp_path, REGISTRY_TABLE)
    await life.disk.flush()
    assert (life.disk.failing, len(rows(tmp_path, "registry"))) == ("", 2)
    await life.disk.close()


# whose it is


async def test_state_file_cannot_be_read_by_others(tmp_path: Path, clock: FakeClock) -> None:
    directory = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        life = Life(directory, clock, shelf=Shelf(snapshot(instance())))
        await life.agent.read(KEY)
        await life.disk.flush()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert (life.disk.directory, stat.S_IMODE(directory.stat().st_mode)) == (directory, 0o700)
    assert modes == {name: 0o600 for name in ("lock", FILE, f"{FILE}-wal", f"{FILE}-shm")}
    await life.ends()
    (tmp_path / "a" / "b" / FILE).chmod(0o644)
    StateFile(directory).close()
    assert stat.S_IMODE((directory / FILE).stat().st_mode) == 0o600


def test_state_file_of_a_second_process_names_the_first(tmp_path: Path) -> None:
    first = StateFile(tmp_path)
    with pytest.raises(StateLocked, match=rf"{tmp_path} is in use by another nacos-proxy \(process {os.getpid()}\)"):
        StateFile(tmp_path)
    first.close()
    StateFile(tmp_path).close()


# a kill, damage, a full disk


async def test_restore_after_a_kill_has_the_last_finished_batch(tmp_path: Path, clock: FakeClock) -> None:
    """The bytes as they lie there at the moment of a kill: the file with its write-ahead log, not checkpointed."""
    life = Life(tmp_path / "living", clock, shelf=Shelf(*(snapshot(instance(), service=key(n)) for n in "abc")))
    for name in "abc":
        await life.agent.read(key(name))
        await life.disk.flush()
    (tmp_path / "dead").mkdir()
    for path in (tmp_path / "living").iterdir():
        if path.suffix != ".sqlite3-shm":
            (tmp_path / "dead" / path.name).write_bytes(path.read_bytes())
    await life.ends()
    after = Life(tmp_path / "dead", clock)
    assert (after.disk.restore(), after.names(), after.file.set_aside) == (3, ["a", "b", "c"], None)
    await after.ends()


@pytest.mark.parametrize("damage", [b"no database at all", b"SQLite format 3\0" + bytes(5000), None])
async def test_restore_sets_a_damaged_file_aside_and_logs_it(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await first.agent.read(KEY)
    await first.ends()
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(damage if damage is not None else whole[: len(whole) // 2])
    second = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    assert second.file.set_aside == tmp_path / f"{FILE}.corrupt-1"
    assert second.disk.restore() == 0
    assert f"it was set aside as {second.file.set_aside}" in caplog.text
    await second.agent.read(KEY)
    await second.ends()
    assert len(rows(tmp_path)) == 1
    path.write_bytes(b"again")
    third = StateFile(tmp_path)
    assert third.set_aside == tmp_path / f"{FILE}.corrupt-2"
    third.close()


def test_restore_sets_a_file_of_a_later_version_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    StateFile(tmp_path).close()
    alter(tmp_path, "PRAGMA user_version=99")
    whole = (tmp_path / FILE).read_bytes()
    later = StateFile(tmp_path)
    assert later.set_aside is not None
    assert later.set_aside.read_bytes() == whole, "the later version can read it again"
    assert "its version is 99, this proxy reads version 1" in caplog.text
    later.close()


async def test_restore_ignores_the_tables_of_a_later_proxy_with_the_same_version_of_the_file(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await first.agent.read(KEY)
    await first.ends()
    alter(tmp_path, "CREATE TABLE of_a_later_proxy (body BLOB)")
    second = Life(tmp_path, clock)
    assert (second.disk.restore(), second.file.set_aside) == (1, None)
    await second.ends()


async def test_restore_reads_the_row_of_a_service_when_it_is_needed_and_of_the_others_with_the_first_flush(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(*(snapshot(instance(), service=key(name)) for name in "abc")))
    for name in "abc":
        await first.agent.read(key(name))
    await first.ends()
    second = Life(tmp_path, clock)
    assert second.disk.restore() == 3
    assert repr(second.agent.catalog.cache) == "<Cache 0 pinned, 0 known, 0 unknown, 3 dormant, next due inf>"
    look = await second.agent.read(key("b"))
    assert (look.from_disk, look.snapshot) == (True, snapshot(instance(), service=key("b")))
    assert "1 known, 0 unknown, 2 dormant" in repr(second.agent.catalog.cache)
    await second.disk.flush()
    assert "3 known, 0 unknown, next due" in repr(second.agent.catalog.cache)
    await second.ends()


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"instances": [1]}', b'{"instances": [], "more": 1}', b"null"])
async def test_restore_leaves_out_only_a_row_that_cannot_be_understood(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(*(snapshot(instance(), service=key(name)) for name in "ab")))
    await register(first, "10.0.0.1", "10.0.0.2")
    await first.agent.read(key("a"))
    await first.agent.read(key("b"))
    await first.ends()
    alter(tmp_path, "UPDATE service SET body=? WHERE name='a'", body)
    alter(tmp_path, "UPDATE registration SET body=? WHERE ip='10.0.0.1'", body)
    second = Life(tmp_path, clock)
    second.disk.restore()
    assert second.names() == ["b"]
    assert second.registered() == ["10.0.0.2:80"]
    await second.ends()
    assert "2 rows of the state file could not be understood" in caplog.text
    assert rows(tmp_path)[0][2:4] == ("a", body), "a later version may understand it"


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond `room` bytes: what a full disk is to SQLite."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_flush_on_a_full_disk_is_a_degraded_state_that_ends_by_itself(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(instance(metadata={"k": "x" * 200_000}))))
    await life.agent.read(KEY)
    with full_disk(100_000):
        await life.disk.flush()
        assert life.disk.failing
        assert "rollback" not in life.disk.failing
        assert (await life.agent.read(KEY)).snapshot is not None
        await life.disk.flush()
    assert caplog.text.count("the state cannot be written") == 1
    await life.disk.flush()
    assert (life.disk.failing, len(rows(tmp_path))) == ("", 1)
    assert caplog.messages[-1] == "the state is written again"
    await life.ends()


class Broken(StateFile):
    """A disk that fails as long as it has a `fault`; `tries` are the moments at which it was asked to write."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        super().__init__(directory)
        self.fault: Exception | None = OSError(errno.EIO, "Input/output error")
        self.tries: list[float] = []
        self.batches: list[Batch] = []
        self._clock = clock

    def write(self, batch: Batch) -> None:
        self.tries.append(self._clock.now())
        self.batches.append(batch)
        if self.fault is not None:
            raise self.fault
        super().write(batch)


async def test_start_retries_a_disk_that_fails_ever_later_and_nobody_waits_for_it(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path / "unused", clock, local=True, shelf=Shelf(snapshot(instance())))
    file = Broken(tmp_path / "broken", clock)
    disk = Persistence(file, life.agent, PersistencePolicy(max_delay=8.0))
    await life.agent.read(KEY)
    await outage(life)
    disk.start()
    begin = clock.now()
    for _ in range(7):
        while clock.next == math.inf:  # the thread is at work
            await asyncio.sleep(0)
        await clock.advance(clock.next - clock.now())
    while len(file.tries) < 7 or clock.next == math.inf:
        await asyncio.sleep(0)
    assert [moment - begin for moment in file.tries] == [1, 3, 7, 15, 23, 31, 39]
    assert caplog.text.count("the state cannot be written") == 1
    assert (await life.agent.write(WAITING[2])).how == "local"
    assert len(rows(tmp_path / "broken", "journal")) == 0, "whoever writes does not wait for it"

    file.fault = None
    await disk.flush()
    assert (disk.failing, len(rows(tmp_path / "broken", "journal"))) == ("", 1)
    await disk.close()
    await life.ends()


class Hanging(StateFile):
    """A disk that answers when it is let."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.free = threading.Event()

    def write_journal(self, rows: list[tuple[RegistrationKey, JournalEntry | None]]) -> None:
        assert self.free.wait(60)
        super().write_journal(rows)


async def test_persist_journal_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path / "unused", clock, local=True)
    file = Hanging(tmp_path / "file")
    disk = Persistence(file, life.agent, POLICY)
    await outage(life)
    first = spawn(life.agent.write(WAITING[2]), name="first")
    await clock.advance(PATIENCE - 0.1)
    assert not first.done(), "what is acknowledged is to be on disk"
    await clock.advance(0.1)
    assert (await first).how == "local"
    assert disk.failing == "the disk has not answered for 1 s"
    assert (await life.agent.write(WAITING[3])).how == "local"

    file.free.set()
    await disk.flush()
    assert (disk.failing, len(rows(tmp_path / "file", "journal"))) == ("", 2)
    assert [r.levelname for r in caplog.records if r.name == "nacos_proxy.disk"] == ["ERROR", "WARNING"]
    await disk.close()
    await life.ends()


async def test_flush_hands_over_references_in_parts(tmp_path: Path, clock: FakeClock) -> None:
    """To make rows of 10,000 services held everybody up for most of a second."""
    shelf = Shelf(*(snapshot(instance(), service=key(f"s{n}")) for n in range(50)))
    life = Life(tmp_path / "unused", clock, shelf=shelf)
    file = Broken(tmp_path / "file", clock)
    disk = Persistence(file, life.agent, PersistencePolicy(max_batch=20))
    file.fault = None
    for n in range(50):
        await life.agent.read(key(f"s{n}"))
    await disk.flush()
    assert [len(batch.services) for batch in file.batches] == [20, 20, 10]
    shown = {entry.key: entry.visible for entry in life.agent.catalog.cache.entries()}
    assert all(shown[k] is s for batch in file.batches for k, s, _ in batch.services)
    assert len(rows(tmp_path / "file")) == 50
    await disk.close()
    await life.ends()


async def test_flush_that_fails_unexpectedly_is_a_degraded_state(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path / "unused", clock, shelf=Shelf(snapshot(instance())))
    file = Broken(tmp_path / "file", clock)
    file.fault = RuntimeError("a bug")
    disk = Persistence(file, life.agent, POLICY)
    await life.agent.read(KEY)
    await disk.flush()
    assert (disk.failing, "RuntimeError: a bug" in caplog.text) == ("a bug", True)
    file.fault = None
    await disk.flush()
    assert (disk.failing, len(rows(tmp_path / "file"))) == ("", 1)
    await disk.close()
    await life.ends()


async def test_restore_on_a_full_disk_reads_the_file_and_keeps_it(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    first = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await first.agent.read(KEY)
    await first.ends()
    with full_disk(1):
        second = Life(tmp_path, clock)
        assert second.file.set_aside is None
        assert second.disk.failing
        assert (second.disk.restore(), second.names()) == (1, ["orders"])
        assert "the state cannot be written" in caplog.text
        await second.disk.flush()
        assert second.disk.failing
    await second.disk.flush()
    assert second.disk.failing == ""
    await second.ends()
    assert [path.name for path in tmp_path.iterdir() if "corrupt" in path.name] == []


async def test_close_on_a_full_disk_releases_the_directory(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(instance(metadata={"k": "x" * 200_000}))))
    await life.agent.read(KEY)
    with full_disk(100_000):
        await life.ends()
    StateFile(tmp_path).close()


async def test_state_file_that_another_program_holds_is_not_set_aside(tmp_path: Path, clock: FakeClock) -> None:
    StateFile(tmp_path).close()
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    state = StateFile(tmp_path, patience=0.01)
    assert (state.set_aside, state.trouble) == (None, "database is locked")
    other.close()
    state.close()


async def test_state_file_that_cannot_be_written_is_read_completely(tmp_path: Path, clock: FakeClock) -> None:
    udp_subscribers = UdpSubscribers(UdpSubscribersPolicy())
    life = Life(tmp_path, clock, local=True, shelf=Shelf(snapshot(instance())), udp_subscribers=udp_subscribers)
    udp_subscribers.listed(KEY, ("127.0.0.1", 5000), "", "Nacos-Java-Client:v1.4.6", "", clock.now())
    await life.agent.read(KEY)
    await outage(life)
    await life.agent.write(WAITING[2])
    await life.ends()
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    state = StateFile(tmp_path, patience=0.01)
    assert state.trouble == "database is locked"
    assert (len(state.read()[0]), len(state.read_journal()), len(state.read_subscribers())) == (1, 1, 1)
    other.close()
    state.close()


async def test_close_writes_a_batch_that_was_cancelled(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock, shelf=Shelf(snapshot(instance())))
    await life.agent.read(KEY)
    cut = asyncio.get_running_loop().create_task(life.disk.flush())
    await asyncio.sleep(0)
    cut.cancel()
    await asyncio.wait([cut])
    await life.ends()
    assert len(rows(tmp_path)) == 1


async def test_mark_of_a_service_that_left_the_cache_keeps_its_last_row(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock)
    await life.disk.flush()
    alter(tmp_path, "INSERT INTO service VALUES ('public', 'g', 'orders', '{}', ?)", clock.wall())
    change = diff(None, snapshot(instance(), service=ServiceKey("public", "g", "orders")), "poll")
    assert change is not None
    life.disk.mark(change)
    await life.ends()
    assert len(rows(tmp_path)) == 1


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nacos_proxy.disk")


# subscribers of UDP push


async def test_subscribers_survive_a_restart_until_their_subscription_ends(tmp_path: Path, clock: FakeClock) -> None:
    udp_subscribers = UdpSubscribers(UdpSubscribersPolicy())
    life = Life(tmp_path, clock, udp_subscribers=udp_subscribers)
    udp_subscribers.listed(KEY, ("127.0.0.1", 5000), "c1,c2", "Nacos-Java-Client:v1.4.6", "shop", clock.now())
    await life.disk.flush()
    assert len(rows(tmp_path, "subscriber")) == 1, "a kill would leave it"
    await life.ends()

    life = Life(tmp_path, clock, udp_subscribers=udp_subscribers)
    (found,) = life.disk.subscribers()
    assert (found.service, found.address, found.clusters) == (KEY, ("127.0.0.1", 5000), "c1,c2")
    assert (found.agent, found.app) == ("Nacos-Java-Client:v1.4.6", "shop")
    await clock.advance(300.0)
    assert life.disk.subscribers() == [], "whose port it is by now nobody knows"
    udp_subscribers.expire(clock.now() + 60.0)
    await life.ends()
    assert rows(tmp_path, "subscriber") == []


async def test_subscribers_leaves_out_only_a_row_that_cannot_be_understood(tmp_path: Path, clock: FakeClock) -> None:
    await Life(tmp_path, clock).ends()
    alter(tmp_path, "INSERT INTO subscriber VALUES ('public', 'g', 's', '', '127.0.0.1', 'x', 'agent', '', 9e9)")
    alter(tmp_path, "INSERT INTO subscriber VALUES ('public', 'g', 's', '', '127.0.0.1', 5000, 'agent', '', 9e9)")
    life = Life(tmp_path, clock)
    assert [s.address for s in life.disk.subscribers()] == [("127.0.0.1", 5000)]
    assert life.file.unreadable == 1
    await life.ends()


# drains


async def test_persist_drains_returns_when_they_are_on_disk_and_restore_finds_them(
    tmp_path: Path, clock: FakeClock
) -> None:
    first = Life(tmp_path, clock)
    mine, ended = instance("10.0.0.1", metadata={"a": "1"}), instance("10.0.0.2")
    drains, now = first.agent.catalog.drains, clock.now()
    drains.add(Drain(KEY, mine, 20.0, now + 20, modified=instance("10.0.0.1", weight=7.0)), now)
    drains.add(Drain(KEY, ended, 20.0, now - 5, ended_at=now - 4), now)
    await first.disk.persist_drains()
    assert len(rows(tmp_path, "drain")) == 2 and not drains.changed
    await first.disk.persist_drains()
    first.file.close()  # a kill

    later = FakeClock(now=50.0, wall=clock.wall() + 8)
    second = Life(tmp_path, later)
    second.disk.restore()
    found = {drain.instance.ip: drain for drain in second.agent.catalog.drains}
    assert found["10.0.0.1"].instance == mine and found["10.0.0.1"].modified == instance("10.0.0.1", weight=7.0)
    assert (found["10.0.0.1"].until, found["10.0.0.1"].ended_at) == (pytest.approx(62.0), None)
    assert found["10.0.0.2"].ended_at == pytest.approx(38.0)
    assert not second.agent.catalog.drains.changed
    second.agent.catalog.drains.remove(found["10.0.0.1"])
    await second.disk.flush()
    assert len(rows(tmp_path, "drain")) == 1
    await second.ends()


async def test_drains_that_could_not_be_written_are_written_later(tmp_path: Path, clock: FakeClock) -> None:
    life = Life(tmp_path, clock)
    life.agent.catalog.drains.add(Drain(KEY, instance(), 20.0, clock.now()), clock.now())
    write, life.file.write_drains = life.file.write_drains, _full
    await life.disk.persist_drains()
    assert life.disk.failing and life.agent.catalog.drains.changed
    life.file.write_drains = write
    await life.disk.flush()
    assert not life.disk.failing and len(rows(tmp_path, "drain")) == 1
    await life.ends()


def _full(rows: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")

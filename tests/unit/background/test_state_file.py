"""The state file holds what its batches say; `test_persistence` has lives, kills and full disks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from nacos_proxy.background.state_file import Batch, StateFile, StateLocked, lock
from nacos_proxy.background.state_rows import SavedRegistration, subscriber_row
from nacos_proxy.catalog.journal import JournalEntry
from nacos_proxy.catalog.udp_subscribers import MAX_SUBSCRIPTIONS, Subscription
from nacos_proxy.model.calls import Deregister, Register
from nacos_proxy.model.services import ServiceKey, Snapshot
from nacos_proxy.private_directory import PrivateDirectory
from tests.helpers.build import KEY, instance, key, snapshot


def batch(*names: str, gone: tuple[ServiceKey, ...] = (), max_rows: int = 10) -> Batch:
    services = [(key(name), snapshot(instance(), service=key(name)), float(n)) for n, name in enumerate(names)]
    return Batch(services, [], None, list(gone), max_rows)


def names(file: StateFile) -> list[str]:
    return [service.key.name for service in file.read()[0]]


def test_write_adds_and_deletes_rows_of_a_batch(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(batch("a", "b", "c"))
    file.write(batch(gone=(key("b"), key("never"))))
    assert names(file) == ["a", "c"]
    file.close()
    again = StateFile(tmp_path)
    assert names(again) == ["a", "c"]
    again.close()


def test_write_registrations_replaces_and_deletes_rows(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    saved = [SavedRegistration(KEY, instance("10.0.0.1", port), True, None, 5.0) for port in (1, 2)]
    file.write_registrations([((KEY, "10.0.0.1", one.instance.port), one) for one in saved])
    changed = saved[0]._replace(managed={"kind": "connection"}, heard_at=6.0)
    file.write_registrations(
        [((KEY, "10.0.0.1", 1), changed), ((KEY, "10.0.0.1", 2), None), ((KEY, "10.0.0.1", 3), None)]
    )
    ((known, heard_at),) = file.read()[1]
    assert (known.instance.port, known.of_connection, heard_at) == (1, True, 6.0)
    file.close()


def test_write_keeps_max_rows_of_the_services_confirmed_last(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(batch("a", "b", "c", max_rows=2))
    assert names(file) == ["b", "c"]
    file.close()


NESTED = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize(
    "spoilt",
    [
        snapshot(service=key("\ud800")),
        snapshot(instance(metadata={"a": "\ud800"})),
        snapshot(instance(extra={"a": NESTED})),
    ],
)
def test_write_leaves_out_only_a_row_that_cannot_be_written_and_logs_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoilt: Snapshot
) -> None:
    file, good = StateFile(tmp_path), snapshot(instance("10.0.0.2"), service=key("b"))
    heard = [SavedRegistration(s.key, i, False, None, 1.0) for s in (spoilt, good) for i in s.instances]
    for _ in range(2):
        file.write(Batch([(spoilt.key, spoilt, 1.0), (good.key, good, 1.0)], [], heard, [], 10))
    file.write(Batch([], [(spoilt.key, 2.0), (good.key, 2.0)], None, [spoilt.key], 10))
    services, registrations = file.read()
    assert [(file.load(service), service.confirmed_at) for service in services] == [(good, 2.0)]
    assert [r.instance.ip for r, _ in registrations] == ["10.0.0.2"]
    by_key = 0 if spoilt.instances else 2  # where the key is what is spoilt, it can be neither confirmed nor removed
    assert file.unwritable == 2 * len(heard) + by_key
    assert caplog.text.count("a row cannot be written and is left out of the state file") == 1
    file.close()


def test_write_journal_and_write_subscribers_leave_out_only_what_cannot_be_written(tmp_path: Path) -> None:
    file, place = StateFile(tmp_path), (KEY, "10.0.0.1", 80)
    writes = [Register(KEY, instance("10.0.0.9", metadata={"a": "\ud800"})), Deregister(KEY, "10.0.0.1", 80)]
    file.write_journal(
        [((KEY, "10.0.0.9", 80), JournalEntry((writes[0],), 1, 1.0)), (place, JournalEntry((writes[1],), 2, 1.0))]
    )
    row = (*KEY, "", "127.0.0.1", 5000)
    file.write_subscribers([(*row, "\ud800", "", 1.0), (*row, "agent", "", 1.0)])
    assert [found[0] for found in file.read_journal()] == [place]
    assert [s.agent for s in file.read_subscribers()] == ["agent"]
    assert file.unwritable == 2
    file.close()


def test_read_subscribers_reads_no_more_than_there_may_be(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    one = Subscription(ServiceKey.of("orders"), ("127.0.0.1", 1), "", "a", "", 0.0)
    file.write_subscribers(
        [subscriber_row(replace(one, address=("127.0.0.1", n)), 0.0) for n in range(MAX_SUBSCRIPTIONS + 10)]
    )
    assert len(file.read_subscribers()) == MAX_SUBSCRIPTIONS
    file.close()


def test_lock_fails_while_another_holder_has_it_and_names_its_process(tmp_path: Path) -> None:
    home = PrivateDirectory(tmp_path)
    held = lock(home)
    with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
        lock(home)
    os.close(held)
    os.close(lock(home))
    home.close()

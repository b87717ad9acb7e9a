"""The state file holds what its batches say; `test_disk` has lives, kills and full disks."""

from __future__ import annotations

from pathlib import Path

from proxy.model import ServiceKey
from proxy.rows import dump_snapshot
from proxy.statefile import Batch, StateFile
from tests.helpers.build import instance, key, snapshot


def batch(*names: str, gone: tuple[ServiceKey, ...] = (), most: int = 10) -> Batch:
    rows = [
        (*key(name), dump_snapshot(snapshot(instance(), service=key(name))), float(n)) for n, name in enumerate(names)
    ]
    return Batch(rows, [], None, list(gone), most)  # type: ignore[arg-type]


def names(file: StateFile) -> list[str]:
    return [known.key.name for known, _ in file.read()[0]]


def test_a_batch_adds_and_takes_away(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(batch("a", "b", "c"))
    file.write(batch(gone=(key("b"), key("never"))))
    assert names(file) == ["a", "c"]
    file.close()
    again = StateFile(tmp_path)
    assert names(again) == ["a", "c"]
    again.close()


def test_beyond_the_most_the_longest_unconfirmed_go(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(batch("a", "b", "c", most=2))
    assert names(file) == ["b", "c"]
    file.close()

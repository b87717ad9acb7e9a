"""A worker's app; as a process it is held by `tests/e2e/test_workers.py`."""

from __future__ import annotations

import pytest

from proxy.errors import UpstreamError
from proxy.settings import Settings
from proxy.worker import WorkerApp
from tests.helpers.build import KEY
from tests.helpers.clock import FakeClock


def made() -> WorkerApp:
    return WorkerApp(Settings(disk=False, push="off"), FakeClock())


async def test_what_was_counted_is_told_once() -> None:
    app = made()
    app.mirror.counts.reads["hit"] = 3
    tally = app.answers.tally("list", 200)
    tally.head, tally.target = 7, 1
    first = app.count()
    assert (dict(first.reads), list(first.repeated)) == ({"hit": 3}, [("list", 200, 7, 1)])
    tally.head += 2
    app.mirror.counts.reads["hit"] += 1
    second = app.count()
    assert (dict(second.reads), list(second.repeated)) == ({"hit": 1}, [("list", 200, 2, 0)])


async def test_without_the_other_process_nothing_can_be_asked() -> None:
    with pytest.raises(UpstreamError, match="is gone"):
        await made().mirror.read(KEY)

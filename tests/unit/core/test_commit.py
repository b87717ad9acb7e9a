"""`Committer`: followers get each change once and in order."""

from __future__ import annotations

import pytest

from nacos_proxy.core.commit import Counts
from nacos_proxy.model.calls import Beat, Deregister, Register
from nacos_proxy.model.services import Change
from tests.helpers.build import KEY
from tests.helpers.world import NO_CACHE, C, World


async def test_commit_calls_followers_once_for_each_change_and_in_order() -> None:
    heard: list[tuple[str, int]] = []
    world = World(
        lambda change: heard.append(("first", len(change.after.instances))),
        lambda change: heard.append(("second", len(change.after.instances))),
    )
    await world.read()
    await world.agent.write(Register(KEY, C))
    await world.read(NO_CACHE)
    assert heard == [("first", 2), ("second", 2), ("first", 3), ("second", 3)]
    assert world.agent.counts.changes == {"poll": 1, "write": 1}


async def test_commit_goes_on_when_a_follower_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raising(change: Change) -> None:
        raise RuntimeError("a bug")

    heard: list[int] = []
    world = World(raising, lambda change: heard.append(len(change.after.instances)))
    await world.read()
    written = await world.agent.write(Register(KEY, C))
    assert (written.how, heard) == ("upstream", [2, 3])
    assert world.agent.supervisor.failures == {"follower 1": 2}
    assert [r.getMessage() for r in caplog.records] == ["follower 1 failed and goes on: RuntimeError('a bug')"]


async def test_on_registration_is_called_when_registrations_change(world: World) -> None:
    told: list[int] = []
    world.agent.on_registration.append(lambda: told.append(world.agent.catalog.registrations.count(KEY)))
    await world.agent.write(Register(KEY, C))
    await world.agent.write(Beat(KEY, C.ip, C.port, full=C))
    await world.agent.write(Deregister(KEY, C.ip, C.port))
    assert told == [1, 0]


def test_counts_add_counts_outcomes_apart() -> None:
    counts = Counts()
    for outcome in ("hit", "hit", "miss"):
        Counts.add(counts.reads, outcome)
    assert (counts.reads, counts.writes) == ({"hit": 2, "miss": 1}, {})

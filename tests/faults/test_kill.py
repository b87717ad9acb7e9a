"""kill -9 of the real process at random moments under load: no acknowledged write is lost, the state file is intact."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nacos_proxy.runtime import SystemClock
from tests.faults.load import Load, until
from tests.helpers.faces import facing
from tests.helpers.live import ProxyProcess

KILLS = int(os.environ.get("NACOS_PROXY_TEST_KILLS", "12"))
CLOCK = SystemClock()
# The process lives less than a second at a time: it must write and poll often.
QUICK = (
    "--push", "off", "--no-udp-push", "--cache-ttl", "300ms", "--poll-interval-subscribed", "200ms",
    "--poll-interval-read", "200ms", "--upstream-timeout", "5s",
)  # fmt: skip


def check_file(path: Path) -> str:
    """What is wrong with a state file, including its WAL; '' if nothing is."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("PRAGMA integrity_check").fetchone()[0]
    return "" if found == "ok" else str(found)


@pytest.mark.timeout(900)
async def test_sigkill_at_any_moment_loses_nothing(tmp_path: Path, rng: random.Random) -> None:
    async with facing("v1+v2", listing_delay=0.1) as server:
        proxy = ProxyProcess("--upstream", server.url, *QUICK, state_dir=tmp_path)
        await asyncio.to_thread(proxy.start)
        try:
            async with Load(proxy.url, "kill", seed=rng.randrange(1 << 32), writers=2, pause=0.05) as load:
                load.may_break = True
                for _ in range(KILLS):
                    # from right after a start to well after a batch was written
                    await CLOCK.sleep_until(CLOCK.now() + rng.choice((0.0, 0.05, 0.2, 0.6)) * rng.random())
                    await asyncio.to_thread(proxy.kill)
                    assert check_file(tmp_path / "state.sqlite3") == ""
                    await asyncio.to_thread(proxy.start)
                await load.more(20)
                await load.stop_writing()
                await load.settled(server.url)
                load.may_break = False
                await until(lambda: all(f.states for f in load.followers), "the followers' states")
                assert load.violations() == []
                answered = [read for read in load.reads if read.status == 200]
                unanswered, left = load.acknowledged.refused, len(load.acknowledged.there)
                print(f"{len(answered)} of {len(load.reads)} reads answered, {unanswered} writes were not, {left} left")
                assert len(answered) > KILLS
        finally:
            await asyncio.to_thread(proxy.close)
    assert "Traceback" not in proxy.log, proxy.log[-4000:]
    assert "set aside" not in proxy.log
    assert check_file(tmp_path / "state.sqlite3") == ""
    assert [path.name for path in tmp_path.iterdir() if "corrupt" in path.name] == []

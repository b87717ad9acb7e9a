"""A node of a cluster dies and returns: its peers refuse its writes, then it lists old states."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import pytest

from tests.faults.load import CLOCK, until
from tests.faults.test_upstream_faults import QUICK, loaded, logged
from tests.helpers.app import serving
from tests.helpers.faces import clustered
from tests.helpers.fault import fault_proxy

TURMOIL_SECONDS = 2.0  # seconds that peers miss a node, and that it lists old states after its return


async def until_logged(caplog: pytest.LogCaptureFixture, text: str, times: int) -> None:
    await until(lambda: logged(caplog, text) == times, f"{text!r} is logged {times} times")


@pytest.mark.parametrize(
    "refusal",
    [(400, "receive invalid redirect request from peer 127.0.0.1"), (500, "caused: connection refused;")],
    ids=["invalid redirect", "connection refused"],
)
async def test_cluster_node_that_dies_and_returns_costs_no_read_beat_or_write(
    refusal: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(clustered())
        relays = [await stack.enter_async_context(fault_proxy(int(node.url.rpartition(":")[2]))) for node in nodes]
        proxy = await stack.enter_async_context(serving(upstream=",".join(relay.url for relay in relays), **QUICK))
        load, event_log = await stack.enter_async_context(loaded(proxy, f"cluster-{refusal[0]}"))
        for number, (node, relay) in enumerate(zip(nodes, relays, strict=True), 1):
            peers = [peer for peer in nodes if peer is not node]
            for peer in peers:
                peer.turmoil = refusal
            await relay.set("refuse")
            await CLOCK.sleep_until(CLOCK.now() + TURMOIL_SECONDS)
            for peer in peers:
                peer.turmoil = None
            await until_logged(caplog, "is down: 2 of 3 are up", number)
            await load.more(20)
            node.returned = True
            await relay.set("pass")
            await CLOCK.sleep_until(CLOCK.now() + TURMOIL_SECONDS)
            node.returned = False
            await until_logged(caplog, "is back: 3 of 3 are up", number)
            await load.more(20)
        await load.stop_writing()
        await load.settled(*(node.url for node in nodes))
        assert load.violations() == []
        assert [fault for follower in load.followers for fault in event_log.faults(follower)] == []
        assert event_log.notices == []
    assert load.beats and load.acknowledged.there
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []

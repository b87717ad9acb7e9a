"""The relay that counts, and how a stampede is measured."""

import asyncio

import pytest

from loadtest.relay import Relay
from loadtest.stand_in import StandIn, hosts
from loadtest.tier_hosts import most_in_a_bucket, truth
from loadtest.wire import Connection


async def test_relay_passes_requests_on_and_counts_them() -> None:
    server = StandIn(lambda _: hosts(1))
    async with server.serving() as upstream:
        relay = Relay(upstream)
        async with relay.serving() as url:
            shown = await truth(url, ["cart", "shop"])
    assert shown["cart"] == {"10.7.0.1:8080": (1, {"zone": "a", "version": "1.4.2"})}
    assert relay.requests == server.requests == 2


async def test_relay_closes_a_connection_whose_server_is_away() -> None:
    server = StandIn(lambda _: hosts(1))
    async with server.serving() as upstream:
        relay = Relay(upstream)
    async with relay.serving() as url:
        connection = Connection(url)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await connection.ask("GET", "/")
        await connection.close()


def test_most_in_a_bucket_looks_at_any_100_ms() -> None:
    assert most_in_a_bucket([]) == 0
    assert most_in_a_bucket([0.35, 0.0, 0.25, 0.3, 0.9]) == 3
    assert most_in_a_bucket([0.0, 0.1, 0.2]) == 1

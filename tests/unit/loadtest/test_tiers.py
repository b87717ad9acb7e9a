"""The relay that counts, simulated hosts below a real proxy, and how a stampede is measured."""

import asyncio
from functools import partial

import pytest

from loadtest.contenders import request
from loadtest.relay import Relay
from loadtest.stand_in import StandIn, hosts
from loadtest.tier_hosts import MARK, Hosts, most_in_a_bucket, truth
from loadtest.wire import Connection
from tests.helpers.app import serving


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


async def test_hosts_follow_their_site_and_hear_a_change() -> None:
    async with serving() as site:
        place = f"{site.url}/nacos/v1/ns/instance?serviceName=cart&ip=10.0.0.1&port=80"
        await asyncio.to_thread(request, "POST", place)
        hosts = Hosts([site.url], 2, ["cart"])
        async with hosts.following():
            change = partial(request, "POST", f"{place}&metadata={MARK}%3D1")
            taken = await hosts.hear("1", change)
            there = await truth(site.url, ["cart"])
            assert [host.shows("cart") for host in hosts.all] == [there["cart"]] * 2
            assert there["cart"] == {"10.0.0.1:80": (1.0, {MARK: "1"})}
            assert len(hosts.http[0].moments) == len(taken) == 2
            assert hosts.all[0].shows("shop") == {}


def test_most_in_a_bucket_looks_at_any_100_ms() -> None:
    assert most_in_a_bucket([]) == 0
    assert most_in_a_bucket([0.35, 0.0, 0.25, 0.3, 0.9]) == 3
    assert most_in_a_bucket([0.0, 0.1, 0.2]) == 1

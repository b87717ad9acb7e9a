"""How parameters are parsed by the proxy, and by a real 2.x or 3.x (`NACOS_TEST_URL`)."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

INSTANCE = "/nacos/v1/ns/instance"


async def listed(http: httpx.AsyncClient, service: str, number: int) -> list[dict[str, Any]]:
    """Waits for `number` hosts: a server lists a write half a second later."""
    while True:
        hosts = (await http.get(f"{INSTANCE}/list", params={"serviceName": service})).json()["hosts"]
        if len(hosts) == number:
            return hosts
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("clusters", ["a,b_c,,d-e", "a, ", "a, ,b", " ", ",", ""])
async def test_list_accepts_legal_and_empty_clusters(server: httpx.AsyncClient, service: str, clusters: str) -> None:
    query = {"serviceName": service, "clusters": clusters}
    assert (await server.get(f"{INSTANCE}/list", params=query)).status_code == 200


@pytest.mark.parametrize("clusters", ["a,b c", " B", "B ", "a, B", "a#b"])
async def test_list_refuses_an_illegal_cluster(server: httpx.AsyncClient, service: str, clusters: str) -> None:
    query = {"serviceName": service, "clusters": clusters}
    assert (await server.get(f"{INSTANCE}/list", params=query)).status_code == 400


async def test_register_keeps_each_spelling_of_an_ipv6_address_apart(server: httpx.AsyncClient, service: str) -> None:
    spellings = ["2001:db8::7", "[2001:db8::7]", "2001:DB8::7"]
    query = {"serviceName": service, "port": "80"}
    for ip in spellings:
        assert (await server.post(INSTANCE, params={**query, "ip": ip})).text == "ok"
    assert sorted(host["ip"] for host in await listed(server, service, 3)) == sorted(spellings)
    assert (await server.delete(INSTANCE, params={**query, "ip": "2001:DB8::7"})).text == "ok"
    assert sorted(host["ip"] for host in await listed(server, service, 2)) == sorted(spellings[:2])


async def test_register_form_ignores_repeated_ampersands(server: httpx.AsyncClient, service: str) -> None:
    """The proxy overwrites its API tokens with ampersands in a forwarded form."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = f"&&&&serviceName={service}&&&&&&&&ip=10.0.0.1&port=80&&&&"
    assert (await server.post(INSTANCE, content=body, headers=form)).text == "ok"
    assert [host["ip"] for host in await listed(server, service, 1)] == ["10.0.0.1"]


async def test_register_metadata_accepts_null_and_text_after_the_object(
    server: httpx.AsyncClient, service: str
) -> None:
    query = {"serviceName": service, "ip": "10.0.0.1", "port": "80", "metadata": '{"a": null, "b": "1"} and more'}
    assert (await server.post(INSTANCE, params=query)).text == "ok"
    [host] = await listed(server, service, 1)
    assert host["metadata"] == {"a": None, "b": "1"}


async def test_beat_is_parsed_as_jackson_does(server: httpx.AsyncClient, service: str) -> None:
    """80.0 is a whole number, and 0 is false."""
    beat = f'{{"serviceName":"DEFAULT_GROUP@@{service}","ip":"10.0.0.1","port":80.0,"ephemeral":0,"weight":2}}'
    reply = await server.put(f"{INSTANCE}/beat", params={"serviceName": service, "beat": beat})
    assert (reply.status_code, reply.json()["code"]) == (200, 10200)
    [host] = await listed(server, service, 1)
    assert (host["port"], host["weight"], host["ephemeral"]) == (80, 2.0, False)

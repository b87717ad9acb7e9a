"""The stand-in for a server, asked by the clients of the load tests."""

import json

from loadtest.stand_in import StandIn, hosts
from loadtest.wire import Connection


async def test_stand_in_has_every_service_and_counts_its_lists() -> None:
    server = StandIn(lambda name: hosts(2, weight=3 if name == "cart" else 1), delay=0.001)
    async with server.serving() as url:
        connection = Connection(url)
        for name in ("cart", "DEFAULT_GROUP%40%40cart", "shop"):
            status, body = await connection.ask("GET", f"/nacos/v1/ns/instance/list?serviceName={name}")
            assert status == 200
        assert json.loads(body)["name"] == "DEFAULT_GROUP@@shop"
        assert [host["weight"] for host in json.loads(body)["hosts"]] == [1, 1]
        await connection.ask("PUT", "/nacos/v1/ns/instance/beat?serviceName=cart")
        await connection.close()
    assert server.asked == {"cart": 2, "shop": 1}
    assert server.requests == 4

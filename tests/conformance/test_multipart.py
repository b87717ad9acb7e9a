"""How `multipart/form-data` is parsed by the proxy, and by a real 2.x or 3.x (`NACOS_TEST_URL`)."""

from __future__ import annotations

import httpx
import pytest

from tests.helpers.multipart import CUT, EMPTY, TAKEN, TYPE

INSTANCE = "/nacos/v1/ns/instance"


async def register(http: httpx.AsyncClient, service: str, body: bytes) -> httpx.Response:
    query = {"serviceName": service, "port": "81"}
    return await http.post(INSTANCE, params=query, content=body, headers={"content-type": TYPE})


@pytest.mark.parametrize("body", TAKEN, ids=range(len(TAKEN)))
async def test_multipart_fields_are_parameters_and_files_are_not(
    server: httpx.AsyncClient, service: str, body: bytes
) -> None:
    reply = await register(server, service, body)
    assert (reply.status_code, reply.text) == (200, "ok")
    query = {"serviceName": service, "ip": "10.0.0.1", "port": "81"}
    assert (await server.get(f"{INSTANCE}/list", params=query)).json()["hosts"][0]["ip"] == "10.0.0.1"


@pytest.mark.parametrize("body", EMPTY, ids=range(len(EMPTY)))
async def test_multipart_body_without_a_delimiter_has_no_parameters(
    server: httpx.AsyncClient, service: str, body: bytes
) -> None:
    reply = await register(server, service, body)
    assert (reply.status_code, "ip" in reply.text) == (400, True)


@pytest.mark.parametrize("body", CUT, ids=range(len(CUT)))
async def test_multipart_body_cut_short_registers_nothing(server: httpx.AsyncClient, service: str, body: bytes) -> None:
    assert (await register(server, service, body)).status_code in (400, 500)
    assert (await server.get(f"{INSTANCE}/list", params={"serviceName": service})).json()["hosts"] == []

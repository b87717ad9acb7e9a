"""The operations of the naming API, through the Nacos dialect or the REST API, with one interface."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx


class Failed(Exception):
    """An operation was refused: status and body."""

    def __init__(self, reply: httpx.Response) -> None:
        super().__init__(f"{reply.status_code} {reply.text}")
        self.status = reply.status_code
        self.text = reply.text


def checked(reply: httpx.Response) -> httpx.Response:
    if reply.status_code >= 400:
        raise Failed(reply)
    return reply


class Driver(Protocol):
    name: str

    async def register(self, service: str, ip: str, port: int, **more: Any) -> None: ...
    async def deregister(self, service: str, ip: str, port: int, **more: Any) -> None: ...
    async def modify(self, service: str, ip: str, port: int, **more: Any) -> None: ...
    async def list(self, service: str, **more: Any) -> dict[str, Any]: ...
    async def get(self, service: str, ip: str, port: int, **more: Any) -> dict[str, Any]: ...
    async def beat(self, service: str, ip: str, port: int, **more: Any) -> dict[str, Any]: ...
    async def services(self, **more: Any) -> tuple[int, list[str]]: ...


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, dict) else str(value)


class V1:
    """`/nacos/v1/ns`, as an unmodified SDK calls it."""

    name = "v1"
    _NAMES: Mapping[str, str] = {
        "group": "groupName",
        "namespace": "namespaceId",
        "cluster": "clusterName",
        "healthy_only": "healthyOnly",
        "page": "pageNo",
        "size": "pageSize",
    }

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    def _query(self, **fields: Any) -> dict[str, str]:
        return {self._NAMES.get(name, name): _text(value) for name, value in fields.items()}

    async def register(self, service: str, ip: str, port: int, **more: Any) -> None:
        query = self._query(serviceName=service, ip=ip, port=port, **more)
        reply = checked(await self._http.post("/nacos/v1/ns/instance", params=query))
        assert reply.text == "ok"

    async def deregister(self, service: str, ip: str, port: int, **more: Any) -> None:
        query = self._query(serviceName=service, ip=ip, port=port, **more)
        reply = checked(await self._http.delete("/nacos/v1/ns/instance", params=query))
        assert reply.text == "ok"

    async def modify(self, service: str, ip: str, port: int, **more: Any) -> None:
        query = self._query(serviceName=service, ip=ip, port=port, **more)
        checked(await self._http.put("/nacos/v1/ns/instance", params=query))

    async def list(self, service: str, **more: Any) -> dict[str, Any]:
        if isinstance(more.get("clusters"), list):
            more["clusters"] = ",".join(more["clusters"])
        query = self._query(serviceName=service, **more)
        return checked(await self._http.get("/nacos/v1/ns/instance/list", params=query)).json()

    async def get(self, service: str, ip: str, port: int, **more: Any) -> dict[str, Any]:
        query = self._query(serviceName=service, ip=ip, port=port, **more)
        return checked(await self._http.get("/nacos/v1/ns/instance", params=query)).json()

    async def beat(self, service: str, ip: str, port: int, **more: Any) -> dict[str, Any]:
        query = self._query(serviceName=service, **{k: v for k, v in more.items() if k in ("group", "namespace")})
        full = {k: v for k, v in more.items() if k in ("weight", "metadata")}
        if full:
            grouped = f"{more.get('group', 'DEFAULT_GROUP')}@@{service}"
            beat = {"serviceName": grouped, "ip": ip, "port": port, "cluster": more.get("cluster", "DEFAULT"), **full}
            query["beat"] = json.dumps(beat)
        else:
            query |= self._query(ip=ip, port=port, cluster=more.get("cluster", "DEFAULT"))
        return checked(await self._http.put("/nacos/v1/ns/instance/beat", params=query)).json()

    async def services(self, **more: Any) -> tuple[int, list[str]]:
        query = self._query(**{"page": 1, "size": 1000, **more})
        body = checked(await self._http.get("/nacos/v1/ns/service/list", params=query)).json()
        return body["count"], body["doms"]


class Rest:
    """`/api/v1`, the REST API."""

    name = "rest"

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    @staticmethod
    def _where(more: dict[str, Any]) -> dict[str, str]:
        return {name: _text(more.pop(name)) for name in ("namespace", "group") if name in more}

    @staticmethod
    def _place(service: str, ip: str, port: int) -> str:
        host = f"[{ip}]" if ":" in ip else ip
        return f"/api/v1/services/{quote(service, safe='')}/instances/{host}:{port}"

    async def register(self, service: str, ip: str, port: int, **more: Any) -> None:
        query = self._where(more)
        body = {"ip": ip, "port": port, **more}
        reply = await self._http.post(f"/api/v1/services/{quote(service, safe='')}/instances", json=body, params=query)
        assert checked(reply).status_code == 201

    async def deregister(self, service: str, ip: str, port: int, **more: Any) -> None:
        query = self._where(more) | {name: _text(value) for name, value in more.items()}
        checked(await self._http.delete(self._place(service, ip, port), params=query))

    async def modify(self, service: str, ip: str, port: int, **more: Any) -> None:
        query = self._where(more)
        if "cluster" in more:
            query["cluster"] = more.pop("cluster")
        checked(await self._http.patch(self._place(service, ip, port), json=more, params=query))

    async def list(self, service: str, **more: Any) -> dict[str, Any]:
        if isinstance(more.get("clusters"), list):
            more["clusters"] = ",".join(more["clusters"])
        query = {name: _text(value) for name, value in more.items()}
        return checked(await self._http.get(f"/api/v1/services/{quote(service, safe='')}", params=query)).json()

    async def get(self, service: str, ip: str, port: int, **more: Any) -> dict[str, Any]:
        query = {name: _text(value) for name, value in more.items()}
        return checked(await self._http.get(self._place(service, ip, port), params=query)).json()

    async def beat(self, service: str, ip: str, port: int, **more: Any) -> dict[str, Any]:
        query = self._where(more)
        if "cluster" in more:
            query["cluster"] = more.pop("cluster")
        path = self._place(service, ip, port) + "/beat"
        reply = await (self._http.put(path, json=more, params=query) if more else self._http.put(path, params=query))
        return checked(reply).json()

    async def services(self, **more: Any) -> tuple[int, list[str]]:
        query = {name: _text(value) for name, value in {"page": 1, "size": 1000, **more}.items()}
        body = checked(await self._http.get("/api/v1/services", params=query)).json()
        return body["count"], [row if isinstance(row, str) else row["name"] for row in body["services"]]

"""Requests as unmodified SDKs send them. Pure.

Recorded from the Java SDK 1.4.8, the Go SDK 1.1.4, the Node SDK 2.6.3 and the Python SDK 2.0.11. `{host}` stands for
the server, `{id}` for what is new in each request. A client that subscribes sends the port of its UDP socket with each
poll, another client sends port 0. The Go SDK begins the same cycle of parameters at a random one each time.
"""

from __future__ import annotations

from collections.abc import Sequence

ID = "{id}"
NAMING = "/nacos/v1/ns/instance"
JAVA = (
    "Accept-Charset: UTF-8",
    "Accept-Encoding: gzip,deflate,sdch",
    "Client-Version: 1.4.8",
    "Content-Type: application/x-www-form-urlencoded;charset=UTF-8",
    "Request-Module: Naming",
    f"RequestId: {ID}",
    "User-Agent: Nacos-Java-Client:v1.4.8",
    "Host: {host}",
    "Accept: text/html, image/gif, image/jpeg, */*; q=0.2",
    "Connection: keep-alive",
)
GO = (
    "Host: {host}",
    "User-Agent: Nacos-Go-Client:v1.1.4",
    "Client-Version: Nacos-Go-Client:v1.1.4",
    "Connection: Keep-Alive",
    "Content-Type: application/x-www-form-urlencoded;charset=utf-8",
    "Request-Module: Naming",
    f"RequestId: {ID}",
    "Accept-Encoding: gzip",
)
NODE = (
    "user-agent: Nacos-Java-Client:v1.0.0",
    "client-version: Nacos-Java-Client:v1.0.0",
    "accept-encoding: gzip,deflate,sdch",
    "request-module: Naming",
    "connection: Keep-Alive",
    f"requestid: {ID}",
    "Host: {host}",
)
PYTHON = (
    "Accept-Encoding: identity",
    "Host: {host}",
    "User-Agent: Nacos-Python-Client:v0.1.16",
    "Connection: close",
)


def _head(method: str, target: str, headers: Sequence[str]) -> str:
    return "\r\n".join([f"{method} {NAMING}{target} HTTP/1.1", *headers, "", ""])


def java_read(service: str, udp_port: int) -> list[str]:
    query = (
        f"app=unknown&healthyOnly=false&namespaceId=public&clientIP=127.0.0.1&serviceName=DEFAULT_GROUP%40%40{service}"
    )
    return [_head("GET", f"/list?{query}&udpPort={udp_port}&clusters=", JAVA)]


def go_read(service: str, udp_port: int) -> list[str]:
    name = f"serviceName=DEFAULT_GROUP@@{service}"
    rest = ["app=", "clusters=", f"udpPort={udp_port}", "healthyOnly=false", "clientIP=127.0.0.1"]
    cycle = ["namespaceId=", name, *rest]
    return [_head("GET", f"/list?{'&'.join(cycle[n:] + cycle[:n])}", GO) for n in range(len(cycle))]


def node_read(service: str, udp_port: int) -> list[str]:
    query = f"namespaceId=&serviceName=DEFAULT_GROUP%40%40{service}&clusters=DEFAULT&udpPort={udp_port}"
    return [_head("GET", f"/list?{query}&clientIP=127.0.0.1&healthyOnly=false", NODE)]


def python_read(service: str, udp_port: int) -> list[str]:
    """Its list call has no UDP port."""
    return [_head("GET", f"/list?serviceName={service}&healthyOnly=False&groupName=DEFAULT_GROUP", PYTHON)]


def java_register(service: str, ip: str) -> str:
    query = "app=unknown&groupName=DEFAULT_GROUP&metadata=%7B%22zone%22%3A%22a%22%7D&namespaceId=public&port=8080"
    rest = f"enable=true&healthy=true&clusterName=DEFAULT&ip={ip}&weight=1.0&ephemeral=true"
    return _head("POST", f"?{query}&{rest}&serviceName=DEFAULT_GROUP%40%40{service}", JAVA)


def java_beat(service: str, ip: str) -> str:
    """A light beat: every one but the first."""
    query = f"app=unknown&serviceName=DEFAULT_GROUP%40%40{service}&namespaceId=public&port=8080"
    return _head("PUT", f"/beat?{query}&clusterName=DEFAULT&ip={ip}", JAVA)

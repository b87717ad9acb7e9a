"""Drives the SDK for Rust by its Python binding: the protocol is in ../__init__.py."""

from __future__ import annotations

import asyncio
from typing import Any

from lines import drive, heard, host
from nacos_sdk_rust_binding_py import (
    AsyncNacosConfigClient,
    AsyncNacosNamingClient,
    ClientOptions,
    NacosServiceInstance,
)

NAMES = ("instance_id", "cluster_name", "service_name", "enabled")
CLIENTS: dict[str, Client] = {}


class Client:
    def __init__(self, asked: dict[str, Any]) -> None:
        account = {name: asked[name] for name in ("username", "password") if name in asked}
        self.options = ClientOptions(asked["server"], asked.get("namespace", ""), **account)
        self.naming = AsyncNacosNamingClient(self.options)
        self._configuration: AsyncNacosConfigClient | None = None

    @property
    def configuration(self) -> AsyncNacosConfigClient:
        self._configuration = self._configuration or AsyncNacosConfigClient(self.options)
        return self._configuration


def shown(instances: Any) -> list[dict[str, Any]]:
    return [host(instance, NAMES) for instance in instances]


def instance(of: dict[str, Any]) -> NacosServiceInstance:
    return NacosServiceInstance(
        of["ip"],
        of["port"],
        weight=of.get("weight", 1.0),
        ephemeral=of.get("ephemeral", True),
        cluster_name=of.get("cluster", "DEFAULT"),
        metadata=of.get("metadata", {}),
    )


async def perform(asked: dict[str, Any]) -> Any:
    if asked["do"] == "connect":
        # The constructor blocks until it is connected.
        CLIENTS[asked["client"]] = await asyncio.to_thread(Client, asked)
        return True
    client = CLIENTS[asked["client"]]
    if asked["do"] in ("publish", "config", "remove", "listen"):
        return await configure(client, asked)
    naming, service, name = (
        client.naming,
        (asked.get("service"), asked.get("group", "DEFAULT_GROUP")),
        asked.get("name"),
    )
    clusters = asked.get("clusters", [])
    match asked["do"]:
        case "register" | "update":
            await naming.register_instance(*service, instance(asked))
            return True
        case "batch":
            await naming.batch_register_instance(*service, [instance(of) for of in asked["instances"]])
            return True
        case "deregister":
            await naming.deregister_instance(*service, instance(asked))
            return True
        case "instances":
            return shown(await naming.get_all_instances(*service, clusters))
        case "select":
            return shown(await naming.select_instances(*service, clusters, healthy=True))
        case "one":
            return shown([await naming.select_one_healthy_instance(*service, clusters)])
        case "subscribe":
            await naming.subscribe(*service, clusters, lambda found: heard("naming", name, shown(found)))
            return True
    raise ValueError("unknown")


async def configure(client: Client, asked: dict[str, Any]) -> Any:
    config, place = client.configuration, (asked["dataId"], asked.get("group", "DEFAULT_GROUP"))
    match asked["do"]:
        case "publish":
            return await config.publish_config(*place, asked["content"])
        case "config":
            return await config.get_config(*place)
        case "remove":
            return await config.remove_config(*place)
    await config.add_listener(*place, lambda found: heard("config", asked["name"], found.content))
    return True


asyncio.run(drive(perform))

"""Drives nacos-sdk-python 3: the protocol is in ../__init__.py."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

from lines import drive, heard, host
from v2.nacos import (
    BatchRegisterInstanceParam,
    ClientConfigBuilder,
    ConfigParam,
    DeregisterInstanceParam,
    ListInstanceParam,
    ListServiceParam,
    NacosConfigService,
    NacosNamingService,
    RegisterInstanceParam,
    SubscribeServiceParam,
)

NAMES = ("instanceId", "clusterName", "serviceName", "enabled")
CLIENTS: dict[str, Client] = {}
SUBSCRIPTIONS: dict[str, SubscribeServiceParam] = {}


class Client:
    def __init__(self, config: Any, naming: NacosNamingService) -> None:
        self.config, self.naming = config, naming
        self.lock = asyncio.Lock()
        self._configuration: NacosConfigService | None = None

    async def configuration(self) -> NacosConfigService:
        async with self.lock:
            if self._configuration is None:
                self._configuration = await NacosConfigService.create_config_service(self.config)
        return self._configuration


def shown(instances: Any) -> list[dict[str, Any]]:
    return [host(instance, NAMES) for instance in instances]


async def connect(asked: dict[str, Any]) -> bool:
    place = tempfile.mkdtemp(prefix="state-", dir=".")
    config = ClientConfigBuilder().server_address(asked["server"]).namespace_id(asked.get("namespace", ""))
    config = config.log_dir(place).cache_dir(place).log_level("WARNING")
    if "username" in asked:
        config = config.username(asked["username"]).password(asked["password"])
    built = config.build()
    CLIENTS[asked["client"]] = Client(built, await NacosNamingService.create_naming_service(built))
    return True


async def perform(asked: dict[str, Any]) -> Any:
    if asked["do"] == "connect":
        return await connect(asked)
    client = CLIENTS[asked["client"]]
    if asked["do"] in ("publish", "config", "remove", "listen"):
        return await configure(client, asked)
    naming, name = client.naming, asked.get("name", "")
    service = {"service_name": asked.get("service", ""), "group_name": asked.get("group", "DEFAULT_GROUP")}

    def instance(of: dict[str, Any]) -> dict[str, Any]:
        found = {"ip": of["ip"], "port": of["port"], "ephemeral": of.get("ephemeral", True), **service}
        return found | {"cluster_name": of.get("cluster", "DEFAULT")}

    def whole(of: dict[str, Any]) -> RegisterInstanceParam:
        return RegisterInstanceParam(weight=of.get("weight", 1.0), metadata=of.get("metadata", {}), **instance(of))

    clusters = asked.get("clusters", [])
    match asked["do"]:
        case "register":
            return await naming.register_instance(whole(asked))
        case "update":
            return await naming.update_instance(whole(asked))
        case "batch":
            instances = [whole(of) for of in asked["instances"]]
            return await naming.batch_register_instances(BatchRegisterInstanceParam(instances=instances, **service))
        case "deregister":
            return await naming.deregister_instance(DeregisterInstanceParam(**instance(asked)))
        case "instances" | "select":
            healthy = True if asked["do"] == "select" else None
            return shown(
                await naming.list_instances(ListInstanceParam(clusters=clusters, healthy_only=healthy, **service))
            )
        case "services":
            page = await naming.list_services(
                ListServiceParam(namespace_id="", group_name=service["group_name"], page_no=1, page_size=asked["size"])
            )
            return {"count": page.count, "names": page.services}
        case "subscribe":

            async def changed(instances: Any) -> None:
                heard("naming", name, shown(instances))

            SUBSCRIPTIONS[name] = SubscribeServiceParam(clusters=clusters, subscribe_callback=changed, **service)
            return await naming.subscribe(SUBSCRIPTIONS[name])
        case "unsubscribe":
            return await naming.unsubscribe(SUBSCRIPTIONS.pop(name))
        case "status":
            return await naming.server_health()
        case "close":
            return await naming.shutdown()
    raise ValueError("unknown")


async def configure(client: Client, asked: dict[str, Any]) -> Any:
    config = await client.configuration()
    data_id, group = asked["dataId"], asked.get("group", "DEFAULT_GROUP")
    match asked["do"]:
        case "publish":
            return await config.publish_config(ConfigParam(data_id=data_id, group=group, content=asked["content"]))
        case "config":
            return await config.get_config(ConfigParam(data_id=data_id, group=group))
        case "remove":
            return await config.remove_config(ConfigParam(data_id=data_id, group=group))

    async def changed(namespace: str, data_id: str, group: str, content: str) -> None:
        heard("config", asked["name"], content)

    await config.add_listener(data_id, group, changed)
    return True


asyncio.run(drive(perform))

"""A small synchronous client for Python services, with the method names of the legacy `nacos.NacosClient`.

    from nacos_proxy import NacosClient

    client = NacosClient("127.0.0.1:8840")
    client.add_naming_instance("orders", "10.0.0.5", 8080, heartbeat_interval=5)
    client.subscribe(lambda event: print(event["hosts"]), service_name="orders")

Not for: servers without this proxy (the subscription is the proxy's event stream, `modify` its PATCH). Differences to
the legacy client, all deliberate: a cluster that is not named is DEFAULT, not "None"; `modify` changes only what it is
given; a listener gets the whole change event; a subscription survives failures and resumes where it was.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx

from nacos_proxy.client.http import plain_client
from nacos_proxy.client.legacy import (
    Metadata,
    NacosException,
    NacosRequestException,
    check,
    metadata_of,
    place_of,
    text_of,
)
from nacos_proxy.client.subscription import Listener, Subscription
from nacos_proxy.model.masking import shown_url

__all__ = ["NacosClient", "NacosException", "NacosRequestException"]

log = logging.getLogger("nacos_proxy.client")

DEFAULT_GROUP_NAME = "DEFAULT_GROUP"


class NacosClient:
    """Talks to one proxy. Thread-safe; a context manager that closes cleanly.

    `server_addresses` is `host:port` or a URL; of several the first is used, as the proxy does the failing over.
    `timeout` is in seconds. `token` is the proxy's API token; `username` and `password` are for a proxy that asks each
    client for its own account (`auth = client`).
    """

    def __init__(
        self,
        server_addresses: str = "127.0.0.1:8840",
        *,
        namespace: str | None = "",
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        timeout: float = 3.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        address = server_addresses.split(",")[0].strip()
        if not address:
            raise NacosException("server_addresses is empty; the proxy's is 127.0.0.1:8840 unless it was set otherwise")
        self.namespace = namespace or ""
        base = address if "://" in address else f"http://{address}"
        headers = [("user-agent", "Nacos-Proxy-Python-Client")]
        self._http = plain_client(base, headers, timeout=timeout, transport=transport)
        self._beats: dict[tuple[str, str, str, int], tuple[threading.Event, threading.Thread]] = {}
        self._subscriptions: dict[tuple[str, str], list[Subscription]] = {}
        self._leaving: list[Subscription] = []
        self._lock = threading.Lock()
        if token is None and username is not None:
            try:
                token = self._login(username, password or "")
            except BaseException:
                self._http.close()
                raise
        if token is not None:
            self._http.headers["authorization"] = f"Bearer {token}"

    def _login(self, username: str, password: str) -> str:
        form = {"username": username, "password": password}
        return str(self._object("POST", "/nacos/v1/auth/login", data=form).get("accessToken", ""))

    # writes

    def add_naming_instance(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        weight: float = 1.0,
        metadata: Metadata = None,
        enable: bool = True,
        healthy: bool = True,
        ephemeral: bool = True,
        group_name: str = DEFAULT_GROUP_NAME,
        heartbeat_interval: float | None = None,
    ) -> bool:
        """Register; True where the registry took it. With `heartbeat_interval` (seconds) it beats until removed."""
        check(service_name, ip, port)
        form = self._form(service_name, group_name, ip=ip, port=port, weight=weight, enabled=text_of(enable))
        form |= {
            "healthy": text_of(healthy),
            "ephemeral": text_of(ephemeral),
            "metadata": json.dumps(metadata_of(metadata)),
        }
        form |= {"clusterName": cluster_name} if cluster_name else {}
        done = self._send("POST", "/nacos/v1/ns/instance", data=form).text == "ok"
        if done and ephemeral and heartbeat_interval is not None:
            self._keep_beating(service_name, group_name, ip, port, cluster_name, weight, metadata, heartbeat_interval)
        return done

    def remove_naming_instance(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        ephemeral: bool = True,
        group_name: str = DEFAULT_GROUP_NAME,
    ) -> bool:
        """Deregister and stop its beats; True also for an instance that nobody knows."""
        check(service_name, ip, port)
        self._stop_beating(service_name, group_name, ip, port)
        query = self._form(service_name, group_name, ip=ip, port=port, ephemeral=text_of(ephemeral))
        query |= {"clusterName": cluster_name} if cluster_name else {}
        return self._send("DELETE", "/nacos/v1/ns/instance", params=query).text == "ok"

    def modify_naming_instance(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        weight: float | None = None,
        metadata: Metadata = None,
        enable: bool | None = None,
        ephemeral: bool = True,
        group_name: str = DEFAULT_GROUP_NAME,
    ) -> bool:
        """Change what is given and nothing else; metadata is merged key by key."""
        check(service_name, ip, port)
        body: dict[str, Any] = {}
        if weight is not None:
            body["weight"] = weight
        if enable is not None:
            body["enabled"] = enable
        if metadata is not None:
            body["metadata"] = metadata_of(metadata)
        path = f"/api/v1/services/{quote(service_name, safe='')}/instances/{place_of(ip, port)}"
        params = {"namespace": self.namespace, "group": group_name, "cluster": cluster_name or ""}
        self._send("PATCH", path, json=body, params={k: v for k, v in params.items() if v})
        return True

    def send_heartbeat(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        weight: float = 1.0,
        metadata: Metadata = None,
        ephemeral: bool = True,
        group_name: str = DEFAULT_GROUP_NAME,
    ) -> dict[str, Any]:
        """One beat; the answer has `clientBeatInterval` (ms), `code` (10200, 20404) and `lightBeatEnabled`."""
        check(service_name, ip, port)
        grouped = service_name if "@@" in service_name else f"{group_name}@@{service_name}"
        beat = {"serviceName": grouped, "ip": ip, "port": port, "weight": weight, "ephemeral": ephemeral}
        beat |= {"cluster": cluster_name or "DEFAULT", "metadata": metadata_of(metadata)}
        form = self._form(service_name, group_name, beat=json.dumps(beat))
        return self._object("PUT", "/nacos/v1/ns/instance/beat", data=form)

    # reads

    def list_naming_instance(
        self,
        service_name: str,
        clusters: str | Sequence[str] | None = None,
        namespace_id: str | None = None,
        group_name: str | None = None,
        healthy_only: bool = False,
    ) -> dict[str, Any]:
        """The service as Nacos lists it: `name`, `groupName`, `clusters`, `hosts` and so on."""
        check(service_name)
        query = self._form(service_name, group_name or DEFAULT_GROUP_NAME, healthyOnly=text_of(healthy_only))
        if clusters:
            query["clusters"] = clusters if isinstance(clusters, str) else ",".join(clusters)
        if namespace_id:
            query["namespaceId"] = namespace_id
        return self._object("GET", "/nacos/v1/ns/instance/list", params=query)

    def get_naming_instance(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        group_name: str = DEFAULT_GROUP_NAME,
    ) -> dict[str, Any]:
        """One instance: `service`, `ip`, `port`, `clusterName`, `weight`, `healthy`, `instanceId`, `metadata`."""
        check(service_name, ip, port)
        query = self._form(service_name, group_name, ip=ip, port=port)
        query |= {"clusterName": cluster_name} if cluster_name else {}
        return self._object("GET", "/nacos/v1/ns/instance", params=query)

    # events

    def subscribe(
        self,
        listener_fn: Listener | Sequence[Listener],
        listener_interval: float = 7,
        service_name: str = "",
        clusters: str | Sequence[str] | None = None,
        namespace_id: str | None = None,
        group_name: str | None = None,
        healthy_only: bool = False,
    ) -> None:
        """Call the listeners, in a thread, with each `snapshot` and `change` event of the service: the parsed object
        with `event` (its type), `hosts` and, for a change, `added`, `modified`, `removed`, `source`.

        Returns at once. `listener_interval` is what the legacy client polled by; here it bounds reconnection (seconds).
        """
        check(service_name)
        listeners = [listener_fn] if callable(listener_fn) else list(listener_fn)
        params: dict[str, str] = {"service": service_name, "namespace": namespace_id or self.namespace}
        params |= {"group": group_name or DEFAULT_GROUP_NAME, "healthy_only": text_of(healthy_only)}
        if clusters:
            params["clusters"] = clusters if isinstance(clusters, str) else ",".join(clusters)
        subscription = Subscription(self._http, {k: v for k, v in params.items() if v}, listeners, listener_interval)
        with self._lock:
            self._subscriptions.setdefault((service_name, params["group"]), []).append(subscription)
        subscription.start()

    def unsubscribe(self, service_name: str, listener: Listener | None = None, group_name: str | None = None) -> None:
        """End the subscriptions of a service, or only those calls to `listener`."""
        with self._lock:
            key = (service_name, group_name or DEFAULT_GROUP_NAME)
            kept: list[Subscription] = []
            ended: list[Subscription] = []
            for subscription in self._subscriptions.pop(key, []):
                subscription.listeners = [f for f in subscription.listeners if listener is not None and f != listener]
                if subscription.listeners:
                    kept.append(subscription)
                else:
                    ended.append(subscription)
            if kept:
                self._subscriptions[key] = kept
        self._end(ended)

    def stop_subscribe(self) -> None:
        """End all subscriptions."""
        with self._lock:
            ended = [s for group in self._subscriptions.values() for s in group]
            self._subscriptions.clear()
        self._end(ended)

    def _end(self, subscriptions: Sequence[Subscription]) -> None:
        """One that its own listener ends outlives this call; the next from outside, as `close` is, waits for it."""
        for subscription in subscriptions:
            subscription.stop()
        with self._lock:
            leaving = [*self._leaving, *subscriptions]
        for subscription in leaving:
            subscription.join()
        with self._lock:
            self._leaving = [s for s in {*self._leaving, *leaving} if s.alive]

    # beats

    def _keep_beating(self, service: str, group: str, ip: str, port: int, *details: Any) -> None:
        *rest, interval = details
        self._stop_beating(service, group, ip, port)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(interval):
                try:
                    self.send_heartbeat(service, ip, port, *rest, group_name=group)
                except NacosException as error:
                    log.warning("a beat of %s %s:%s failed: %s", service, ip, port, error)

        thread = threading.Thread(target=beat, name=f"beat {service} {ip}:{port}", daemon=True)
        self._beats[(service, group, ip, port)] = (stop, thread)
        thread.start()

    def _stop_beating(self, *place: Any) -> None:
        """Returns when the last beat is over: one that came after a deregistration would undo it."""
        stop, thread = self._beats.pop(place, (None, None))
        if stop is not None and thread is not None:
            stop.set()
            thread.join()

    # transport

    def _form(self, service_name: str, group_name: str, **fields: object) -> dict[str, str]:
        form = {"serviceName": service_name, "groupName": group_name, **{k: str(v) for k, v in fields.items()}}
        return form | ({"namespaceId": self.namespace} if self.namespace else {})

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            place = shown_url(str(self._http.base_url))
            raise NacosRequestException(f"no answer from the proxy at {place}: {error}") from error
        if reply.status_code >= 400:
            raise NacosRequestException(f"{method} {path}: {reply.status_code} {reply.text.strip()}", reply.status_code)
        return reply

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        reply = self._send(method, path, **options)
        try:
            body = reply.json()
        except ValueError as error:
            text = f"{method} {path}: the answer is no JSON: {reply.text[:100]!r}"
            raise NacosRequestException(text, reply.status_code) from error
        return body

    def close(self) -> None:
        """Ends beats, subscriptions and connections."""
        for place in list(self._beats):
            self._stop_beating(*place)
        self.stop_subscribe()
        self._http.close()

    def __enter__(self) -> NacosClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

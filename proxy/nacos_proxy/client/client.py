"""`NacosClient`: a synchronous client of a running proxy, with the method names of the legacy `nacos.NacosClient`.

    from nacos_proxy import NacosClient

    with NacosClient("127.0.0.1:8840") as client:
        client.add_naming_instance("orders", "10.0.0.5", 8080, heartbeat_interval=5)
        client.subscribe(lambda event: print(event["hosts"]), service_name="orders")

Intended differences from the legacy client:

* A call without a cluster uses the cluster DEFAULT, not "None".
* `modify_naming_instance` changes only the properties that it is given.
* A listener gets one call with all instances of an event, not one for each instance.
* A subscription survives failures and resumes after the last event.
* `subscribe` and `modify_naming_instance` need the proxy: they use its REST API, which a Nacos server does not have.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from nacos_proxy.client.http import plain_client
from nacos_proxy.client.legacy import (
    Metadata,
    NacosException,
    NacosRequestException,
    address_segment,
    check,
    metadata_of,
)
from nacos_proxy.client.subscription import Listener, Subscription
from nacos_proxy.model.masking import shown_url

__all__ = ["NacosClient", "NacosException", "NacosRequestException"]

log = logging.getLogger("nacos_proxy.client")

DEFAULT_GROUP_NAME = "DEFAULT_GROUP"


class NacosClient:
    """A client of one proxy. Thread-safe. Close it after use, or use it as a context manager.

    Calls raise `NacosException` for invalid parameters and `NacosRequestException` if a request failed.

    **Parameters:**

    * **server_addresses** - `host:port` or URL of the proxy. Of several addresses, separated by commas, only the first
      is used: failing over between Nacos servers is the job of the proxy.
    * **namespace** - Id of the namespace; empty is the public one.
    * **username**, **password** - Account at Nacos, for a proxy with `auth = client`. The constructor logs in.
    * **token** - API token of the proxy. If given, there is no login.
    * **timeout** - Maximum seconds for connecting, and between two parts of an answer.
    * **transport** - An httpx transport, for tests.
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
            raise NacosException("server_addresses is empty; the default address of a proxy is 127.0.0.1:8840")
        self.namespace = namespace or ""
        base = address if "://" in address else f"http://{address}"
        headers = [("user-agent", "Nacos-Proxy-Python-Client")]
        self._http = plain_client(base, headers, timeout=timeout, transport=transport)
        self._beats: dict[tuple[str, str, str, int], tuple[threading.Event, threading.Thread]] = {}
        self._subscriptions: dict[tuple[str, str], list[Subscription]] = {}
        self._ending: list[Subscription] = []
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
        """Registers an instance. Returns whether it was accepted.

        An ephemeral instance needs heartbeats: with `heartbeat_interval` (seconds), a thread sends them until the
        instance is removed or the client is closed.
        """
        check(service_name, ip, port)
        form = self._form(
            service_name,
            group_name,
            ip=ip,
            port=port,
            clusterName=cluster_name,
            weight=weight,
            enabled=enable,
            healthy=healthy,
            ephemeral=ephemeral,
            metadata=json.dumps(metadata_of(metadata)),
        )
        accepted = self._send("POST", "/nacos/v1/ns/instance", data=form).text == "ok"
        if accepted and ephemeral and heartbeat_interval is not None:

            def beat() -> None:
                self.send_heartbeat(service_name, ip, port, cluster_name, weight, metadata, group_name=group_name)

            self._start_heartbeats((service_name, group_name, ip, port), heartbeat_interval, beat)
        return accepted

    def remove_naming_instance(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        ephemeral: bool = True,
        group_name: str = DEFAULT_GROUP_NAME,
    ) -> bool:
        """Stops the heartbeats of an instance and deregisters it. Returns True for an unknown instance, too."""
        check(service_name, ip, port)
        self._stop_heartbeats((service_name, group_name, ip, port))
        query = self._form(service_name, group_name, ip=ip, port=port, clusterName=cluster_name, ephemeral=ephemeral)
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
        """Changes the given properties of an instance and nothing else. `metadata` is merged key by key."""
        check(service_name, ip, port)
        given = {
            "weight": weight,
            "enabled": enable,
            "metadata": None if metadata is None else metadata_of(metadata),
        }
        body = {name: value for name, value in given.items() if value is not None}
        path = f"/api/v1/services/{quote(service_name, safe='')}/instances/{address_segment(ip, port)}"
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
        """Sends one heartbeat, which also registers the instance if it is unknown.

        Returns `clientBeatInterval` (milliseconds until the next one), `code` (10200: accepted, 20404: the instance is
        unknown) and `lightBeatEnabled`.
        """
        check(service_name, ip, port)
        grouped = service_name if "@@" in service_name else f"{group_name}@@{service_name}"
        beat = {"serviceName": grouped, "ip": ip, "port": port, "weight": weight, "ephemeral": ephemeral}
        beat |= {"cluster": cluster_name or "DEFAULT", "metadata": metadata_of(metadata)}
        form = self._form(service_name, group_name, beat=json.dumps(beat))
        return self._object("PUT", "/nacos/v1/ns/instance/beat", data=form)

    def list_naming_instance(
        self,
        service_name: str,
        clusters: str | Sequence[str] | None = None,
        namespace_id: str | None = None,
        group_name: str | None = None,
        healthy_only: bool = False,
    ) -> dict[str, Any]:
        """Lists the enabled instances of a service: `hosts`, beside `name`, `groupName`, `clusters` and so on.

        `clusters` and `healthy_only` filter the instances. `namespace_id` replaces the namespace of the client.
        """
        check(service_name)
        query = self._form(
            service_name, group_name or DEFAULT_GROUP_NAME, healthyOnly=healthy_only, clusters=_cluster_list(clusters)
        )
        query |= {"namespaceId": namespace_id} if namespace_id else {}
        return self._object("GET", "/nacos/v1/ns/instance/list", params=query)

    def get_naming_instance(
        self,
        service_name: str,
        ip: str,
        port: int,
        cluster_name: str | None = None,
        group_name: str = DEFAULT_GROUP_NAME,
    ) -> dict[str, Any]:
        """Gets one instance: `service`, `ip`, `port`, `clusterName`, `weight`, `healthy`, `instanceId`, `metadata`.

        Raises `NacosRequestException` with status 404 if there is no such instance.
        """
        check(service_name, ip, port)
        query = self._form(service_name, group_name, ip=ip, port=port, clusterName=cluster_name)
        return self._object("GET", "/nacos/v1/ns/instance", params=query)

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
        """Calls the listeners with each event of a service, in a thread of the subscription. Returns at once.

        An event is a dict with `event` (`snapshot` or `change`), `hosts` (all instances), and, for a change, `added`,
        `modified`, `removed` (lists of instances) and `source`. The first event is a snapshot.

        `listener_interval` is the maximum delay between two attempts to connect, in seconds. The legacy client polls at
        this interval; this one does not poll.
        """
        check(service_name)
        listeners = [listener_fn] if callable(listener_fn) else list(listener_fn)
        params = {
            "service": service_name,
            "namespace": namespace_id or self.namespace,
            "group": group_name or DEFAULT_GROUP_NAME,
            "healthy_only": _text(healthy_only),
            "clusters": _cluster_list(clusters),
        }
        subscription = Subscription(self._http, {k: v for k, v in params.items() if v}, listeners, listener_interval)
        with self._lock:
            self._subscriptions.setdefault((service_name, params["group"]), []).append(subscription)
        subscription.start()

    def unsubscribe(self, service_name: str, listener: Listener | None = None, group_name: str | None = None) -> None:
        """Ends the subscriptions of a service; with `listener`, only the calls of that listener."""
        key = (service_name, group_name or DEFAULT_GROUP_NAME)
        with self._lock:
            subscriptions = self._subscriptions.pop(key, [])
            for subscription in subscriptions:
                subscription.listeners = [f for f in subscription.listeners if listener is not None and f != listener]
            if kept := [subscription for subscription in subscriptions if subscription.listeners]:
                self._subscriptions[key] = kept
        self._end([subscription for subscription in subscriptions if not subscription.listeners])

    def stop_subscribe(self) -> None:
        """Ends all subscriptions."""
        with self._lock:
            ended = [s for group in self._subscriptions.values() for s in group]
            self._subscriptions.clear()
        self._end(ended)

    def _end(self, subscriptions: Sequence[Subscription]) -> None:
        """Waits for their threads. A listener cannot wait for its own thread, so a later call waits for it."""
        for subscription in subscriptions:
            subscription.stop()
        with self._lock:
            ending = [*self._ending, *subscriptions]
        for subscription in ending:
            subscription.join()
        with self._lock:
            self._ending = [s for s in {*self._ending, *ending} if s.alive]

    def _start_heartbeats(self, key: tuple[str, str, str, int], interval: float, beat: Callable[[], None]) -> None:
        self._stop_heartbeats(key)
        service, _, ip, port = key
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(interval):
                try:
                    beat()
                except NacosException as error:
                    log.warning("a heartbeat of %s %s:%s failed: %s", service, ip, port, error)

        thread = threading.Thread(target=run, name=f"beat {service} {ip}:{port}", daemon=True)
        self._beats[key] = (stop, thread)
        thread.start()

    def _stop_heartbeats(self, key: tuple[str, str, str, int]) -> None:
        """Waits for a heartbeat under way: after a deregistration, it would register the instance again."""
        stop, thread = self._beats.pop(key, (None, None))
        if stop is not None and thread is not None:
            stop.set()
            thread.join()

    def _form(self, service_name: str, group_name: str, **fields: object) -> dict[str, str]:
        """The parameters of a call that are not empty."""
        form = {"serviceName": service_name, "groupName": group_name, "namespaceId": self.namespace, **fields}
        return {name: _text(value) for name, value in form.items() if value not in (None, "")}

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            url = shown_url(str(self._http.base_url))
            raise NacosRequestException(f"no answer from the proxy at {url}: {error}") from error
        if not reply.is_success:
            raise NacosRequestException(f"{method} {path}: {reply.status_code} {reply.text.strip()}", reply.status_code)
        return reply

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        reply = self._send(method, path, **options)
        try:
            body = reply.json()
        except ValueError as error:
            text = f"{method} {path}: the answer is not JSON: {reply.text[:100]!r}"
            raise NacosRequestException(text, reply.status_code) from error
        return body

    def close(self) -> None:
        """Stops heartbeats and subscriptions, and closes the connections. It does not deregister instances."""
        for key in list(self._beats):
            self._stop_heartbeats(key)
        self.stop_subscribe()
        self._http.close()

    def __enter__(self) -> NacosClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cluster_list(clusters: str | Sequence[str] | None) -> str:
    return clusters if isinstance(clusters, str) else ",".join(clusters or ())


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

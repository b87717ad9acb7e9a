"""A Nacos client over gRPC on grpcio, and the codec of its messages on protobuf: independent of ours in both.

One `GrpcClient` is one TCP connection. It connects as the Java SDK does (nacos-grpc.md 3) and acknowledges what the
server asks on the stream, unless the test forbids it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

from nacos_proxy.runtime import spawn, stop

Body = Mapping[str, Any] | bytes
UNARY, STREAM = "/Request/request", "/BiRequestStream/requestBiStream"
MAX_MESSAGE = 10 << 20
_FIELD = descriptor_pb2.FieldDescriptorProto
# One client is one connection, which is not replaced silently by another in the middle of a call.
CONNECT_SECONDS = 60.0
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


def _payload_class() -> type[Any]:
    """The class of `Payload` (nacos-grpc.md 2), made of descriptors."""
    file = descriptor_pb2.FileDescriptorProto(
        name="nacos_grpc_service.proto", syntax="proto3", dependency=["google/protobuf/any.proto"]
    )
    metadata = file.message_type.add(name="Metadata")
    metadata.field.add(name="type", number=3, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    metadata.field.add(name="clientIp", number=8, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    headers = metadata.nested_type.add(name="HeadersEntry")
    headers.options.map_entry = True
    headers.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    headers.field.add(name="value", number=2, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    inner = {"type": _FIELD.TYPE_MESSAGE, "label": _FIELD.LABEL_REPEATED, "type_name": ".Metadata.HeadersEntry"}
    metadata.field.add(name="headers", number=7, **inner)
    payload = file.message_type.add(name="Payload")
    for name, number, type_name in (("metadata", 2, ".Metadata"), ("body", 3, ".google.protobuf.Any")):
        one = {"type": _FIELD.TYPE_MESSAGE, "label": _FIELD.LABEL_OPTIONAL, "type_name": type_name}
        payload.field.add(name=name, number=number, **one)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Payload"))


_Payload = _payload_class()


class Packed(NamedTuple):
    """A message: its type, the body as sent, its headers, and the address that the sender says of itself."""

    type: str
    raw: bytes
    headers: Mapping[str, str]
    client_ip: str = ""

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def code(self) -> int:
        """0 for success, otherwise the `errorCode`."""
        return self.body.get("errorCode", 0) if self.body.get("resultCode") != 200 else 0


def pack(kind: str, body: Body = b"{}", headers: Mapping[str, str] | None = None, client_ip: str = "") -> bytes:
    message = _Payload()
    message.metadata.type = kind
    message.metadata.clientIp = client_ip
    message.metadata.headers.update(headers or {})
    message.body.value = body if isinstance(body, bytes) else json.dumps(body).encode()
    return message.SerializeToString()


def unpack(data: bytes) -> Packed:
    message = _Payload.FromString(data)
    meta = message.metadata
    return Packed(meta.type, message.body.value, dict(meta.headers), meta.clientIp)


class Lost(Exception):
    """The stream has ended, or a call could not be sent. The text has grpc's status code."""


class GrpcClient:
    """`target` is `host:port`. Use it with `async with`, then `connect` before anything but a server check.

    `heard`: everything from the stream, oldest first. `acknowledges`: whether to acknowledge a request of the server.
    `ended` is done when the stream has ended; its result is grpc's status code.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str = "",
        roots: bytes | None = None,
        acknowledges: Callable[[Packed], bool] = lambda asked: True,
    ) -> None:
        self.target = target
        self.headers = {"accessToken": token} if token else {}
        self.acknowledges = acknowledges
        self.heard: list[Packed] = []
        self.connection_id = ""
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        credentials = None if roots is None else grpc.ssl_channel_credentials(roots)
        self._channel = (
            grpc.aio.insecure_channel(target, OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, OPTIONS)
        )
        self._ask: Any = self._channel.unary_unary(UNARY)
        self._stream: Any = None
        self._closed = False
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> GrpcClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the TCP connection, as the end of the process does."""
        self._closed = True
        if self._stream is not None:
            self._stream.cancel()
        await stop(self._reading)
        self._stream = self._reading = None  # a call keeps its connection open
        await self._channel.close()
        if not self.ended.done():
            self.ended.set_result("closed here")

    # unary

    async def call(self, kind: str, body: Body | None = None, *, timeout: float = 30.0, **fields: Any) -> Packed:
        """The answer, of whatever class. `fields` are added to the body. Raises `Lost`."""
        content = body if isinstance(body, bytes) else {"headers": {}, **(body or {}), **fields}
        try:
            return unpack(await self._ask(pack(kind, content, self.headers), timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise Lost(f"{error.code().name}: {error.details()}") from None
        except asyncio.CancelledError:  # grpcio raises it in calls of a channel that is closed, too
            if not self._closed:
                raise
            raise Lost("closed here") from None

    async def about(self, kind: str, service: str, **fields: Any) -> Packed:
        """A naming request for `service`: a name, or `namespace/group@@name`."""
        namespace, separator, rest = service.rpartition("/")
        group, _, name = rest.rpartition("@@")
        key = {"namespace": namespace if separator else "public", "serviceName": name}
        return await self.call(kind, {**key, "groupName": group or "DEFAULT_GROUP", "module": "naming"}, **fields)

    async def register(self, service: str, ip: str, port: int, *, persistent: bool = False, **fields: Any) -> Packed:
        kind = "PersistentInstanceRequest" if persistent else "InstanceRequest"
        own = instance(ip, port, ephemeral=not persistent, **fields)
        return await self.about(kind, service, type="registerInstance", instance=own)

    async def deregister(self, service: str, ip: str, port: int, *, persistent: bool = False) -> Packed:
        kind = "PersistentInstanceRequest" if persistent else "InstanceRequest"
        own = instance(ip, port, ephemeral=not persistent)
        return await self.about(kind, service, type="deregisterInstance", instance=own)

    async def batch(self, service: str, *addresses: tuple[str, int]) -> Packed:
        instances = [instance(ip, port) for ip, port in addresses]
        return await self.about("BatchInstanceRequest", service, type="batchRegisterInstance", instances=instances)

    async def query(self, service: str, *, clusters: str = "", healthy_only: bool = False) -> Packed:
        fields = {"cluster": clusters, "healthyOnly": healthy_only, "udpPort": 0}
        return await self.about("ServiceQueryRequest", service, **fields)

    async def subscribe(self, service: str, *, clusters: str = "", subscribe: bool = True) -> Packed:
        return await self.about("SubscribeServiceRequest", service, subscribe=subscribe, clusters=clusters)

    async def healthy(self) -> Packed:
        return await self.call("HealthCheckRequest")

    # the stream

    async def connect(
        self,
        *,
        module: str = "naming",
        version: str = "Nacos-Java-Client:v2.5.1",
        abilities: Mapping[str, bool] | None = None,
        check: bool = True,
        settle: bool = True,
    ) -> Packed:
        """Checks the server, sets the connection up and waits until the server has accepted it; returns the check.

        `abilities`: None sends no `abilityTable`, so the server acknowledges nothing. `settle`: asks for health until
        the server knows the connection, which Nacos does some milliseconds after the setup.
        """
        # grpc gives up an attempt after 20 s, which a machine that is suspended can exceed; it makes others by itself.
        await asyncio.wait_for(self._channel.channel_ready(), CONNECT_SECONDS)
        checked = await self.call("ServerCheckRequest") if check else Packed("", b"{}", {})
        self.connection_id = checked.body.get("connectionId", "")
        await self.open()
        labels = {"source": "sdk", "module": module, "AppName": "tests"}
        setup: dict[str, Any] = {"headers": {}, "clientVersion": version, "labels": labels, "tenant": ""}
        await self.send("ConnectionSetupRequest", setup if abilities is None else {**setup, "abilityTable": abilities})
        if abilities is not None and checked.body.get("supportAbilityNegotiation"):
            await self.until(lambda asked: asked.type == "SetupAckRequest")
        while settle and (await self.healthy()).code == 301:
            await asyncio.sleep(0.02)
        return checked

    async def open(self) -> None:
        """Opens the stream only."""
        self._stream = self._channel.stream_stream(STREAM)()
        self._reading = spawn(self._read(self._stream), name="stream of a gRPC client")

    async def send(self, kind: str, body: Body) -> None:
        """Sends one message on the stream. Raises `Lost`."""
        try:
            await self._stream.write(pack(kind, body, self.headers))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise Lost(str(error)) from None

    async def half_close(self) -> None:
        await self._stream.done_writing()

    def reset(self) -> None:
        """Resets the stream; the TCP connection stays."""
        self._stream.cancel()

    async def until(self, wanted: Callable[[Packed], bool], *, since: int = 0, seconds: float = 30.0) -> Packed:
        """The first wanted message of the stream after the first `since` ones. Raises `Lost` if the stream ends."""

        async def found() -> Packed:
            while True:
                for message in self.heard[since:]:
                    if wanted(message):
                        return message
                if self.ended.done():
                    raise Lost(self.ended.result())
                self._news.clear()
                await self._news.wait()

        return await asyncio.wait_for(found(), seconds)

    async def pushed(self, service: str, *hosts: tuple[str, int], seconds: float = 30.0) -> Packed:
        """Waits until the newest push about `service` (its bare name) lists exactly these hosts."""

        def wanted(_: Packed) -> bool:
            return (last := self.last(service)) is not None and hosts_of(last.body["serviceInfo"]) == set(hosts)

        await self.until(wanted, seconds=seconds)
        last = self.last(service)
        assert last is not None
        return last

    def pushes(self, service: str) -> list[Packed]:
        """All pushes about the service with this bare name."""
        notes = (m for m in self.heard if m.type == "NotifySubscriberRequest")
        return [note for note in notes if note.body["serviceInfo"]["name"] == service]

    def last(self, service: str) -> Packed | None:
        return next(reversed(self.pushes(service)), None)

    async def _read(self, stream: Any) -> None:
        status = "OK"
        try:
            while (data := await stream.read()) is not grpc.aio.EOF:
                asked = unpack(data)
                self.heard.append(asked)
                self._news.set()
                if asked.type != "SetupAckRequest" and self.acknowledges(asked):
                    answer = asked.type.removesuffix("Request") + "Response"
                    result = {"resultCode": 200, "errorCode": 0, "success": True}
                    await stream.write(pack(answer, {**result, "requestId": asked.body.get("requestId")}))
            status = (await stream.code()).name
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        except (asyncio.InvalidStateError, asyncio.CancelledError) as error:
            status = type(error).__name__
            if stream.done() is False:
                raise
        finally:
            if not self.ended.done():
                self.ended.set_result(status)
            self._news.set()


def instance(ip: str, port: int, **fields: Any) -> dict[str, Any]:
    """An instance as SDKs send it, with other `fields`."""
    own: dict[str, Any] = {"ip": ip, "port": port, "weight": 1.0, "healthy": True, "enabled": True, "ephemeral": True}
    return {**own, "clusterName": "DEFAULT", "metadata": {}, **fields}


def hosts_of(info: Mapping[str, Any]) -> set[tuple[str, int]]:
    """The addresses in a `serviceInfo`."""
    return {(host["ip"], host["port"]) for host in info["hosts"]}

"""A session with one server: a TCP connection that the server knows as a client (nacos-grpc.md 3).

phase       | what happens
------------+-----------------------------------------------------------------------------------------------------
set up      | check, setup on the stream, then health checks until the server knows the connection. No abilities
            | are offered, so the server does not negotiate
in use      | calls; the server's requests on the stream are answered. After `quiet` seconds a health check; while
            | one has failed, `answers` is False
ended       | the connection is lost or the stream has ended, the server does not know the session any more (301),
            | asks to leave it (a reset), or two health checks have failed. A session never comes back
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import Garbled, Malformed, UpstreamError
from nacos_proxy.model.services import EMPTY, ServiceKey
from nacos_proxy.runtime import Clock, at_most
from nacos_proxy.wire.nacos.grpc import client
from nacos_proxy.wire.nacos.grpc.client import Detection, Notify, ResetRequest, ServerChecked
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from nacos_proxy.wire.nacos.hosts import Listing

log = logging.getLogger("nacos_proxy.push")

T = TypeVar("T")

PAUSE = Backoff(initial=0.02, maximum=0.5)  # between two questions whether the server knows a new session
MAX_FAILED_CHECKS = 2


@dataclass(frozen=True, slots=True)
class Target:
    """The gRPC port of a server, and its HTTP port. `tls` is None for plain TCP, `name` the name in its certificate."""

    host: str
    port: int
    http_port: int = 0
    tls: ssl.SSLContext | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Connection(Protocol):
    """A connection to a gRPC port: `upstream.grpc.connection.GrpcConnection`."""

    async def call(self, message: bytes, *, timeout: float) -> bytes: ...

    def open_stream(self) -> None: ...

    def send(self, message: bytes) -> None: ...

    def close(self) -> None: ...


class Connect(Protocol):
    """`upstream.grpc.connection.GrpcConnection.connect`."""

    async def __call__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        server_hostname: str | None,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        timeout: float,
    ) -> Connection: ...


async def set_up(
    connection: Connection, setup: Payload, clock: Clock, target: Target, *, answer: float, within: float
) -> ServerChecked:
    """Introduces a connection to its server: the check, the setup on the stream, then health checks.

    Servers read the setup a moment later, and refuse requests until then. So this returns when the server knows the
    session, at the latest after `within` seconds; each answer may take `answer` seconds. Raises `UpstreamError`.
    """
    checked = await _ask(connection, target, client.write_server_check(), client.read_server_check, answer)
    connection.open_stream()
    connection.send(write_payload(setup))
    until, tries = clock.now() + within, 0
    while True:
        try:
            await _ask(connection, target, client.write_health_check(), client.read_health_check, answer)
        except NotRegistered:
            if clock.now() >= until:
                raise
        else:
            return checked
        await clock.sleep_until(clock.now() + PAUSE.delay(tries))
        tries += 1


async def _ask(
    connection: Connection, target: Target, request: Payload, read: Callable[[Payload], T], timeout: float
) -> T:
    answer = await connection.call(write_payload(request), timeout=timeout)
    try:
        return read(read_payload(answer))
    except Malformed as error:
        raise Garbled(f"gRPC of {target}: the answer cannot be read: {error}", answered=True) from error


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """Seconds. `connect` and `answer` limit a connection and a call. Within `set_up` the server must know the session.

    `quiet`: servers ask clients that were silent for 20 s whether they are there, and SDKs check after 5 s.
    """

    version: str = "nacos-proxy"
    connect: float = 3.0
    answer: float = 3.0
    set_up: float = 5.0
    quiet: float = 5.0


class Session:
    """Made by `open`. `target` is its server. `answers`: the server answered the last health check.

    `reset_to`: the address (host and HTTP port) of the server that a reset named, if it named one.
    """

    def __init__(
        self, target: Target, policy: SessionPolicy, clock: Clock, on_notify: Callable[[Notify], None]
    ) -> None:
        self.target = target
        self.answers = True
        self.reset_to: tuple[str, int] | None = None
        self._policy = policy
        self._clock = clock
        self._on_notify = on_notify
        self._connection: Connection | None = None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._unreadable = 0

    @classmethod
    async def open(
        cls,
        connect: Connect,
        target: Target,
        policy: SessionPolicy,
        clock: Clock,
        on_notify: Callable[[Notify], None],
        namespace: str = "",
    ) -> Session:
        """Returns when the server knows the session. Raises `OSError` and `UpstreamError`."""
        session = cls(target, policy, clock, on_notify)
        session._connection = connection = await connect(
            target.host,
            target.port,
            tls=target.tls,
            server_hostname=(target.name or target.host) if target.tls is not None else None,
            on_message=session._on_message,
            on_lost=session.end,
            timeout=policy.connect,
        )
        try:
            await session._set_up(connection, namespace)
        except BaseException:
            session.end("its setup failed")
            raise
        return session

    async def _set_up(self, connection: Connection, namespace: str) -> None:
        labels = {"source": "sdk", "module": "naming", "AppName": "nacos-proxy"}
        setup = client.write_setup(self._policy.version, namespace, labels, None)
        await set_up(
            connection, setup, self._clock, self.target, answer=self._policy.answer, within=self._policy.set_up
        )

    async def subscribe(self, key: ServiceKey, headers: Mapping[str, str] = EMPTY) -> Listing:
        """Subscribes to a service. Returns what the server lists. Raises `UpstreamError`."""
        return await self._ask(client.write_subscribe(key, True, headers), lambda answer: client.read_info(key, answer))

    async def unsubscribe(self, key: ServiceKey, headers: Mapping[str, str] = EMPTY) -> None:
        await self._ask(client.write_subscribe(key, False, headers), lambda answer: client.read_info(key, answer))

    async def until_ended(self) -> str:
        """Checks the server's health until the session ends. Returns the reason."""
        failed = 0
        while not self._ended.done():
            if not failed:
                await at_most(self._clock, self._policy.quiet, self._ended)
            if self._ended.done():
                break
            try:
                await self._ask(client.write_health_check(), client.read_health_check)
            except UpstreamError as error:
                failed += 1
                self.answers = False
                if failed == MAX_FAILED_CHECKS or isinstance(error, NotRegistered):
                    self.end(str(error))
            else:
                failed, self.answers = 0, True
        return self._ended.result()

    @property
    def ended(self) -> bool:
        return self._ended.done()

    def end(self, reason: str) -> None:
        """Closes the connection, unless the session has ended."""
        if self._ended.done():
            return
        self._ended.set_result(reason)
        self.answers = False
        if self._connection is not None:
            self._connection.close()

    async def _ask(self, request: Payload, read: Callable[[Payload], T]) -> T:
        assert self._connection is not None
        return await _ask(self._connection, self.target, request, read, self._policy.answer)

    def _on_message(self, message: bytes) -> None:
        try:
            asked = client.read_push(read_payload(message))
        except Malformed as error:
            self._unreadable += 1
            if self._unreadable == 1:
                log.warning("gRPC of %s: a push cannot be read: %s", self.target, error)
            return
        match asked:
            case Notify():
                self._on_notify(asked)
                self._acknowledge("NotifySubscriberResponse", asked.request_id)
            case Detection():
                self._acknowledge("ClientDetectionResponse", asked.request_id)
            case ResetRequest():
                self._acknowledge("ConnectResetResponse", asked.request_id)
                self.reset_to = (asked.ip, asked.port) if asked.ip else None
                self.end("the server asked to connect anew")
            case _:
                pass  # an answer to our setup, or a request that only newer clients know

    def _acknowledge(self, kind: str, request_id: str) -> None:
        if self._connection is not None:
            self._connection.send(write_payload(client.write_ack(kind, request_id)))

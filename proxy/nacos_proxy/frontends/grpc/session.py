"""A session: one TCP connection of an SDK, from its first request to its end (nacos-grpc.md 3).

    state            what comes                       what happens
    -----            ----------                       ------------
    any              ServerCheckRequest               the connection's id
    new              setup of `naming`, or without    naming; SetupAckRequest if the SDK wants it
                     setup of another module          tunnelled
                     any other request                301
    naming           a request                        answered here; an unknown one: 302
    tunnelled        anything                         to the upstream
    naming           silence for 20 s                 ClientDetectionRequest; after 5 s more: closed

To end a session, the TCP connection is closed: some SDKs understand nothing else (nacos-grpc.md 9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nacos_proxy.frontends.grpc.access import TOKEN, Admit, Connection, Tunnel, Tunnels
from nacos_proxy.frontends.grpc.connection import LOW_WATER
from nacos_proxy.frontends.grpc.fuzzy_watch import ABILITY as FUZZY_ABILITY
from nacos_proxy.frontends.grpc.fuzzy_watch import PREFIX as FUZZY_PREFIX
from nacos_proxy.frontends.grpc.fuzzy_watch import REQUEST as FUZZY_WATCH
from nacos_proxy.frontends.grpc.fuzzy_watch import FuzzyWatches
from nacos_proxy.frontends.grpc.naming import Naming
from nacos_proxy.frontends.grpc.pushes import Pushes
from nacos_proxy.model.errors import Malformed, ProxyError
from nacos_proxy.request_context import GRPC, Answered, RequestContext, work_for
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from nacos_proxy.wire.nacos.grpc.refusals import SUCCESS, NotRegistered, code_of
from nacos_proxy.wire.nacos.grpc.server import (
    REQUEST_TYPES,
    HealthCheck,
    Request,
    RequestType,
    ServerCheck,
    find_type,
    write_answer,
    write_error,
)
from nacos_proxy.wire.nacos.grpc.stream import (
    NAMING,
    Acknowledgement,
    ConnectionSetup,
    read_stream,
    write_detection,
    write_setup_ack,
)

log = logging.getLogger("nacos_proxy.grpc")

ABILITIES: Mapping[str, bool] = {"supportPersistentInstanceByGrpc": True}
FAILED_HERE = "Internal"  # the outcome of a request that failed here
_INTERNAL = 13  # the status of gRPC for a call that failed here, or cannot be read
_DETECTION = "detection"  # the request id; there is one at a time


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """`silent`: seconds after which an SDK is asked whether it is there. Without an answer for `detection`, it is gone.

    `no_setup`: seconds of silence after which a connection without a setup is closed.
    """

    silent: float = 20.0
    detection: float = 5.0
    no_setup: float = 60.0


@dataclass(slots=True)
class _Call:
    """A request on its stream. `began`: in seconds of the clock. `kind`: None if its class is unknown."""

    stream: int
    began: float
    context: RequestContext
    kind: RequestType | None


def _name_of(kind: RequestType | None) -> str:
    return "other" if kind is None else kind.name


class Host(Protocol):
    """What all sessions share: the server."""

    @property
    def policy(self) -> SessionPolicy: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def supervisor(self) -> Supervisor: ...

    @property
    def pushes(self) -> Pushes: ...

    @property
    def admit(self) -> Admit: ...

    @property
    def tunnels(self) -> Tunnels: ...

    @property
    def fuzzy(self) -> FuzzyWatches | None: ...

    def read(self, kind: RequestType, payload: Payload) -> Request:
        """The request in a payload. Raises `BadCall`."""
        ...

    def begin(self, kind: str, client: str) -> RequestContext:
        """A request begins. `kind`: the name of its class; `other` if that is unknown."""
        ...

    def answered(self, request: RequestContext, answered: Answered, outcome: str) -> None:
        """A request was answered: `ok`, the name of the error, or `FAILED_HERE`."""
        ...

    def ended(self, session: Session, reason: str) -> None:
        """The connection is gone."""
        ...


class Session:
    """A `Handler` of the connection. `setup` is None until the SDK has sent it; `since` is in seconds of the clock."""

    __slots__ = (
        "_calls", "_closing", "_connection", "_detected_at", "_early", "_fuzzy", "_heard_at", "_host", "_naming",
        "_opening", "_stream", "_tunnel", "id", "reason", "setup", "since",
    )  # fmt: skip

    def __init__(self, connection: Connection, host: Host) -> None:
        self.id = f"{int(host.clock.wall() * 1000)}_{connection.name}"
        self.setup: ConnectionSetup | None = None
        self.reason = ""  # why it ends; '': the connection knows
        self.since = self._heard_at = host.clock.now()
        self._detected_at: float | None = None
        self._connection = connection
        self._host = host
        self._stream = 0
        self._naming = Naming(
            self.id, connection.client, host.admit, host.pushes, self._push, self._revoked, self._reconnect
        )
        self._tunnel: Tunnel | None = None
        self._fuzzy: Tunnel | None = None  # None: not offered
        self._opening = False  # the tunnel
        self._early: list[Callable[[Tunnel], None]] = []  # what came before the tunnel was open
        self._calls = 0  # under way
        self._closing = False

    # what the connection calls

    def unary(self, stream: int, message: bytes) -> None:
        self._heard()
        try:
            payload = read_payload(message)
        except Malformed as error:
            self._connection.fail(stream, _INTERNAL, str(error))
            return
        if payload.type == "ServerCheckRequest":
            self._request(stream, payload)
        elif self._opening:
            self._early.append(lambda tunnel: tunnel.unary(stream, payload))
        elif self._tunnel is not None:
            self._tunnel.unary(stream, payload)
        elif self._fuzzy is not None and payload.type == FUZZY_WATCH:
            self._fuzzy.unary(stream, payload)
        else:
            self._request(stream, payload)

    def stream_message(self, stream: int, message: bytes) -> None:
        self._heard()
        try:
            payload = read_payload(message)
        except Malformed as error:
            self.close("malformed", f"it sent what is no payload: {error}")
            return
        said = read_stream(payload)
        if isinstance(said, Acknowledgement) and said.request_id == _DETECTION:
            self._detected_at = None
        elif self._opening:
            self._early.append(lambda tunnel: tunnel.stream(payload))
        elif self._tunnel is not None:
            self._tunnel.stream(payload)
        elif isinstance(said, ConnectionSetup):
            self._set_up(stream, said, payload)
        elif self._fuzzy is not None and payload.type.startswith(FUZZY_PREFIX):
            self._fuzzy.stream(payload)
        elif isinstance(said, Acknowledgement):
            self._naming.acknowledged(said.request_id)

    def stream_ended(self, stream: int) -> None:
        """The SDK ended its stream, so it is gone. A stream before that of the last setup does not count."""
        if stream == self._stream or self.setup is None:
            self.close("stream")

    def drained(self) -> None:
        self._naming.drained()
        for tunnel in (self._tunnel, self._fuzzy):
            if tunnel is not None:
                tunnel.drained()

    def lost(self) -> None:
        tunnels, self._tunnel, self._fuzzy = (self._tunnel, self._fuzzy), None, None
        for tunnel in tunnels:
            if tunnel is not None:
                tunnel.close()
        self._naming.close(back_soon=self.reason in ("stopping", "redo"))
        self._early.clear()
        cause = self._connection.cause or "peer"
        if not self.reason and cause != "peer":
            self._log_end(self._connection.reason)
        self._host.ended(self, self.reason or cause)

    # setup

    def _set_up(self, stream: int, setup: ConnectionSetup, payload: Payload) -> None:
        self._stream, self.setup = stream, setup
        if setup.module not in ("", NAMING):
            self._opening = True
            self._connection.pause()
            self._host.supervisor.once(self._open(payload), name="gRPC tunnel")
        elif setup.abilities is not None:
            if self._fuzzy is None and self._host.fuzzy is not None and setup.abilities.get(FUZZY_ABILITY):
                self._fuzzy = self._host.fuzzy.open(payload, self._connection, stream)
            abilities = ABILITIES if self._fuzzy is None else {**ABILITIES, FUZZY_ABILITY: True}
            self._connection.push(stream, write_payload(write_setup_ack(abilities)))

    async def _open(self, setup: Payload) -> None:
        connection = self._connection
        try:
            tunnel = await self._host.tunnels.open(connection.client, setup, connection, self._stream)
        except ProxyError as error:
            self.close("tunnel", f"no tunnel for its module: {error}")
            return
        finally:
            self._opening = False
            connection.resume()
        if connection.cause is not None:  # the client left meanwhile
            tunnel.close()
            return
        self._tunnel = tunnel
        early, self._early = self._early, []
        for pass_on in early:
            pass_on(tunnel)

    # requests

    def _request(self, stream: int, payload: Payload) -> None:
        known = REQUEST_TYPES.get(payload.type)  # what the client wrote may be long: it is not kept
        context = self._host.begin(_name_of(known), self._connection.client)
        call = _Call(stream, self._host.clock.now(), context, known)
        try:
            kind = find_type(payload)
            if self.setup is None and kind.name != "ServerCheckRequest":
                raise NotRegistered
            request = self._host.read(kind, payload)
        except ProxyError as error:
            self._refuse(call, error)
            return
        if isinstance(request, ServerCheck | HealthCheck):
            self._answer(call, write_payload(write_answer(kind, request, self.id)))
            return
        self._calls += 1
        token = payload.headers.get(TOKEN)
        self._host.supervisor.once(self._perform(call, kind, request, token), name="gRPC request")

    async def _perform(self, call: _Call, kind: RequestType, request: Request, token: str | None) -> None:
        work_for(call.context)
        answered = False
        try:
            message = await self._naming.answer(kind, request, token)
        except ProxyError as error:
            self._refuse(call, error)
            answered = True
        else:
            self._answer(call, message)
            answered = True
        finally:
            if not answered:
                self._fail(call)
            self._calls -= 1
            if self._closing and not self._calls:
                self._connection.close()

    def _answer(self, call: _Call, message: bytes) -> None:
        self._end(call, "ok", SUCCESS, message)

    def _refuse(self, call: _Call, error: ProxyError) -> None:
        self._end(call, type(error).__name__, code_of(error), write_payload(write_error(call.kind, error)))

    def _end(self, call: _Call, outcome: str, code: int, message: bytes) -> None:
        self._report(call, outcome, code, len(message))
        self._connection.answer(call.stream, message)

    def _fail(self, call: _Call) -> None:
        self._report(call, FAILED_HERE, 500, 0)
        self._connection.fail(call.stream, _INTERNAL, "internal error")

    def _report(self, call: _Call, outcome: str, code: int, size: int) -> None:
        name = _name_of(call.kind)
        seconds, client = self._host.clock.now() - call.began, self._connection.client
        answered = Answered(GRPC, name, "", name, code, seconds, size, client, call.context.id)
        self._host.answered(call.context, answered, outcome)

    def _push(self, message: bytes) -> bool:
        if self._connection.unsent > LOW_WATER:
            return False
        self._connection.push(self._stream, message)
        return True

    # life and end

    def _heard(self) -> None:
        self._heard_at = self._host.clock.now()
        self._detected_at = None

    def look(self, now: float) -> None:
        """Asks a silent SDK whether it is there, and closes the connection of one that did not answer."""
        policy = self._host.policy
        if self.setup is None:
            if now - self._heard_at >= policy.no_setup:
                self.close("silent")
        elif self._detected_at is not None:
            if now - self._detected_at >= policy.detection:
                self.close("silent", "it did not answer whether it is there")
        elif now - self._heard_at >= policy.silent:
            self._detected_at = now
            self._connection.push(self._stream, write_payload(write_detection(_DETECTION)))

    def shift(self, gap: float) -> None:
        """This process stood still for `gap` seconds, in which it heard nobody."""
        self._heard_at += gap
        if self._detected_at is not None:
            self._detected_at += gap

    def _revoked(self, error: ProxyError) -> None:
        self.close("revoked", str(error))

    def _reconnect(self) -> None:
        self.close("redo", "the upstream is back; its SDK repeats on a new connection what was refused meanwhile")

    def close(self, reason: str, why: str = "") -> None:
        """Closes the connection."""
        self.reason = reason
        if why:
            self._log_end(why)
        self._connection.close()

    def _log_end(self, why: str) -> None:
        log.info("gRPC session %s (%s) ends: %s", self.id, self.client_version or "no setup", why)

    def stop(self) -> None:
        """This process stops: closes the connection when the requests under way are answered. Deregisters nothing."""
        self.reason, self._closing = "stopping", True
        if not self._calls:
            self._connection.close()

    # for operators

    @property
    def client_version(self) -> str:
        return self.setup.client_version if self.setup is not None else ""

    @property
    def published(self) -> int:
        return self._naming.published

    @property
    def subscriptions(self) -> int:
        return self._naming.subscriptions

    def status(self, now: float) -> dict[str, Any]:
        """For `/status`. It has no secrets."""
        setup = self.setup
        return {
            "client": self._connection.client,
            "sdk": self.client_version,
            "app": setup.app if setup else "",
            "module": (setup.module or NAMING) if setup else "",
            "namespaceId": setup.namespace if setup else "",
            "subscriptions": self.subscriptions,
            "published": self.published,
            "sinceSeconds": round(now - self.since, 3),
        }

"""What is not naming (configuration, locks, AI) passes to the upstream and back unchanged.

A connection whose `labels.module` is not `naming` gets a connection of its own to a server. Either end's death closes
both. Only this proxy's own API tokens are removed, after their right was checked.

    the upstream         | the client
    ---------------------+---------------------------------------------------------------------------
    cannot be reached    | its connection is closed, and the SDK tries again
    has no gRPC at all   | its setup is accepted; requests are answered 302, health checks with success
    does not negotiate   | gets the acknowledgement of its setup from us, with no ability

Flow control: while the client takes no more bytes, nothing is read from the server, and the reverse. But never both at
once: each end's window updates must still be read, or the two would wait for each other for ever.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.frontends.auth import AccessControl, LastingAdmission
from nacos_proxy.frontends.grpc.access import HIGH_WATER, TOKEN, Connection, Dialing, Tunnel
from nacos_proxy.frontends.open_streams import Right
from nacos_proxy.frontends.own_tokens import without_own_in_payload
from nacos_proxy.model.errors import BadCall, ProxyError, Refused, TooSlow, UpstreamError, Violation
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.grpc.tunnel import CALLS, UpstreamConnection
from nacos_proxy.wire.nacos.grpc.payload import Payload, write_payload
from nacos_proxy.wire.nacos.grpc.refusals import ERROR_RESPONSE, NoHandler, write_failure
from nacos_proxy.wire.nacos.grpc.server import HealthCheck, find_type, write_answer
from nacos_proxy.wire.nacos.grpc.stream import ConnectionSetup, read_stream, write_setup_ack

log = logging.getLogger("nacos_proxy.api")

HEALTH_CHECK = "HealthCheckRequest"
SETUP = "ConnectionSetupRequest"

# Statuses of gRPC.
UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 2, 4, 8, 14

_READS = frozenset(
    {
        "ConfigQueryRequest",
        "ConfigBatchListenRequest",
        "ConfigFuzzyWatchRequest",
        "QueryMcpServerRequest",
        "QueryAgentCardRequest",
        "QueryPromptRequest",
    }
)
_ANSWERS = {"ConfigBatchListenRequest": "ConfigChangeBatchListenResponse"}  # others end in Response, not Request


def required_right(kind: str) -> Right | None:
    """The right that a request needs, as for forwarded HTTP requests: 'admin' if it can change the upstream."""
    if kind == HEALTH_CHECK:
        return None
    return "read" if kind in _READS else "admin"


def response_class(kind: str) -> str:
    """The class of the response to a class of request."""
    return _ANSWERS.get(kind) or kind.removesuffix("Request") + "Response"


@dataclass(frozen=True, slots=True)
class TunnelPolicy:
    """`tunnels` at once and `bytes` of unanswered requests, which clients (addresses) share.

    `timeout`: seconds for an answer of the upstream. SDKs wait for 3 s, unless they are told otherwise.
    """

    tunnels: int = 1000
    bytes: int = 64 << 20
    timeout: float = 30.0


class GrpcTunnels:
    """Implements `Tunnels`. Without a dialer (on the embedded registry) there is nothing to pass requests to.

    `open` counts the tunnels, `opened` all that there were, `refused` those that a client had too many of. `error` says
    why the last one could not be opened; '' if it could.
    """

    def __init__(self, dialer: Dialing | None, guard: AccessControl, policy: TunnelPolicy = TunnelPolicy()) -> None:
        self.guard = guard
        self.policy = policy
        self.opened = self.refused = 0
        self.error = ""
        self.bytes: Shares[str] = Shares(policy.bytes)
        self.tunnels: Shares[str] = Shares(policy.tunnels)
        self._dialer = dialer

    async def open(self, client: str, setup: Payload, connection: Connection, stream: int) -> Tunnel:
        if not self.tunnels.room(client):
            self.refused += 1
            raise BadCall("", Violation.OTHER, "this address has too many connections for configuration", status=429)
        self.tunnels.take(client)
        tunnel = _Tunnel(self, client, connection, stream)
        try:
            return await self._open(tunnel, setup, connection, stream)
        except BaseException:
            tunnel.close()
            raise

    async def _open(self, tunnel: _Tunnel, setup: Payload, connection: Connection, stream: int) -> Tunnel:
        read = read_stream(setup)
        waits = isinstance(read, ConnectionSetup) and read.abilities is not None
        absent = "the registry is embedded" if self._dialer is None else self._dialer.absent()
        acknowledges = False
        if self._dialer is not None and not absent:
            try:
                acknowledges = await tunnel.connect(self._dialer, setup)
            except UpstreamError as error:
                self._note(f"cannot be reached: {error}")
                raise
        self._note(f"has no gRPC: {absent}" if absent else "")
        if waits and not acknowledges:
            connection.push(stream, write_payload(write_setup_ack({})))
        self.opened += 1
        return tunnel

    def _note(self, error: str) -> None:
        """Logs why clients cannot be passed on, once until that changes."""
        before, self.error = self.error, error
        if error and error != before:
            log.warning("clients ask for configuration by gRPC, but the upstream %s", error)
        elif before and not error:
            log.warning("clients reach the upstream's gRPC again")

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        return {"open": self.tunnels.total, "opened": self.opened, "refused": self.refused, "error": self.error}


class _Tunnel:
    """One client's connection, and its own one to a server. Without that, every request is answered 302."""

    def __init__(self, tunnels: GrpcTunnels, client: str, connection: Connection, stream: int) -> None:
        self._tunnels = tunnels
        self._client = client
        self._connection = connection
        self._stream = stream
        self._upstream: UpstreamConnection | None = None
        self._closed = False
        self._upstream_paused = self._client_paused = False
        self._calls = asyncio.Semaphore(CALLS)
        self._room = asyncio.Event()  # the client may take more bytes now
        self._admission = LastingAdmission(tunnels.guard, lambda error: self.lost(str(error)))

    async def connect(self, dialer: Dialing, setup: Payload) -> bool:
        """Whether the server acknowledges the setup. Raises `UpstreamError`s."""
        dialed = await dialer.dial(self._connection.name, self._without_own(setup), self)
        self._upstream = dialed.connection
        if self._closed:
            dialed.connection.close()
        self._balance()
        return dialed.acknowledges

    # --- from the client ----------------------------------------------------------------------------------------------

    def unary(self, stream: int, payload: Payload) -> None:
        try:
            if (right := required_right(payload.type)) is not None:
                self._admission.check(payload.headers.get(TOKEN), right)
            request = self._without_own(payload)
        except ProxyError as error:
            answer = write_failure(response_class(payload.type), error)
            self._connection.answer(stream, write_payload(answer))
            return
        if self._upstream is None:
            self._connection.answer(stream, write_payload(_answer_alone(payload)))
            return
        message = write_payload(request)
        held = self._tunnels.bytes
        if not held.room(self._client, len(message)):
            self._connection.fail(stream, RESOURCE_EXHAUSTED, "this address has too many requests under way")
            return
        held.take(self._client, len(message))
        spawn(self._call(self._upstream, stream, message), name="request through a tunnel")

    async def _call(self, upstream: UpstreamConnection, stream: int, message: bytes) -> None:
        connection = self._connection
        try:
            async with self._calls:
                answer = await upstream.call(message, timeout=self._tunnels.policy.timeout)
                while connection.unsent > HIGH_WATER and not self._closed:
                    self._room.clear()
                    await self._room.wait()
                connection.answer(stream, answer)
        except UpstreamError as error:
            status = UNKNOWN if isinstance(error, Refused) else UNAVAILABLE
            connection.fail(stream, DEADLINE_EXCEEDED if isinstance(error, TooSlow) else status, str(error))
        finally:
            self._tunnels.bytes.give_back(self._client, len(message))
        self._balance()

    def stream(self, payload: Payload) -> None:
        """Only what a server reads: it ignores all but setups and responses (nacos-grpc.md 3)."""
        if self._upstream is not None and (payload.type == SETUP or payload.type.endswith("Response")):
            try:
                self._upstream.send(write_payload(self._without_own(payload)))
            except ProxyError as error:
                log.debug("a message of %s is dropped: %s", self._client, error)
            self._balance()

    def _without_own(self, payload: Payload) -> Payload:
        guard = self._tunnels.guard
        return without_own_in_payload(payload, guard.is_own) if guard.policy.tokens else payload

    def drained(self) -> None:
        """Called for both ends."""
        self._room.set()
        self._balance()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._room.set()
        self._tunnels.tunnels.give_back(self._client)
        self._admission.release()
        if self._upstream is not None:
            self._upstream.close()

    # --- from the server ----------------------------------------------------------------------------------------------

    def received(self, message: bytes) -> None:
        self._connection.push(self._stream, message)
        self._balance()

    def lost(self, reason: str) -> None:
        if not self._closed:
            log.info("the tunnel of %s ends: %s", self._client, reason)
        self.close()
        self._connection.close()

    # --- flow control -------------------------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Pauses and resumes both ends. The server waits first, so that both never wait for each other."""
        upstream, connection = self._upstream, self._connection
        if upstream is None or self._closed:
            return
        upstream_paused = connection.unsent > HIGH_WATER
        client_paused = upstream.unsent > HIGH_WATER and not upstream_paused
        if upstream_paused != self._upstream_paused:
            self._upstream_paused = upstream_paused
            upstream.pause() if upstream_paused else upstream.resume()
        if client_paused != self._client_paused:
            self._client_paused = client_paused
            connection.pause() if client_paused else connection.resume()


def _answer_alone(payload: Payload) -> Payload:
    if payload.type == HEALTH_CHECK:
        return write_answer(find_type(payload), HealthCheck(), None)
    return write_failure(ERROR_RESPONSE, NoHandler())

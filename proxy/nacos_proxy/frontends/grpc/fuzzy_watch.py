"""Fuzzy watch of 3.x SDKs: which services match a pattern (nacos-grpc.md 8). Passed on to a server of 3.x.

It is not answered here: a pattern may match groups, which no naming API lists, and the server counts a service without
instances as there for a minute. So the ability is offered only in front of servers that have it.

The SDK's naming session stays here. Its fuzzy watches share one connection to a server, which the server takes for
another session of the SDK. If that is lost, the session goes on: the patterns are sent again on a new one. The server
then names every service that matches, and the SDK ignores those that it knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.frontends.auth import AccessControl, LastingAdmission
from nacos_proxy.frontends.grpc.access import HIGH_WATER, TOKEN, Connection, Dialing
from nacos_proxy.frontends.own_tokens import without_own_in_payload
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.errors import BadCall, Malformed, ProxyError, UpstreamError, Violation, is_denied
from nacos_proxy.runtime import Clock, Supervisor
from nacos_proxy.upstream.grpc.tunnel import UpstreamConnection
from nacos_proxy.wire.nacos.grpc.client import Detection, ResetRequest, read_push, write_ack
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from nacos_proxy.wire.nacos.grpc.refusals import NotReadable, read_failure, write_failure
from nacos_proxy.wire.nacos.shapes import dumps, read_exactly

log = logging.getLogger("nacos_proxy.grpc")

ABILITY = "fuzzyWatch"
REQUEST, RESPONSE = "NamingFuzzyWatchRequest", "NamingFuzzyWatchResponse"
PREFIX = "NamingFuzzyWatch"  # of all types of messages about it
MAX_PATTERNS = 50  # of one session; a server accepts 20 in all unless it is told otherwise
MAX_PATTERN = 1024  # characters
OVER_LIMIT = 50310  # the server's error code for too many patterns, on which an SDK does not repeat the request
TIMEOUT = 5.0  # seconds for an answer
AGAIN = Backoff(initial=1.0, maximum=30.0)  # after the connection to the server was lost

Headers = Callable[["Mapping[str, str] | None"], Awaitable[Mapping[str, str]]]
"""The headers with this proxy's own account; the argument is headers that a server has just refused."""


@dataclass(frozen=True, slots=True)
class FuzzyWatches:
    """What the fuzzy watches of all sessions share. `offered()`: whether the upstream has them.

    `headers` is None if only the client's own token counts (auth = client). `bytes` are those of requests under way.
    """

    dialer: Dialing
    guard: AccessControl
    offered: Callable[[], bool]
    headers: Headers | None
    clock: Clock
    supervisor: Supervisor
    connections: Shares[str]
    bytes: Shares[str]

    def open(self, setup: Payload, connection: Connection, stream: int) -> FuzzyWatch | None:
        """For a session whose setup came on `stream`. None if the upstream has no fuzzy watch."""
        return FuzzyWatch(self, self.without_own(setup), connection, stream) if self.offered() else None

    def without_own(self, payload: Payload) -> Payload:
        """The payload without API tokens of this proxy."""
        return without_own_in_payload(payload, self.guard.is_own) if self.guard.policy.tokens else payload


class FuzzyWatch:
    """The fuzzy watches of one session. Implements `Tunnel`."""

    def __init__(self, host: FuzzyWatches, setup: Payload, connection: Connection, stream: int) -> None:
        self._host = host
        self._setup = setup
        self._connection = connection
        self._stream = stream
        self._watches: dict[str, Payload] = {}  # what to send again, by pattern
        self._upstream: UpstreamConnection | None = None
        self._dialing = asyncio.Lock()
        self._restoring: asyncio.Task[None] | None = None
        self._closed = False
        self._admission = LastingAdmission(host.guard, lambda _: connection.close())

    # from the SDK

    def unary(self, stream: int, payload: Payload) -> None:
        held, client, size = self._host.bytes, self._connection.client, len(payload.body)
        if not held.room(client, size):
            error = BadCall("", Violation.OTHER, "this address has too many requests under way", status=429)
            self._connection.answer(stream, write_payload(write_failure(RESPONSE, error)))
            return
        held.take(client, size)
        task = self._host.supervisor.once(self._answer(stream, payload), name="fuzzy watch")
        task.add_done_callback(lambda _: held.give_back(client, size))

    async def _answer(self, stream: int, payload: Payload) -> None:
        try:
            self._admission.check(payload.headers.get(TOKEN), "read")
            if not self._note(payload):
                answer = Payload(RESPONSE, dumps({"resultCode": 500, "errorCode": OVER_LIMIT, "success": False}))
            else:
                answer = await self._ask(payload)
        except ProxyError as error:
            answer = write_failure(RESPONSE, error)
        self._connection.answer(stream, write_payload(answer))

    def stream(self, payload: Payload) -> None:
        if self._upstream is not None:
            self._upstream.send(write_payload(payload))

    def _note(self, payload: Payload) -> bool:
        """Remembers a pattern until it is cancelled. False if there are too many. Raises `NotReadable`."""
        try:
            body = read_exactly(payload.body)
        except Malformed as error:
            raise NotReadable from error
        fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        pattern, what = fields.get("groupKeyPattern"), fields.get("watchType")
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
            raise BadCall("groupKeyPattern", Violation.OTHER, "groupKeyPattern is missing or too long")
        if what == "CANCEL_WATCH":
            self._watches.pop(pattern, None)
        elif what == "WATCH":
            if pattern not in self._watches and len(self._watches) >= MAX_PATTERNS:
                return False
            again: dict[str, Any] = {**fields, "receivedGroupKeys": []}  # the SDK ignores what it knows
            self._watches[pattern] = payload._replace(body=dumps(again))
        return True

    # to the server

    async def _ask(self, payload: Payload) -> Payload:
        """The server's answer. With our own account, logs in again if the server refuses its token.

        Raises `ProxyError`s.
        """
        headers, request = self._host.headers, self._host.without_own(payload)
        if headers is None or TOKEN in request.headers:
            return await self._call(request)
        ours = await headers(None)
        answer = await self._call(request._replace(headers={**request.headers, **ours}))
        if not is_denied(_failure(answer)):
            return answer
        renewed = await headers(ours)
        return answer if renewed == ours else await self._call(request._replace(headers={**request.headers, **renewed}))

    async def _call(self, request: Payload) -> Payload:
        upstream = await self._connected()
        try:
            return read_payload(await upstream.call(write_payload(request), timeout=TIMEOUT))
        except (UpstreamError, Malformed) as error:
            upstream.close()
            if isinstance(error, UpstreamError):
                raise
            raise NotReadable from error

    async def _connected(self) -> UpstreamConnection:
        """The connection to a server, made if there is none. Raises `UpstreamError`s, and `BadCall` for too many."""
        async with self._dialing:
            if self._upstream is not None:
                return self._upstream
            connections, client = self._host.connections, self._connection.client
            if not connections.room(client):
                raise BadCall("", Violation.OTHER, "this address has too many connections to the upstream", status=429)
            connections.take(client)
            try:
                dialed = await self._host.dialer.dial(self._connection.name, self._setup, self)
            except BaseException:
                connections.give_back(client)
                raise
            self._upstream = dialed.connection
            if self._closed:
                dialed.connection.close()
            return dialed.connection

    async def _restore(self) -> None:
        """Sends the patterns again, until the server has them."""
        clock, tries = self._host.clock, 0
        while self._watches:
            await clock.sleep_until(clock.now() + AGAIN.delay(tries))
            tries += 1
            try:
                for payload in list(self._watches.values()):
                    await self._ask(payload)
                return
            except ProxyError as error:
                log.debug("the fuzzy watches of %s wait: %s", self._connection.name, error)

    # from the server

    def received(self, message: bytes) -> None:
        upstream = self._upstream
        try:
            payload = read_payload(message)
            push = read_push(payload)
        except Malformed as error:
            log.info("a push to %s cannot be read: %s", self._connection.name, error)
            return
        if payload.type.startswith(PREFIX):
            self._connection.push(self._stream, message)
            self.drained()
        elif upstream is not None and isinstance(push, Detection):
            upstream.send(write_payload(write_ack("ClientDetectionResponse", push.request_id)))
        elif upstream is not None and isinstance(push, ResetRequest):
            upstream.close()

    def drained(self) -> None:
        """Called for both ends."""
        if self._upstream is not None:
            self._upstream.pause() if self._connection.unsent > HIGH_WATER else self._upstream.resume()

    def lost(self, reason: str) -> None:
        if self._upstream is None:
            return
        self._upstream = None
        self._host.connections.give_back(self._connection.client)
        if not self._closed and self._watches and (self._restoring is None or self._restoring.done()):
            log.info("the fuzzy watches of %s are sent again: %s", self._connection.name, reason)
            self._restoring = self._host.supervisor.once(self._restore(), name="fuzzy watch again")

    def close(self) -> None:
        self._closed = True
        self._admission.release()
        if self._restoring is not None:
            self._restoring.cancel()
        if self._upstream is not None:
            self._upstream.close()


def _failure(answer: Payload) -> UpstreamError | None:
    try:
        body = read_exactly(answer.body)
    except Malformed:
        return None
    return read_failure(cast("dict[str, Any]", body)) if isinstance(body, dict) else None

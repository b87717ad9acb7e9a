"""Opens an event stream of an upper proxy: one request, and a second one if the account has to be renewed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Protocol

import httpx

from nacos_proxy.model.errors import Garbled, Malformed, Reason, Refused, UpstreamError, is_denied
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.upstream.http.exchange import HttpClient
from nacos_proxy.upstream.http.faults import CAUGHT, upstream_error
from nacos_proxy.wire.rest.sse import Decoder
from nacos_proxy.wire.rest.tiers import BEGIN, EVENTS, NO_PROXY, read_begin, read_data, write_follow

log = logging.getLogger("nacos_proxy.push")


class Headers(Protocol):
    """The headers of an account. `AuthenticatedClient.grpc_headers` is one."""

    def __call__(self, refused: Mapping[str, str] | None = None) -> Awaitable[Mapping[str, str]]:
        """`refused`: those that the upper proxy has just refused. Raises `UpstreamError`."""
        ...


async def no_headers(refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
    return {}


@dataclass(slots=True, eq=False)
class Stream:
    """`revisions`: what the request named for each service, or what the stream has brought since.

    `is_current`: all lists that differed from those were received.
    """

    origin: str
    response: httpx.Response
    revisions: dict[ServiceKey, str]
    is_current: bool = False


class Opener:
    """Opens streams that may be silent for `silence` seconds. `headers`: those of the account."""

    def __init__(self, http: HttpClient, silence: float, headers: Headers) -> None:
        self._http = http
        self._silence = silence
        self._account = headers

    async def open(self, origin: str, revisions: dict[ServiceKey, str], last_id: str) -> Stream:
        """The stream of the services, which names the revisions that are held. Raises `UpstreamError`."""
        body = write_follow(revisions)
        headers = await self._account()
        try:
            response = await self._post(origin, body, last_id, headers)
        except Refused as error:
            if not is_denied(error):
                raise
            renewed = await self._account(headers)
            if renewed == headers:
                raise
            response = await self._post(origin, body, last_id, renewed)
        return Stream(origin, response, revisions)

    async def is_well(self, origin: str, key: ServiceKey) -> bool:
        """Whether the upper proxy answers and reaches its upstream: begins a stream for one service, to ask that."""
        try:
            stream = await self.open(origin, {key: ""}, "")
        except UpstreamError:
            return False
        decoder = Decoder()
        try:
            async for chunk in stream.response.aiter_raw():
                for event in decoder.feed(chunk):
                    if event.kind == BEGIN:
                        return not read_begin(read_data(event.data)).outage
        except (*CAUGHT, Malformed) as error:
            log.debug("%s: %r", origin, error)
        finally:
            await stream.response.aclose()
        return False

    async def _post(self, origin: str, body: bytes, last_id: str, account: Mapping[str, str]) -> httpx.Response:
        http = self._http
        headers = {
            "User-Agent": http.policy.agent,
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            **dict(http.api_token_headers),
            **account,
            **({"Last-Event-ID": last_id} if last_id else {}),
        }
        waits = {"connect": http.policy.timeouts.connect, "read": self._silence, "write": self._silence}
        extensions = {**http.forwarding_extensions, "timeout": {**waits, "pool": waits["connect"]}, "idempotent": True}
        request = httpx.Request("POST", origin + EVENTS, headers=headers, content=body, extensions=extensions)
        try:
            response = await http.exchange(request)
            if response.status_code == 200 and response.headers.get("content-type", "").startswith("text/event-stream"):
                return response
            text = (await response.aread()).decode("utf-8", "replace")[:500]
        except CAUGHT as error:
            raise upstream_error(error, origin) from error
        raise _refusal(origin, response.status_code, text)


def _refusal(origin: str, status: int, text: str) -> UpstreamError:
    if status in (404, 405, 501):
        return Refused(Reason.OTHER, f"{origin}: {NO_PROXY.format(status)}", status=status)
    if status == 200:
        return Garbled(f"{origin}: the answer to a request for events is no event stream", answered=True)
    reason = Reason.NO_RIGHT if status in (401, 403) else Reason.OTHER
    return Refused(reason, f"{origin}: status {status}: {text}", status=status)

"""Calls an ASGI app as a server would. A stream ends by its content, not by a timer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from nacos_proxy.runtime import spawn
from tests.helpers.clock import settle
from tests.helpers.sse import Decoder


def scope(
    method: str, target: str, headers: Mapping[str, str] | None = None, client: str = "127.0.0.1", **more: Any
) -> dict[str, Any]:
    """An HTTP scope for a request target."""
    path, _, query = target.partition("?")
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8840"), *pairs],
        "client": (client, 50_000),
        "server": ("127.0.0.1", 8840),
        **more,
    }


@dataclass
class Exchange:
    """A request in progress. `body` is what has arrived; after `hold` the reader takes no more."""

    scope: dict[str, Any]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    _task: asyncio.Task[None] | None = None
    _requests: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    _free: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> None:
        await self._free.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)
        self._news.set()

    def hold(self) -> None:
        """Makes the reader slow: it takes nothing until `release`."""
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    async def leave(self) -> None:
        """Disconnects the client; returns when the app has noticed."""
        self._requests.put_nowait({"type": "http.disconnect"})
        await self.ended()

    async def ended(self) -> None:
        """Waits until the app has finished."""
        assert self._task is not None
        await self._task

    async def until(self, text: str, times: int = 1) -> str:
        """Waits until `text` has appeared `times` times; returns the body so far."""
        while self.body.decode().count(text) < times:
            assert not self.complete, f"the stream ended before {text!r} came: {self.body!r}"
            self._news.clear()
            await self._news.wait()
        return self.body.decode()

    def events(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The events so far: name, id, data."""
        return [(m.event, m.id, json.loads(m.data)) for m in Decoder().feed(self.body)]

    def json(self) -> Any:
        return json.loads(self.body)


async def start(app: ASGIApp, request: dict[str, Any], body: bytes = b"", *, held: bool = False) -> Exchange:
    """Begins a request and lets the app run until it waits for something. `held`: it waits with the answer's head."""
    exchange = Exchange(request)
    if not held:
        exchange.release()
    exchange._requests.put_nowait({"type": "http.request", "body": body, "more_body": False})
    exchange._task = spawn(_run(app, exchange), name="app under test")
    await settle()
    return exchange


async def _run(app: ASGIApp, exchange: Exchange) -> None:
    await app(exchange.scope, exchange._requests.get, exchange.send)


async def ask(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    json_body: object = None,
    body: bytes = b"",
    **more: Any,
) -> Exchange:
    """Sends a whole request and returns the whole answer."""
    sent = dict(headers or {})
    if json_body is not None:
        body = json.dumps(json_body).encode()
        sent = {"content-type": "application/json", **sent}
    exchange = await start(app, scope(method, target, sent, **more), body)
    await exchange.ended()
    return exchange

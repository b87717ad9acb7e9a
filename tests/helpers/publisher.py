"""A proxy process that publishes what a request below /test/ says, as a gRPC connection would: for `ProxyProcess`.

`POST /test/publish?owner=O&service=S&ip=I&port=P[&heartbeat timeout in s: &timeout=T]`, `POST /test/end?owner=O`. It
can be killed and started again, which a server in the test's own process cannot.
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from nacos_proxy.app.components import build
from nacos_proxy.app.server import App, uvicorn_config
from nacos_proxy.app.settings import load
from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import SystemClock
from nacos_proxy.wire.http import HttpReply
from tests.helpers.app import running

COMMAND = (sys.executable, "-m", "tests.helpers.publisher")


class Publisher(App):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/test/"):
            await super().__call__(scope, receive, send)
            return
        status, text = 200, "ok"
        try:
            await self._obey(scope["path"], dict(parse_qsl(scope["query_string"].decode())))
        except ProxyError as error:
            status, text = error.status, str(error)
        await send_reply(send, HttpReply(status, "text/plain", text.encode()))

    async def _obey(self, path: str, asked: dict[str, str]) -> None:
        publications = self.components.publications
        if path == "/test/end":
            publications.end(asked["owner"])
            return
        metadata = {"preserved.register.source": "TEST"}
        if "timeout" in asked:
            timeout = int(asked["timeout"])
            metadata["preserved.heart.beat.interval"] = str(timeout * 1000 // 3)
            metadata["preserved.heart.beat.timeout"] = str(timeout * 1000)
            metadata["preserved.ip.delete.timeout"] = str(timeout * 2000)
        instance = Instance(asked["ip"], int(asked["port"]), metadata=metadata)
        await publications.publish(asked["owner"], ServiceKey.of(asked["service"]), [instance], client="127.0.0.1")


async def main(arguments: list[str]) -> None:
    flags = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(*[iter(arguments)] * 2, strict=True)
    }
    settings = load(flags).settings
    app = Publisher(build(settings, SystemClock()))
    async with running(uvicorn_config(app, settings), settings.port) as url:
        print(f"listening on {url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))

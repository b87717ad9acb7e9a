"""`/docs` works without the internet."""

from __future__ import annotations

import re

from nacos_proxy.app.router import rest_app
from tests.helpers.asgi import ask


async def test_docs_page_loads_only_from_this_process() -> None:
    app = rest_app({})
    page = await ask(app, "GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(loaded) == 4
    for path in loaded:
        assert path.startswith("/docs/")
        asset = await ask(app, "GET", path)
        assert (asset.status, len(asset.body) > 100) == (200, True)
    start = await ask(app, "GET", "/docs/start.js")
    assert b'url: "/openapi.json"' in start.body
    assert (await ask(app, "GET", "/openapi.json")).status == 200

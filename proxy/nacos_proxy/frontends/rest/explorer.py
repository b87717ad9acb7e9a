"""The API's documents in a browser, at `/docs`. Not for: what they say (`documents`).

FastAPI's own page loads its script from a public CDN: nothing to see on a host without the internet, and somebody
else's code on an origin that can rewrite where traffic goes. Here all of it comes from this process.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request

from nacos_proxy.frontends.rest.routes import Endpoint, Routes
from nacos_proxy.wire.http import HttpReply, Pairs

OPENAPI = "/openapi.json"
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Pairs = (("content-security-policy", _POLICY), ("x-content-type-options", "nosniff"))
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
PATHS = frozenset({"/docs", "/docs/start.js", OPENAPI, *(f"/docs/{name}" for name in _ASSETS)})
"""What is the same for everybody and tells nothing of services."""

_PAGE = b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>nacos-proxy API</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css"></head><body><div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script></body></html>
"""
_START = f"""SwaggerUIBundle({{
  url: "{OPENAPI}",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  presets: [SwaggerUIBundle.presets.apis],
}});
""".encode()


def explorer_router() -> APIRouter:
    """For an app that was made with `docs_url=None` and `redoc_url=None`."""
    routes = Routes("operations")
    routes.add("GET", "/docs", _sends(_PAGE, "text/html; charset=utf-8"), None)
    routes.add("GET", "/docs/start.js", _sends(_START, "text/javascript"), None)
    for name, media in _ASSETS.items():
        routes.add("GET", f"/docs/{name}", _sends(None, media, name), None)
    return routes.router()


def _sends(body: bytes | None, media: str, asset: str = "") -> Endpoint:
    async def send(request: Request) -> HttpReply:
        data = (_static() / asset).read_bytes() if body is None else body
        return HttpReply(200, media, data, (*_HEADERS, ("cache-control", "private, max-age=3600")))

    return send


def _static() -> Path:
    """Where the package that carries Swagger UI keeps it; its code is not run."""
    spec = find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "static"

"""Swagger UI at `/docs`, from fastapi-offline's files.

FastAPI's page loads Swagger UI from a public CDN, so it needs the internet. fastapi-offline's page needs inline
scripts, which the Content-Security-Policy forbids. So this module has a page of its own.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nacos_proxy.frontends.rest.routing import ApiRoute, Reply
from nacos_proxy.wire.http import HttpReply, Pairs

OPENAPI = "/openapi.json"
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Pairs = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("cache-control", "private, max-age=3600"),
)
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
PATHS = frozenset({"/docs", "/docs/start.js", OPENAPI, *(f"/docs/{name}" for name in _ASSETS)})
"""Public paths: the same for every client, without data about services."""

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


router = APIRouter(route_class=ApiRoute, include_in_schema=False)


@router.get("/docs")
async def docs() -> Response:
    return Reply(HttpReply(200, "text/html; charset=utf-8", _PAGE, _HEADERS))


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    if name == "start.js":
        return Reply(HttpReply(200, "text/javascript", _START, _HEADERS))
    if name not in _ASSETS:
        raise HTTPException(404)
    spec = find_spec("fastapi_offline")  # finds the files; the package's code does not run
    assert spec is not None and spec.origin is not None
    body = (Path(spec.origin).parent / "static" / name).read_bytes()
    return Reply(HttpReply(200, _ASSETS[name], body, _HEADERS))

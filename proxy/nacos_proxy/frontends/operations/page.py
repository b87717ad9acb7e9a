"""The page at `/ui`: its files, from memory. What it shows, its script gets from `/status` and the REST API.

Never here: data. So the files need no token; the page asks for one and sends it with its calls.

Anyone who can register an instance can put text on the page. So the script writes text only, never HTML, and the
Content-Security-Policy allows nothing but these files and calls to this process.
"""

from __future__ import annotations

from hashlib import blake2b
from importlib.resources import files

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nacos_proxy.frontends.rest.routing import ApiRoute, Reply
from nacos_proxy.wire.http import HttpReply, Pairs
from nacos_proxy.wire.rest.bodies import tag_matches

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Pairs = (
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),  # the address may hold a token until the script has read it
    ("cache-control", "no-cache"),
)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def _reply(name: str, body: bytes) -> HttpReply:
    tag = ("etag", f'"{blake2b(body, digest_size=8).hexdigest()}"')
    return HttpReply(200, _TYPES[name.rpartition(".")[2]], body, (*_HEADERS, tag))


# Read once: the files of a newer version, installed while the process runs, do not fit its API.
_FILES = {file.name: _reply(file.name, file.read_bytes()) for file in (files(__package__ or "") / "static").iterdir()}
PATHS = frozenset({"/", "/ui", "/ui/", *(f"/ui/{name}" for name in _FILES)})
"""Public paths: the same for every client, without data about services."""

router = APIRouter(route_class=ApiRoute, include_in_schema=False)


@router.get("/")
async def to_page(request: Request) -> Response:
    query = request.scope["query_string"].decode("latin-1")  # it may hold a token
    return Reply(HttpReply(302, None, b"", (("location", f"/ui?{query}" if query else "/ui"),)))


@router.get("/ui")
async def page(request: Request) -> Response:
    return await asset(request, "index.html")


@router.get("/ui/{name}")
async def asset(request: Request, name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    found = _FILES[name]
    tag = dict(found.headers)["etag"]
    if tag_matches(request.headers.get("if-none-match", ""), tag):
        return Reply(HttpReply(304, None, b"", found.headers))
    return Reply(found)

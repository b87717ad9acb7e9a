"""A route of our own API: how it is matched, run, refused and documented. Not for: what any one of them does.

An endpoint takes the request and gives an `HttpReply`, or an ASGI app where the answer is a stream. Nothing is
serialised by FastAPI (that alone costs half a millisecond); it holds the table and prints it at `/docs`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import unquote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply, to_query
from nacos_proxy.frontends.rest.shapes import PARAMETERS, ProblemDocument
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.wire.http import JSON_TYPE, HttpReply
from nacos_proxy.wire.rest.problem import PROBLEM_TYPE, plain_problem, problem
from nacos_proxy.wire.rest.query import unknown

ENDPOINTS = "nacos_proxy.endpoints"
"""Where a scope may say whose endpoints answer, by method and path: the routes are made once for all."""

Endpoint: TypeAlias = Callable[[Request], Awaitable[HttpReply | ASGIApp]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A documented answer: a shape of `shapes` (None: not JSON), an example, the media type; examples in `also`."""

    example: Any = None
    shape: Any = None
    description: str = ""
    media: str = JSON_TYPE
    also: Mapping[str, Any] = field(default_factory=lambda: {})


@dataclass(frozen=True, slots=True)
class Doc:
    """What `/docs` says of a route. `errors` are samples, shown just as they would be answered."""

    summary: str
    description: str
    parameters: Sequence[str] = ()
    answers: Mapping[int, Answer] = field(default_factory=lambda: {})
    errors: Sequence[ProxyError] = ()
    body: Mapping[str, Any] | None = None
    body_required: bool = True
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {})
    lenient: bool = False  # probes and scrapers add parameters of their own, which send no traffic anywhere


class Route(APIRoute):
    """Matches on the raw path, so that a service name may hold `%2F`; answers errors with problem documents."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw: bytes = scope.get("raw_path") or b""
        if b"%" not in raw:
            return super().matches(scope)
        match, child = super().matches({**scope, "path": raw.decode("latin-1")})
        if "path_params" in child:
            child["path_params"] = {name: unquote(text) for name, text in child["path_params"].items()}
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        own: Mapping[tuple[str, str], Endpoint] = scope.get(ENDPOINTS, {})
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        endpoint = own.get((method, self.path), self.endpoint)
        try:
            answer = await endpoint(Request(scope, receive))
        except ProxyError as error:
            answer = problem(error, scope["path"])
        if isinstance(answer, HttpReply):
            await send_reply(send, answer, head_only=scope["method"] == "HEAD")
        else:
            await answer(scope, receive, send)


class OtherMethods(Route):
    """Matches its path with any method, where the routes before it had another."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (match if match is Match.NONE else Match.FULL), child


@dataclass(slots=True)
class Routes:
    """Collects routes; `router` gives them to FastAPI, with HEAD for each GET and 405 for what a path does not know."""

    tag: str
    _table: list[tuple[str, str, Endpoint, Doc | None]] = field(default_factory=lambda: [])

    def add(self, method: str, path: str, endpoint: Endpoint, doc: Doc | None) -> None:
        """What the document does not name among the parameters is refused."""
        strict = endpoint if doc is None or doc.lenient else _strict(endpoint, parameters_of(doc, path))
        self._table.append((method, path, strict, doc))

    @property
    def endpoints(self) -> dict[tuple[str, str], Endpoint]:
        """By method and path."""
        return {(method, path): endpoint for method, path, endpoint, _ in self._table}

    def router(self) -> APIRouter:
        router = APIRouter(route_class=Route)
        known: dict[str, set[str]] = {}
        for method, path, endpoint, doc in self._table:
            self._one(router, method, path, endpoint, doc)
            known.setdefault(path, set()).add(method)
            if method == "GET":
                self._one(router, "HEAD", path, endpoint, None)
                known[path].add("HEAD")
        for path, methods in known.items():
            router.add_api_route(
                path,
                _not_allowed(methods),
                methods=["OPTIONS"],
                response_model=None,
                include_in_schema=False,
                route_class_override=OtherMethods,
            )
        return router

    def _one(self, router: APIRouter, method: str, path: str, endpoint: Endpoint, doc: Doc | None) -> None:
        options: dict[str, Any] = {"include_in_schema": False} if doc is None else describe(doc, path)
        router.add_api_route(path, endpoint, methods=[method], response_model=None, tags=[self.tag], **options)


def parameters_of(doc: Doc, path: str) -> tuple[str, ...]:
    """The query parameters of a documented route."""
    return tuple(name for name in doc.parameters if f"{{{name}}}" not in path)


def _strict(endpoint: Endpoint, known: tuple[str, ...]) -> Endpoint:
    """The endpoint, which refuses parameters that its document does not name."""

    @wraps(endpoint)
    async def strict(request: Request) -> HttpReply | ASGIApp:
        if request.scope["query_string"]:
            to_query(request.scope).only(known)
        return await endpoint(request)

    return strict


def _not_allowed(methods: set[str]) -> Endpoint:
    """OPTIONS is told what there is, and any other is refused with the same: nothing is done for either."""
    allow = ", ".join(sorted(methods))

    async def refuse(request: Request) -> HttpReply:
        if request.method == "OPTIONS":
            return HttpReply(204, None, b"", (("allow", allow),))
        text = f"{request.method} is not possible here; possible are {allow}"
        return plain_problem(405, text, request.scope["path"], (("allow", allow),))

    return refuse


def describe(doc: Doc, path: str) -> dict[str, Any]:
    """FastAPI's arguments for a documented route."""
    answers = {status: _answer(status, answer) for status, answer in doc.answers.items()}
    problems: dict[int, dict[str, Any]] = {}
    for error in doc.errors if doc.lenient else (*doc.errors, unknown("grup", parameters_of(doc, path))):
        _add_problem(problems, error, path)
    extra: dict[str, Any] = {"parameters": [_parameter(name, path, doc.overrides) for name in doc.parameters]}
    if doc.body is not None:
        content = {JSON_TYPE: {"schema": {"type": "object"}, "examples": doc.body}}
        extra["requestBody"] = {"required": doc.body_required, "content": content}
    return {
        "summary": doc.summary,
        "description": doc.description,
        "status_code": min(doc.answers),
        "responses": {**answers, **problems},
        "openapi_extra": extra,
        "response_class": Response,
    }


def _answer(status: int, answer: Answer) -> dict[str, Any]:
    entry: dict[str, Any] = {"description": answer.description or HTTPStatus(status).phrase}
    if answer.shape is not None:
        entry["model"] = answer.shape
    if answer.example is not None:
        examples = {answer.media: answer.example, **answer.also}
        entry["content"] = {media: {"example": example} for media, example in examples.items()}
    return entry


def _add_problem(problems: dict[int, dict[str, Any]], error: ProxyError, path: str) -> None:
    reply = problem(error, path)
    document: dict[str, Any] = json.loads(reply.body)
    entry = problems.setdefault(
        reply.status,
        {"description": document["title"], "content": {PROBLEM_TYPE: {"schema": _problem_schema(), "examples": {}}}},
    )
    examples = entry["content"][PROBLEM_TYPE]["examples"]
    examples[f"{document['type'].rpartition(':')[2]}-{len(examples) + 1}"] = {"value": document}


@cache
def _problem_schema() -> dict[str, Any]:
    """Made once: there are a hundred places for it, and each making takes a millisecond of the start."""
    return TypeAdapter(ProblemDocument).json_schema()


def _parameter(name: str, path: str, overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    inside = "path" if f"{{{name}}}" in path else "query"
    return {"name": name, "in": inside, "required": inside == "path", **PARAMETERS[name], **overrides.get(name, {})}


async def on_http_exception(request: Request, error: Exception) -> Response:
    """For the app's exception handlers: a path that nobody knows (404) and the like."""
    assert isinstance(error, HTTPException)
    detail = f"there is nothing at {request.scope['path']}" if error.status_code == 404 else str(error.detail)
    headers = tuple((error.headers or {}).items())
    return _response(plain_problem(error.status_code, detail, request.scope["path"], headers))


async def on_unexpected(request: Request, error: Exception) -> Response:
    """For the app's exception handlers: a fault of ours. The cause goes to the server's log, not to the caller."""
    return _response(plain_problem(500, "the proxy failed; its log says why", request.scope["path"]))


PROBLEM_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    HTTPException: on_http_exception,
    Exception: on_unexpected,
}


def _response(reply: HttpReply) -> Response:
    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)

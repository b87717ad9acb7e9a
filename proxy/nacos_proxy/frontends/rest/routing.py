"""How FastAPI matches, reads, answers and documents the routes of the REST API.

It differs from FastAPI's defaults in three ways: a service's name may contain `%2F`, the first of a repeated parameter
counts (as in Nacos), and answers are prepared bytes (FastAPI's serialisation takes 0.5 ms).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import FastAPI, Path
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nacos_proxy.frontends.answers import send_reply
from nacos_proxy.frontends.request_body import read_body
from nacos_proxy.frontends.requests import set_route
from nacos_proxy.frontends.rest.models import ProblemDocument
from nacos_proxy.model.errors import BadCall, ProxyError, Violation
from nacos_proxy.model.limits import NACOS, Rules
from nacos_proxy.request_context import current_request
from nacos_proxy.wire.http import JSON_TYPE, RULES, HttpReply, Pairs, RouteName, pairs
from nacos_proxy.wire.nacos.shapes import dumps
from nacos_proxy.wire.rest.bodies import read_object
from nacos_proxy.wire.rest.problem import PROBLEM_TYPE, plain_problem, problem
from nacos_proxy.wire.rest.query import refusal

PROVIDED = "nacos_proxy.provided"
"""The scope key of a tenant's objects, by class. A request without it uses the app's objects."""

T = TypeVar("T")

# Swagger UI fills in `example` of a schema, not `examples`.
ServiceName = Annotated[
    str, Path(description="The service's name, or `group@@name`.", json_schema_extra={"example": "orders"})
]
Address = Annotated[
    str,
    Path(
        description="`ip:port`, an IPv6 address in brackets, in any spelling.",
        json_schema_extra={"example": "10.0.0.5:8080"},
    ),
]


def provided(kind: type[T]) -> Callable[[Request], Awaitable[T]]:
    """A dependency: the object of this class for the request's tenant. All tenants share the routes."""

    async def find(request: Request) -> T:
        objects: Mapping[type, Any] = request.scope.get(PROVIDED) or request.app.state.provided
        return objects[kind]

    return find


class _FirstCounts(QueryParams):
    """The first value of a repeated parameter counts, as in Nacos. Starlette takes the last."""

    def __init__(self, query_string: str) -> None:
        super().__init__([*pairs(query_string)])
        self._dict |= dict(reversed(self._list))


class ApiRequest(Request):
    """A request that reads parameters and JSON by the rules of this API."""

    _params: QueryParams | None = None

    @property
    def rules(self) -> Rules:
        """The rules for names in this request."""
        return self.scope.get(RULES, NACOS)

    @property
    def query_params(self) -> QueryParams:
        if self._params is None:
            self._params = _FirstCounts(self.scope["query_string"].decode("latin-1"))
        return self._params

    async def body(self) -> bytes:
        """The body; b"" if it is blank. Raises `BadCall`: 413 if it is too long, 415 if it is not declared as JSON."""
        if not hasattr(self, "_body"):
            body = await read_body(self.scope, self.receive, self.app.state.max_body)
            self._body = body if body.strip() else b""
            if self._body:
                self.want_json()
        return self._body

    async def json(self) -> Any:
        return read_object(await self.body())

    def want_json(self) -> None:
        # Any web page can send a form or plain text to any address. Before JSON, the browser sends a CORS preflight.
        media = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != JSON_TYPE and not (media.startswith("application/") and media.endswith("+json")):
            text = f"the body must be JSON and say so with 'Content-Type: application/json', not '{media[:100]}'"
            raise BadCall("", Violation.BODY, text, status=415)


class ApiRoute(APIRoute):
    """Matches the raw path, so that a service name may hold `%2F`, and answers HEAD where it answers GET."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw: bytes = scope.get("raw_path") or b""
        path = {"path": raw.decode("latin-1")} if b"%" in raw else {}
        method = {"method": "GET"} if scope["method"] == "HEAD" else {}
        match, child = super().matches({**scope, **path, **method} if path or method else scope)
        if path and "path_params" in child:
            child["path_params"] = {name: unquote(text) for name, text in child["path_params"].items()}
        return match, child

    @cached_property
    def counted_as(self) -> RouteName:
        """For the metrics: the folder of the endpoint's module, and the route without values."""
        folder = self.endpoint.__module__.rpartition(".")[0].rpartition(".")[2]
        return RouteName(folder, f"{' '.join(sorted(self.methods or ()))} {self.path}")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        set_route(scope, self.counted_as)
        if scope["method"] == "HEAD" and self.methods and "GET" in self.methods:
            await self.app(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_ours(request: Request) -> Response:
            return await handle(ApiRequest(request.scope, request.receive))

        return handle_ours


class Reply(Response):
    """A prepared answer, or an ASGI app that writes the answer itself: an event stream on the raw transport."""

    def __init__(self, answer: HttpReply | ASGIApp) -> None:
        self.answer = answer
        self.background = None
        self.status_code, self.body = (answer.status, answer.body) if isinstance(answer, HttpReply) else (200, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(self.answer, HttpReply):
            await send_reply(send, self.answer, head_only=scope["method"] == "HEAD")
        else:
            await self.answer(scope, receive, send)


def json_reply(value: object, status: int = 200, headers: Pairs = ()) -> Reply:
    """Uses `dumps`, because text of this host, such as a path, may be invalid Unicode."""
    return Reply(HttpReply(status, JSON_TYPE, dumps(value), headers))


async def on_proxy_error(request: Request, error: ProxyError) -> Response:
    return Reply(problem(error, request.scope["path"]))


async def on_invalid(request: Request, error: RequestValidationError) -> Response:
    """A parameter or a body that does not fit its model."""
    errors = error.errors()
    if errors[0]["loc"] != ("body",):
        return await on_proxy_error(request, refusal(errors))
    try:  # the request has no body
        ApiRequest(request.scope).want_json()
        read_object(b"")
    except BadCall as missing_body:
        return await on_proxy_error(request, missing_body)
    raise error


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """An unknown path (404), a method that the path does not have (405), a body that could not be read (400)."""
    path = request.scope["path"]
    if isinstance(error.__cause__, ProxyError):  # FastAPI wraps whatever is raised while it reads a body
        return await on_proxy_error(request, error.__cause__)
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(request.app.routes, request.scope)))
        if request.method == "OPTIONS":
            return Reply(HttpReply(204, None, b"", (("allow", allow),)))
        text = f"{request.method} is not possible here; possible are {allow}"
        return Reply(plain_problem(405, text, path, (("allow", allow),)))
    detail = f"there is nothing at {path}" if error.status_code == 404 else str(error.detail)
    return Reply(plain_problem(error.status_code, detail, path, tuple((error.headers or {}).items())))


def _methods(routes: list[BaseRoute], scope: Scope) -> set[str]:
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found | {"HEAD"} if "GET" in found else found


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A bug in the proxy. Only the server's log shows the cause."""
    context = current_request()
    which = "" if context is None else f" (request {context.id})"
    return Reply(plain_problem(500, f"the proxy failed; its log says why{which}", request.scope["path"]))


PROBLEM_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ProxyError: on_proxy_error,
    RequestValidationError: on_invalid,
    HTTPException: on_http_exception,
    Exception: on_unexpected,
}

Responses = dict[int | str, dict[str, Any]]


def documented(
    example: Any,
    model: Any = None,
    *errors: ProxyError,
    description: str = "",
    status: int = 200,
    media: str = JSON_TYPE,
) -> Responses:
    """A route's `responses`: a success with its example, and `problems(*errors)`.

    `model` None: the success is not JSON, or has no fixed form.
    """
    entry: dict[str, Any] = {"description": description or HTTPStatus(status).phrase}
    if model is not None:
        entry["model"] = model
    return {status: {**entry, "content": {media: {"example": example}}}, **problems(*errors)}


def problems(*errors: ProxyError) -> Responses:
    """The `responses` entries of errors, each with the problem document that it would be answered with."""
    found: Responses = {}
    for error in errors:
        reply = problem(error, "/api/v1/services/orders")
        document = json.loads(reply.body)
        schema = {"$ref": "#/components/schemas/ProblemDocument"}
        content = {PROBLEM_TYPE: {"schema": schema, "examples": dict[str, Any]()}}
        entry = found.setdefault(reply.status, {"description": document["title"], "content": content})
        examples = entry["content"][PROBLEM_TYPE]["examples"]
        examples[f"{document['type'].rpartition(':')[2]}-{len(examples) + 1}"] = {"value": document}
    return found


def openapi_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's document with problem documents instead of its 422 responses, and with the bearer token."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = original()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            components = document["components"]
            for name in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(name, None)
            components["schemas"]["ProblemDocument"] = ProblemDocument.model_json_schema()
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{}, {"token": []}]
        return original()

    return openapi

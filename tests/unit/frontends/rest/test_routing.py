"""How routes of our own API are matched, refused and documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from nacos_proxy.frontends.rest.routing import PROBLEM_HANDLERS, PROVIDED, ApiRoute, Reply, on_unexpected, provided
from nacos_proxy.model.calls import Register
from nacos_proxy.model.errors import Garbled
from nacos_proxy.wire.http import HttpReply
from tests.helpers.asgi import ask
from tests.unit.frontends.conftest import World


def app_of(router: APIRouter, objects: dict[type, Any] | None = None) -> FastAPI:
    app = FastAPI(routes=router.routes, exception_handlers=PROBLEM_HANDLERS)
    app.state.provided = objects or {}
    return app


def text(body: str) -> Response:
    return Reply(HttpReply(200, "text/plain", body.encode()))


router = APIRouter(route_class=ApiRoute)


@router.get("/echo/{name}")
@router.put("/echo/{name}")
async def echo(name: str) -> Response:
    return text(name)


@router.get("/garbled")
async def garbled() -> Response:
    raise Garbled("what?")


@router.get("/broken")
async def broken() -> Response:
    raise RuntimeError("a secret")


@pytest.fixture
def app() -> FastAPI:
    return app_of(router)


@pytest.mark.parametrize(("raw", "name"), [("a", "a"), ("a%2Fb", "a/b"), ("a%20%25", "a %"), ("%e5%8c%97", "北")])
async def test_api_route_decodes_a_segment_after_matching(app: FastAPI, raw: str, name: str) -> None:
    assert (await ask(app, "GET", f"/echo/{raw}")).body.decode() == name


async def test_api_route_ends_a_segment_at_a_slash(app: FastAPI) -> None:
    assert (await ask(app, "GET", "/echo/a/b")).status == 404


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "TRACE", "PROPFIND"])
async def test_on_http_exception_names_the_allowed_methods(app: FastAPI, method: str) -> None:
    answer = await ask(app, method, "/echo/a")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, PUT")


async def test_on_http_exception_answers_options() -> None:
    """A browser asks so for a page of any site, before it would be refused; where PUT alone is there, too."""
    done: list[str] = []

    router = APIRouter(route_class=ApiRoute)

    @router.put("/beat/{name}")
    async def beat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        done.append(request.method)
        return text("ok")

    app = app_of(router)
    for target in ("/beat/a", "/beat/a%2Fb"):
        answer = await ask(app, "OPTIONS", target)
        assert (answer.status, answer.headers["allow"], answer.body) == (204, "PUT", b"")
        assert (await ask(app, "TRACE", target)).status == 405
    assert done == []


async def test_problem_handlers_hide_the_cause_of_unexpected_errors(app: FastAPI) -> None:
    assert (await ask(app, "GET", "/garbled")).json()["detail"] == "what?"
    with pytest.raises(RuntimeError):
        await ask(app, "GET", "/broken")  # Starlette raises it again for the server's log, behind the answer
    answer = await on_unexpected(Request({"type": "http", "method": "GET", "path": "/x"}), RuntimeError("a secret"))
    assert (answer.status_code, b"secret" in answer.body) == (500, False)


# the documentation


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


async def test_every_route_of_the_api_is_documented(world: World) -> None:
    documented = {(path, method) for path, method, _ in operations(world.app.openapi())}
    service = "/api/v1/services/{service}"
    one = service + "/instances/{address}"
    assert documented == {
        ("/api/v1/services", "get"),
        (service, "get"),
        (service + "/instances", "get"),
        (service + "/instances", "post"),
        (one, "get"),
        (one, "patch"),
        (one, "delete"),
        (one + "/beat", "put"),
        (one + "/drain", "post"),
        (one + "/drain", "get"),
        (one + "/drain", "delete"),
        (one + "/maintenance", "put"),
        (one + "/maintenance", "delete"),
        (service + "/pick", "get"),
        (service + "/watch", "get"),
        ("/api/v1/events", "get"),
        ("/api/v1/events", "post"),
        (service + "/whole", "get"),
        ("/api/v1/sd/prometheus", "get"),
        ("/api/v1/sd/traefik", "get"),
        ("/api/v1/sd/endpointslice", "get"),
        ("/api/v1/sd/text", "get"),
        ("/api/v1/sd/nginx", "get"),
        ("/api/v1/sd/haproxy", "get"),
        ("/api/v1/sd/envoy", "get"),
        ("/v3/discovery:endpoints", "post"),
        ("/v3/discovery:clusters", "post"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/status", "get"),
        ("/status/{service}", "get"),
        ("/metrics", "get"),
    }


async def test_every_call_has_a_summary_examples_and_its_errors(world: World) -> None:
    for path, method, operation in operations(world.app.openapi()):
        where = f"{method} {path}"
        assert operation["summary"] and operation["description"], where
        for name in ("service", "address"):
            assert (f"{{{name}}}" in path) <= any(p["name"] == name for p in operation.get("parameters", [])), where
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path.startswith("/api"):
                examples = answer["content"]["application/problem+json"]["examples"]
                assert all(e["value"]["status"] == int(status) for e in examples.values()), where
            elif status in ("200", "201"):
                assert all(
                    content.get("example") or content.get("examples") for content in answer["content"].values()
                ), where
        if path.startswith("/api"):
            assert {"400", "401", "403"} <= operation["responses"].keys(), where
            assert {"503", "502"} & operation["responses"].keys(), where
        if method in ("post", "patch") and not path.endswith("/drain"):
            assert operation["requestBody"]["content"]["application/json"]["examples"], where


async def test_every_route_accepts_only_the_parameters_that_it_documents(world: World) -> None:
    places = {"service": "orders", "address": "10.0.0.1:80"}
    for path, method, operation in operations(world.app.openapi()):
        taken = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
        if path in ("/healthz", "/readyz", "/metrics"):  # probes and scrapers add what they like
            assert (await world.ask("GET", f"{path}?verbose")).status == 200
            continue
        for name in (
            "grup",
            "healthyonly",
            "metadata.zone",
            "service-name",
            "Service",
            "limit",
            "key",
            "index",
            "cluster",
        ):
            for verb in (method.upper(), "HEAD") if method == "get" else (method.upper(),):
                if name in taken:
                    continue
                answer = await world.ask(verb, f"{path.format(**places)}?{name}=1", json_body={})
                assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json"), (
                    path,
                    name,
                )
                if verb != "HEAD":
                    document = answer.json()
                    assert document["parameter"] == name
                    assert all(known in document["detail"] for known in (name, *taken))
        waits = path.endswith(("/events", "/watch")) or (path.endswith("/drain") and method == "post")
        if "400" in operation["responses"] and not waits:
            for name in (*taken, "accessToken", "access_token", "username", "password"):
                answer = await world.ask(method.upper(), f"{path.format(**places)}?{name}=1", json_body={})
                assert b"not known here" not in answer.body, (path, name)
    assert world.registry.sent(Register) == []


@pytest.mark.parametrize(
    ("given", "meant"), [("grup", "group"), ("healthyOnly", "healthy_only"), ("namespaceId", "namespace"), ("x", None)]
)
async def test_on_invalid_suggests_the_name_of_a_misspelt_parameter(
    world: World, given: str, meant: str | None
) -> None:
    answer = await world.ask("GET", f"/api/v1/services/orders?{given}=a")
    hint = f"; did you mean '{meant}'?" if meant else "."
    known = "namespace, group, clusters, healthy_only, selector, prefer, prefer_min"
    assert answer.json()["detail"] == f"Param '{given}' is not known here{hint} Known are: {known}."


class Voice:
    def __init__(self, said: str) -> None:
        self.said = said


async def test_provided_finds_the_object_of_the_tenant_or_else_of_the_app() -> None:
    """The routes are made once; with `auth = client` each tenant has objects of its own."""
    router = APIRouter(route_class=ApiRoute)

    @router.get("/say")
    async def say(voice: Annotated[Voice, Depends(provided(Voice))]) -> Response:  # pyright: ignore[reportUnusedFunction]
        return text(voice.said)

    app = app_of(router, {Voice: Voice("app")})
    assert (await ask(app, "GET", "/say")).body == b"app"
    tenant = {PROVIDED: {Voice: Voice("tenant")}}
    assert (await ask(app, "GET", "/say", **tenant)).body == b"tenant"
    assert (await ask(app, "HEAD", "/say", **tenant)).status == 200
    assert (await ask(app, "POST", "/say", **tenant)).status == 405

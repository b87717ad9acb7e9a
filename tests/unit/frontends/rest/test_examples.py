"""The examples in `/docs` are what the code answers, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from nacos_proxy.app.router import rest_app
from nacos_proxy.frontends.rest.models import ProblemDocument
from nacos_proxy.wire.rest.bodies import BeatBody, RegisterBody, UpdateBody

APP = rest_app({})


def contents() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Path, model and content of each documented answer."""
    for route in APP.routes:
        if isinstance(route, APIRoute):
            for answer in route.responses.values():
                for media, content in answer.get("content", {}).items():
                    problem = media.endswith("problem+json")
                    yield route.path, ProblemDocument if problem else answer.get("model"), content


def test_every_documented_example_of_an_answer_fits_its_model() -> None:
    checked = 0
    for path, model, content in contents():
        values = [one["value"] for one in content.get("examples", {}).values()] or [content["example"]]
        for value in values:
            if model is not None and not isinstance(value, str):
                TypeAdapter(model).validate_python(value)
                checked += 1
        assert values, path
    assert checked > 100


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", "/api/v1/services/{service}/instances", RegisterBody),
        ("patch", "/api/v1/services/{service}/instances/{address}", UpdateBody),
        ("put", "/api/v1/services/{service}/instances/{address}/beat", BeatBody),
    ],
)
def test_every_documented_example_of_a_body_is_accepted(method: str, path: str, body: type[BaseModel]) -> None:
    examples = APP.openapi()["paths"][path][method]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        body.model_validate(example["value"])


@pytest.mark.parametrize("model", [UpdateBody, BeatBody])
def test_openapi_shows_no_defaults_of_update_and_beat_bodies(model: type[BaseModel]) -> None:
    fields = APP.openapi()["components"]["schemas"][model.__name__]["properties"]
    assert set(fields) == set(model.model_fields)
    assert not [name for name, field in fields.items() if "default" in field]


def test_openapi_has_an_example_for_each_required_parameter() -> None:
    checked = set[str]()
    for path, operations in APP.openapi()["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["required"]:
                    assert parameter["schema"].get("example"), (path, parameter["name"])
                    checked.add(parameter["name"])
    assert checked == {"service", "address"}


def test_openapi_example_of_a_page_has_the_default_size() -> None:
    operation = APP.openapi()["paths"]["/api/v1/services"]["get"]
    (size,) = (one["schema"]["default"] for one in operation["parameters"] if one["name"] == "size")
    assert operation["responses"]["200"]["content"]["application/json"]["example"]["size"] == size

"""The examples in `/docs` are real answers and accepted bodies."""

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


def test_examples_of_answers_fit_their_models() -> None:
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
def test_examples_of_bodies_are_accepted(method: str, path: str, body: type[BaseModel]) -> None:
    examples = APP.openapi()["paths"][path][method]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        body.model_validate(example["value"])

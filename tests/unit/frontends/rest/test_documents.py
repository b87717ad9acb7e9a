"""The examples in `/docs` are what the code answers."""

from __future__ import annotations

from pydantic import TypeAdapter

from nacos_proxy.frontends.rest import documents
from nacos_proxy.frontends.rest.routes import Doc
from nacos_proxy.frontends.rest.shapes import PARAMETERS

DOCS = {name: value for name, value in vars(documents).items() if isinstance(value, Doc)}


def test_every_example_has_the_shape_that_is_promised() -> None:
    checked = 0
    for name, doc in DOCS.items():
        for answer in doc.answers.values():
            if answer.shape is not None:
                TypeAdapter(answer.shape).validate_python(answer.example)
                checked += 1
        assert doc.summary and doc.answers, name
    assert checked >= 9


def test_every_parameter_that_is_named_is_described() -> None:
    named = {parameter for doc in DOCS.values() for parameter in doc.parameters}
    assert named == set(PARAMETERS)

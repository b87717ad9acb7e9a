"""YAML that another program reads as the same value."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.cli.yaml import yaml_of

AWKWARD = (
    *(
        "",
        "~",
        "no",
        "NULL",
        "y",
        "1e3",
        "1_000",
        "0x1f",
        "12:30",
        "2026-01-01",
        "10.0.0.1",
        "1.5",
        "a\nb",
        "😀",
        "订单",
    ),
    *("- a", "a: b", "a #b", " a", "a ", "#", "%", "@", "*a", "&x", "=", "<<", "---", "\x85\u2028\ufeff\x7f"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(AWKWARD)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(AWKWARD), inner, max_size=3)
    ),
)


@given(VALUES)
def test_yaml_of_is_read_as_the_same_value(value: Any) -> None:
    assert yaml.safe_load(yaml_of(value)) == value


@pytest.mark.parametrize("text", AWKWARD)
def test_yaml_of_keeps_awkward_texts(text: str) -> None:
    assert yaml.safe_load(yaml_of({text: [text]})) == {text: [text]}


def test_yaml_of_looks_as_people_write_it() -> None:
    value = {
        "name": "orders",
        "hosts": [{"ip": "10.0.0.1", "port": 80, "metadata": {"zone": "a b"}}],
        "more": [],
        "v": "1",
    }
    assert yaml_of(value) == (
        'name: orders\nhosts:\n- ip: 10.0.0.1\n  port: 80\n  metadata:\n    zone: a b\nmore: []\nv: "1"\n'
    )

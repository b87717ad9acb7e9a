"""How values are written, both ways."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from nacos_proxy.app.setting_types import (
    ContextPath,
    Duration,
    File,
    Networks,
    Several,
    Size,
    text_of,
)
from nacos_proxy.model.masking import MASK

DURATION: TypeAdapter[float] = TypeAdapter(Duration)
SIZE: TypeAdapter[int] = TypeAdapter(Size)
SEVERAL: TypeAdapter[tuple[str, ...]] = TypeAdapter(Several)
NETWORKS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Networks)
CONTEXT: TypeAdapter[str] = TypeAdapter(ContextPath)


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("500ms", 0.5, "500ms"), ("5s", 5.0, "5s"), ("2.5 s", 2.5, "2.5s"), ("10m", 600.0, "10m"), ("90", 90.0, "90s"),
        ("24h", 86_400.0, "24h"), ("7d", 604_800.0, "7d"), ("1d", 86_400.0, "24h"), ("FOREVER", math.inf, "forever"),
        ("0", 0.0, "0s"), (3, 3.0, "3s"), ("1000ms", 1.0, "1s"),
    ],
)  # fmt: skip
def test_a_duration_is_text_or_seconds(text: str, seconds: float, shown: str) -> None:
    assert DURATION.validate_python(text) == seconds
    assert text_of(seconds, "duration") == shown


@given(st.floats(min_value=0, max_value=1e8).map(lambda x: round(x, 3)))
def test_a_duration_shown_is_read_as_the_same(seconds: float) -> None:
    assert DURATION.validate_python(text_of(seconds, "duration")) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("value", ["5 years", "-1s", "", "s", True, -1, math.nan])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(value)


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("8192", 8192, "8KiB"), ("64KiB", 65_536, "64KiB"), ("1MiB", 1 << 20, "1MiB"), ("2g", 2 << 30, "2GiB"),
        ("64kb", 65_536, "64KiB"), (1000, 1000, "1000"), (0, 0, "0"),
    ],
)  # fmt: skip
def test_a_size_is_text_or_bytes(text: str, size: int, shown: str) -> None:
    assert SIZE.validate_python(text) == size
    assert text_of(size, "size") == shown
    assert SIZE.validate_python(shown) == size


@pytest.mark.parametrize("value", ["1.5MiB", "big", "-1", -1])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(value)


def test_a_list_is_written_with_commas_or_as_a_list() -> None:
    assert SEVERAL.validate_python(" a, b ,,c") == ("a", "b", "c")
    assert SEVERAL.validate_python(["a", "b"]) == ("a", "b")
    assert SEVERAL.validate_python("") == ()
    assert text_of(("a", "b")) == "a,b"


def test_a_network_that_is_none_is_named() -> None:
    assert NETWORKS.validate_python("10.0.0.1/8, fd00::/8") == ("10.0.0.1/8", "fd00::/8")
    with pytest.raises(ValidationError, match=r"'nonsense' is no network"):
        NETWORKS.validate_python("10.0.0.0/8,nonsense")


@pytest.mark.parametrize(
    ("text", "path"), [("/nacos", "/nacos"), ("nacos/", "/nacos"), ("/", ""), ("", ""), ("/a/b", "/a/b")]
)
def test_a_context_path_has_one_form(text: str, path: str) -> None:
    assert CONTEXT.validate_python(text) == path


@pytest.mark.parametrize("text", ["/a/../b", "/a//b", "/a?b", "http://a", "/ä"])
def test_what_is_no_context_path_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="a context path is written like"):
        CONTEXT.validate_python(text)


def test_no_file_is_an_empty_one() -> None:
    assert TypeAdapter[Any](File).validate_python("") is None


def test_values_are_shown_as_they_are_written_and_secrets_never() -> None:
    assert text_of(True) == "true"
    assert text_of(False) == "false"
    assert text_of(None) == ""
    assert text_of(0.5) == "0.5"
    assert text_of(8840) == "8840"
    assert text_of(SecretStr("hush")) == MASK
    assert text_of(SecretStr("")) == ""

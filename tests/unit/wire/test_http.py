"""HTTP as values."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.compression import content_codings
from nacos_proxy.wire.http import FORM_TYPE, HttpRequest, pairs
from tests.helpers.pair import TEXT


def test_request_parameters_take_the_query_before_the_form() -> None:
    headers = {"content-type": f"{FORM_TYPE}; charset=utf-8"}
    request = HttpRequest.parse("PUT", "/v1/ns/instance", "a=1&a=2&b=", b"a=3&c=%E5%8C%97", headers)
    assert request.parameters == {"a": "1", "b": "", "c": "北"}


def test_request_parse_ignores_a_body_that_is_not_a_form() -> None:
    request = HttpRequest.parse(
        "POST", "/v1/ns/instance", "", b'{"serviceName":"x"}', {"content-type": "application/json"}
    )
    assert request.parameters == {}


def test_request_context_is_nacos_by_default() -> None:
    assert HttpRequest.parse("GET", "/x", "", b"", {}).context == "/nacos"
    assert HttpRequest.parse("GET", "/x", "", b"", {}, "/registry").context == "/registry"


@given(st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=5).map(tuple))
def test_request_target_and_body_keep_their_parameters(given_pairs: tuple[tuple[str, str], ...]) -> None:
    request = HttpRequest("POST", "/x", query=given_pairs, form=given_pairs)
    assert pairs(request.target.partition("?")[2]) == given_pairs
    assert pairs(request.body.decode()) == given_pairs


@given(st.lists(st.tuples(st.text("aZ09_.~-é \n%&=+/@", max_size=8), TEXT), min_size=1, max_size=5).map(tuple))
def test_request_target_and_body_are_encoded_as_the_standard_library_does(
    given_pairs: tuple[tuple[str, str], ...],
) -> None:
    request = HttpRequest("POST", "/x", query=given_pairs, form=given_pairs)
    assert request.target == f"/x?{urlencode(given_pairs)}"
    assert request.body.decode() == urlencode(given_pairs)


QUERY = st.text("ab%+&=;2Fé\x00 ", max_size=30)


@given(QUERY)
def test_pairs_reads_a_query_as_the_standard_library_does(text: str) -> None:
    assert pairs(text) == tuple(parse_qsl(text, keep_blank_values=True))


@given(st.binary(max_size=200))
def test_request_parse_reads_any_form(body: bytes) -> None:
    HttpRequest.parse("POST", "/x", body.decode("latin-1"), body, {"content-type": FORM_TYPE})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], ""),
        ([(b"Content-Encoding", b"identity")], ""),
        ([(b"Content-Encoding", b" , Identity")], ""),
        ([(b"content-encoding", b"X-GZIP")], "x-gzip"),
        ([(b"Content-Encoding", b"gzip, identity"), (b"CONTENT-ENCODING", b"br")], "gzip, br"),
        ([(b"Content-Type", b"gzip")], ""),
    ],
)
def test_coded_names_the_content_codings(fields: list[tuple[bytes, bytes]], said: str) -> None:
    assert content_codings(fields) == said

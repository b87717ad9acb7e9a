"""HTTP as values: what of a request counts, and how it goes on the wire."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.http import (
    FORM_TYPE,
    HttpRequest,
    coded,
    encoded,
    pairs,
)
from nacos_proxy.wire.nacos.base import ReadPage, ReadService
from tests.helpers.build import KEY
from tests.helpers.pair import TEXT


def test_query_and_form_are_one_and_the_query_counts_first() -> None:
    headers = {"content-type": f"{FORM_TYPE}; charset=utf-8"}
    request = HttpRequest.parse("PUT", "/v1/ns/instance", "a=1&a=2&b=", b"a=3&c=%E5%8C%97", headers)
    assert request.parameters == {"a": "1", "b": "", "c": "北"}


def test_a_body_that_is_no_form_is_not_looked_at() -> None:
    request = HttpRequest.parse(
        "POST", "/v1/ns/instance", "", b'{"serviceName":"x"}', {"content-type": "application/json"}
    )
    assert request.parameters == {}


def test_the_context_path_is_nacos_unless_told() -> None:
    assert HttpRequest.parse("GET", "/x", "", b"", {}).context == "/nacos"
    assert HttpRequest.parse("GET", "/x", "", b"", {}, "/registry").context == "/registry"


@given(st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=5).map(tuple))
def test_parameters_travel_in_target_and_body_unharmed(given_pairs: tuple[tuple[str, str], ...]) -> None:
    request = HttpRequest("POST", "/x", query=given_pairs, form=given_pairs)
    assert pairs(request.target.partition("?")[2]) == given_pairs
    assert pairs(request.body.decode()) == given_pairs


QUERY = st.text("ab%+&=;2Fé\x00 ", max_size=30)


@given(QUERY)
def test_a_query_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert pairs(text) == tuple(parse_qsl(text, keep_blank_values=True))


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5).map(tuple))
def test_pairs_are_written_as_the_standard_library_writes_them(given_pairs: tuple[tuple[str, str], ...]) -> None:
    assert encoded(given_pairs) == urlencode(given_pairs)


@given(st.binary(max_size=200))
def test_no_body_is_too_odd_to_be_read(body: bytes) -> None:
    HttpRequest.parse("POST", "/x", body.decode("latin-1"), body, {"content-type": FORM_TYPE})


def test_clusters_are_split_for_filtering_and_kept_for_the_echo() -> None:
    call = ReadService(KEY, "c1,,c2,")
    assert call.clusters == "c1,,c2,"
    assert call.cluster_set == {"c1", "c2"}
    assert ReadPage(KEY).cluster_set == frozenset()


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
def test_an_answer_is_plain_or_says_its_codings(fields: list[tuple[bytes, bytes]], said: str) -> None:
    assert coded(fields) == said

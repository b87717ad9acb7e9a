"""Parameters in `multipart/form-data`; `tests/conformance/test_multipart.py` asks 2.5.1 with the same bytes."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import BadCall
from nacos_proxy.wire.multipart import MAX_PARTS, boundary_of, read_multipart
from tests.helpers.growth import grows_as_its_input
from tests.helpers.multipart import CUT, EMPTY, END, IP, TAKEN, TYPE, part


@pytest.mark.parametrize("body", TAKEN, ids=range(len(TAKEN)))
def test_read_multipart_reads_fields_and_skips_files(body: bytes) -> None:
    assert read_multipart(TYPE, body) == (("ip", "10.0.0.1"),)


def test_read_multipart_reads_all_values_as_utf_8() -> None:
    body = (
        part("a", " ü\r\n--xx is no end \r\n".replace("--xx", "-- x"))
        + part("a", "")
        + part("b", "e30=", "\r\nContent-Transfer-Encoding: base64")
        + part("c", "?").replace(b"?", b"\xfc")
        + part('q\\"', "1")
        + END
    )
    assert read_multipart('Multipart/Form-Data; Boundary="x"', body) == (
        ("a", " ü\r\n-- x is no end \r\n"),
        ("a", ""),
        ("b", "e30="),
        ("c", "\ufffd"),
        ('q"', "1"),
    )


@pytest.mark.parametrize("body", EMPTY)
def test_read_multipart_of_a_body_without_delimiter_is_empty(body: bytes) -> None:
    assert read_multipart(TYPE, body) == ()


LONG = [IP * (MAX_PARTS + 1) + END, part("a" * 2000, "1") + END]


@pytest.mark.parametrize("body", [*CUT, *LONG], ids=range(len(CUT) + len(LONG)))
def test_read_multipart_refuses_an_incomplete_form(body: bytes) -> None:
    """A registration without the part that was cut off would be another one. (2.5.1 answers 500.)"""
    with pytest.raises(BadCall) as caught:
        read_multipart(TYPE, body)
    assert (caught.value.status, caught.value.parameter) == (400, "")


@pytest.mark.parametrize(
    "type",
    [
        *("multipart/form-data", "multipart/form-data; boundary=", TYPE + ";" * 2000),
        *("multipart/form-data; boundary*=idna''x%ff", "multipart/form-data; boundary*=\0''x"),
    ],
)
def test_boundary_of_requires_a_boundary(type: str) -> None:
    with pytest.raises(BadCall):
        read_multipart(type, IP + END)


texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\%'), min_size=1, max_size=20)


@given(st.lists(st.tuples(names, texts), max_size=5))
def test_read_multipart_reads_the_forms_of_a_client(fields: list[tuple[str, str]]) -> None:
    request = httpx.Request("POST", "http://x", files=[(name, (None, value)) for name, value in fields] or {"a": "b"})
    found = read_multipart(request.headers["content-type"], request.read())
    assert found == tuple(fields)


hostile = st.lists(
    st.sampled_from(
        [
            b"--x",
            b"--",
            b"\r\n",
            b"\n",
            b'"',
            b";",
            b"name",
            b"*",
            b"=",
            b"'",
            b"9" * 900,
            b"\0",
            b"idna''%ff",
            b"\xff",
            IP,
            END,
        ]
    )
)


@given(st.text(max_size=60) | st.just("boundary=x"), hostile.map(b"".join))
def test_read_multipart_gives_parameters_or_raises_bad_call(parameters: str, body: bytes) -> None:
    try:
        found = read_multipart(f"multipart/form-data; {parameters}", b"--x\r\nContent-Disposition: form-data; " + body)
    except BadCall:
        return
    assert all(name for name, _ in found)


@pytest.mark.parametrize(
    "body",
    [
        lambda size: b"--x\r\n" * size,
        lambda size: (b'--x\r\nContent-Disposition: form-data; name="' + b";" * 900 + b'"\r\n\r\n\r\n') * (size // 200),
        lambda size: b"--x\r\n" + b"\n" * (5 * size),
        lambda size: IP + b"\r\n--" * size,
    ],
    ids=["delimiters", "headers", "lines", "almost delimiters"],
)
def test_read_multipart_takes_linear_time_for_a_body(body: Callable[[int], bytes]) -> None:
    def read(size: int) -> None:
        with pytest.raises(BadCall):
            read_multipart(TYPE, body(size))

    assert grows_as_its_input(read, 50_000)


@pytest.mark.parametrize("more", [";", ' ";', "a*0=b;"])
def test_read_multipart_takes_linear_time_for_a_content_type(more: str) -> None:
    """`email` alone took seconds for 60,000 semicolons in quotes."""

    def read(size: int) -> None:
        with pytest.raises(BadCall):
            boundary_of('multipart/form-data; boundary="' + more * size)

    assert grows_as_its_input(read, 10_000)

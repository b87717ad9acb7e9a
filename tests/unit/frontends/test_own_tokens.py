"""A forwarded request contains no API token of this proxy and is otherwise unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.frontends.auth import AccessControl, AccessPolicy, Token
from nacos_proxy.frontends.nacos.passthrough import Passthrough
from nacos_proxy.frontends.own_tokens import (
    OWN,
    own_token_test,
    without_own_headers,
    without_own_in_body,
    without_own_in_payload,
    without_own_parameters,
)
from nacos_proxy.wire.multipart import read_multipart
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import NotReadable
from tests.helpers.asgi import ask, scope
from tests.unit.frontends.conftest import refuse
from tests.unit.frontends.nacos.test_passthrough import Upstream

OURS = "our-own-token"
FORM = [(b"content-type", b"application/x-www-form-urlencoded; charset=UTF-8")]
PARTS = [(b"Content-Type", b'multipart/form-data; boundary="x-y"')]


def own(text: str) -> bool:
    return text == OURS


def part(name: str, value: str) -> bytes:
    return f'--x-y\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


async def through(body: bytes, headers: list[tuple[bytes, bytes]], size: int = 7) -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), size):
            yield body[begin : begin + size]

    return b"".join([chunk async for chunk in without_own_in_body(headers, chunks(), own)])


def test_without_own_headers_removes_own_tokens_and_nothing_else() -> None:
    theirs = [
        (b"authorization", b"Bearer of-nacos"),
        (b"accesstoken", b"of-nacos"),
        (b"x-token", b"our-own-token"),
        (b"referer", b"http://proxy/status?limit=1"),
    ]
    ours = [
        (b"Authorization", b"bearer  our-own-token "),
        (b"authorization", b"Basic our-own-token"),
        (b"authorization", b"Bearer\tour-own-token"),
        (b"AccessToken", b"our-own-token"),
    ]
    assert without_own_headers([*ours, *theirs], own) == theirs
    referer = [(b"referer", b"http://proxy/?access_token=our-own-token&limit=1")]
    assert without_own_headers(referer, own) == [(b"referer", b"http://proxy/?limit=1")]
    fragment = [(b"referer", b"http://proxy/?access%54oken=our-own-token#part")]
    assert without_own_headers(fragment, own) == [(b"referer", b"http://proxy/?#part")]


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("dataId=a&accessToken=our-own-token", "dataId=a"),
        ("access%54oken=our%2Down%2Dtoken&dataId=a%2Fb", "dataId=a%2Fb"),
        ("access_token=our-own-token", ""),
        ("accessToken=of-nacos&accessToken=our-own-token", "accessToken=of-nacos"),
        ("accessToken=of-nacos&dataId=our-own-token", "accessToken=of-nacos&dataId=our-own-token"),
        ("a&&b=%zz&=", "a&&b=%zz&="),
        ("", ""),
    ],
)
def test_without_own_parameters_removes_own_tokens_and_nothing_else(query: str, kept: str) -> None:
    assert without_own_parameters(query, own) == kept


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_without_own_in_body_overwrites_own_tokens_in_a_form(size: int) -> None:
    sent = await through(b"dataId=a&accessToken=our-own-token&content=our-own-token", FORM, size)
    assert sent == b"dataId=a&" + b"&" * len("accessToken=our-own-token") + b"&content=our-own-token"
    assert await through(b"accessToken=of-nacos", FORM, size) == b"accessToken=of-nacos"


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_without_own_in_body_overwrites_own_tokens_in_a_multipart_form(size: int) -> None:
    end = b"--x-y--\r\n"
    sent = await through(part("content", OURS) + part("accessToken", OURS) + end, PARTS, size)
    assert sent == part("content", OURS) + part("___________", "_" * len(OURS)) + end
    theirs = part("accessToken", "of-nacos") + end
    assert await through(theirs, PARTS, size) == theirs


@pytest.mark.parametrize(
    "boundary", [b"; boundary=", b"; boundary*=idna''x%ff", b"; boundary*=\0''x", b'; boundary="' + b";" * 60_000]
)
async def test_without_own_in_body_accepts_a_bad_boundary(boundary: bytes) -> None:
    body = part("name", "value")
    assert await through(body, [(b"content-type", b"multipart/form-data" + boundary)]) == body


@pytest.mark.parametrize(
    "name",
    ["NAME=accessToken", "name*=utf-8''accessToken", "name*=utf-8''access%54oken", "name*0=access; name*1=Token"],
)
async def test_without_own_in_body_parses_the_name_of_a_part_as_access_control_does(name: str) -> None:
    head = f"--x-y\r\nContent-Disposition: form-data; {name}\r\n\r\n"
    sent = await through(f"{head}{OURS}\r\n--x-y--".encode(), PARTS, 1000)
    assert OURS.encode() not in sent and len(sent) == len(head) + len(OURS) + len("\r\n--x-y--")
    assert read_multipart(PARTS[0][1].decode(), sent)[0][1] == "_" * len(OURS)


async def test_without_own_in_body_does_not_read_other_types() -> None:
    body = b"accessToken=our-own-token"
    for headers in ([], [(b"content-type", b"application/json")], [(b"content-type", b"multipart/form-data")]):
        assert await through(body, headers) == body


@pytest.mark.parametrize("headers", [FORM, PARTS])
async def test_without_own_in_body_streams_megabytes_and_finds_a_token_after_them(
    headers: list[tuple[bytes, bytes]],
) -> None:
    large = "x" * 300_000
    if headers is FORM:
        body, kept = f"content={large}&accessToken={OURS}".encode(), f"content={large}&".encode()
    else:
        body, kept = part("content", large) + part("accessToken", OURS) + b"--x-y--", part("content", large)
    sent = await through(body, headers, 5_000)
    assert sent.startswith(kept) and OURS.encode() not in sent and len(sent) == len(body)


PIECES = st.sampled_from([b"&", b"=", b"a", b"accessToken=of-nacos", b"accessToken", b"%", b"--x-y", b"\r\n", b"\xff"])


@given(st.lists(PIECES, max_size=30), st.integers(1, 40), st.sampled_from([FORM, PARTS]))
async def test_without_own_in_body_changes_nothing_without_own_tokens_however_it_is_cut(
    pieces: list[bytes], size: int, headers: list[tuple[bytes, bytes]]
) -> None:
    body = b"".join(pieces)
    assert await through(body, headers, size) == body


@pytest.mark.parametrize(
    ("target", "headers", "body"),
    [
        (f"/nacos/v1/cs/configs?accessToken={OURS}", {}, b""),
        ("/nacos/v1/cs/configs", {"Authorization": f"Bearer {OURS}"}, b""),
        ("/nacos/v1/cs/configs", {"accessToken": OURS}, b""),
        ("/nacos/v1/cs/configs", {"Content-Type": FORM[0][1].decode()}, f"a=1&accessToken={OURS}".encode()),
        (f"/nacos/v1/auth/login?accessToken={OURS}", {"Content-Type": FORM[0][1].decode()}, b"username=a&password=b"),
        (
            "/nacos/v1/cs/configs",
            {"Content-Type": PARTS[0][1].decode(), "accessToken": OURS},
            part("accessToken", OURS) + b"--x-y--",
        ),
    ],
)
async def test_own_tokens_are_not_forwarded(target: str, headers: dict[str, str], body: bytes) -> None:
    upstream = Upstream()
    guard = AccessControl(Passthrough(upstream), AccessPolicy((Token(OURS, "admin"),)), refuse)
    theirs = {"accessToken": "of-nacos"} if "Authorization" in headers else {}
    sent = {"Content-Length": str(len(body)), **headers, **theirs}
    reply = await ask(guard, "POST", target, headers=sent, body=body)
    assert (reply.status, len(upstream.asked)) == (200, 1)
    assert OURS not in repr(upstream.asked)
    if theirs:
        assert (b"accesstoken", b"of-nacos") in upstream.asked[0][3]


def test_own_in_is_false_without_access_control() -> None:
    assert not own_token_test(scope("GET", "/"))(OURS)
    assert own_token_test({**scope("GET", "/"), OWN: own})(OURS)


TEXTS = st.sampled_from([OURS, f" {OURS} ", "theirs", ""])
HEADERS = st.dictionaries(st.sampled_from(["accessToken", "app", "x"]), TEXTS)


@given(headers=HEADERS, body=st.none() | st.fixed_dictionaries({"headers": HEADERS | st.none(), "dataId": TEXTS}))
def test_without_own_in_payload_removes_own_tokens_from_headers_and_their_copy_in_the_body_only(
    headers: dict[str, str], body: dict[str, Any] | None
) -> None:
    payload = without_own_in_payload(Payload("T", orjson.dumps(body), headers, "192.0.2.1"), own)
    assert payload.headers == {name: value for name, value in headers.items() if value.strip() != OURS}
    if body is not None and body["headers"] is not None:
        kept = {name: value for name, value in body["headers"].items() if value.strip() != OURS}
        assert payload.body == orjson.dumps({**body, "headers": kept})
    else:
        assert payload.body == orjson.dumps(body)
    assert (payload.type, payload.client_ip) == ("T", "192.0.2.1")


def test_without_own_in_payload_refuses_a_body_in_which_a_token_cannot_be_found() -> None:
    assert without_own_in_payload(Payload("T", b""), own).body == b""
    with pytest.raises(NotReadable):
        without_own_in_payload(Payload("T", b'{"headers":'), own)

"""Removes this proxy's own API tokens from forwarded requests, so that the upstream never sees them.

Only a value that is one of this proxy's tokens, in a place for tokens, is removed; the upstream's tokens are forwarded.

In a body, a token is overwritten, not left out, so that Content-Length stays right and the body can be streamed. In a
form, it is overwritten with `&`: servers, Tomcat included, skip empty parameters.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, cast
from urllib.parse import unquote_plus

from starlette.types import Scope

from nacos_proxy.model.errors import BadCall, Malformed
from nacos_proxy.wire.http import FORM_TYPE
from nacos_proxy.wire.multipart import MAX_HEAD, MULTIPART_TYPE, boundary_of, part_name
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.refusals import NotReadable
from nacos_proxy.wire.nacos.shapes import dumps, read_exactly
from nacos_proxy.wire.rest.query import TOKENS

OWN = "nacos_proxy.own"
"""The scope key under which access control puts an `IsOwnToken`."""

_MAX_PARAMETER = 16 * 1024  # bytes; a longer parameter cannot be a token
_PLAIN_HEAD = b'\r\nContent-Disposition: form-data; name="'

IsOwnToken = Callable[[str], bool]


def _no_tokens(text: str) -> bool:
    return False


def own_token_test(scope: Scope) -> IsOwnToken:
    return scope.get(OWN, _no_tokens)


def without_own_headers(headers: Iterable[tuple[bytes, bytes]], own: IsOwnToken) -> list[tuple[bytes, bytes]]:
    """The headers without own tokens. A `Referer` can hold one, too: a page may have a token in its address."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        text, lower = value.decode("latin-1"), name.lower()
        if lower == b"authorization":
            if any(map(own, text.split())):  # whatever the scheme
                continue
        elif lower == b"accesstoken" and own(text.strip()):
            continue
        elif lower == b"referer":
            address, hash_mark, fragment = text.partition("#")
            path, mark, query = address.partition("?")
            value = (path + mark + without_own_parameters(query, own) + hash_mark + fragment).encode("latin-1")
        kept.append((name, value))
    return kept


def without_own_parameters(query: str, own: IsOwnToken) -> str:
    """A query or form without the parameters that hold own tokens, otherwise unchanged."""
    return "&".join(pair for pair in query.split("&") if not _is_token(pair, own))


def _is_token(pair: str, own: IsOwnToken) -> bool:
    name, _, value = pair.partition("=")
    return unquote_plus(name) in TOKENS and own(unquote_plus(value))


def without_own_in_body(
    headers: Iterable[tuple[bytes, bytes]], body: AsyncIterator[bytes], own: IsOwnToken
) -> AsyncIterator[bytes]:
    """The body, of the same length, with own tokens overwritten if it is a form of either type."""
    media = next((value.decode("latin-1") for name, value in headers if name.lower() == b"content-type"), "")
    kind = media.partition(";")[0].strip().lower()
    if own is _no_tokens:
        return body
    if kind == FORM_TYPE:
        return _overwritten(body, b"&", lambda piece: _blank_pair(piece, own))
    if kind == MULTIPART_TYPE and (boundary := _boundary(media)):
        return _overwritten(body, b"--" + boundary, lambda piece: _blank_part(piece, own))
    return body


def _boundary(media: str) -> bytes:
    try:
        return boundary_of(media)
    except BadCall:  # without a boundary, the upstream cannot find a token either
        return b""


def _blank_pair(pair: bytes, own: IsOwnToken) -> bytes:
    return b"&" * len(pair) if _is_token(pair.decode("latin-1"), own) else pair


def _blank_part(part: bytes, own: IsOwnToken) -> bytes:
    """The part, or if it holds an own token, one of the same length with another name and an overwritten value."""
    head, empty_line, value = part.partition(b"\r\n\r\n")
    if len(head) > MAX_HEAD or not own(value.decode("utf-8", "replace").strip()):
        return part
    if part_name(head.decode("utf-8", "replace")) not in TOKENS:
        return part
    head = _PLAIN_HEAD + b"_" * (len(head) - len(_PLAIN_HEAD) - 1) + b'"'
    return head + empty_line + re.sub(rb"[^\r\n]", b"_", value)


async def _overwritten(
    body: AsyncIterator[bytes], separator: bytes, blank: Callable[[bytes], bytes]
) -> AsyncIterator[bytes]:
    """Streams the body. Buffers at most `_MAX_PARAMETER` bytes and a chunk."""
    held, long = b"", False  # `long`: the piece is too long for a token; its beginning was already yielded
    async for chunk in body:
        *pieces, held = (held + chunk).split(separator)
        ready = b""
        for piece in pieces:
            ready += (piece if long else blank(piece)) + separator
            long = False
        if len(held) > _MAX_PARAMETER + len(separator):
            cut = len(held) - len(separator)  # the end may be the start of a separator
            ready, held, long = ready + held[:cut], held[cut:], True
        if ready:
            yield ready
    if held:
        yield held if long else blank(held)


def without_own_in_payload(payload: Payload, own: IsOwnToken) -> Payload:
    """A payload of gRPC without own tokens in its headers. The Python SDK repeats the headers in the body.

    Raises `NotReadable` for a body that is not JSON, since a token could be anywhere in it.
    """
    try:
        body = read_exactly(payload.body or b"{}")
    except Malformed as error:
        raise NotReadable from error
    headers = {name: value for name, value in payload.headers.items() if not own(value.strip())}
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    repeated = fields.get("headers")
    if isinstance(repeated, dict):
        given = cast("dict[str, Any]", repeated)
        kept = {name: value for name, value in given.items() if not (isinstance(value, str) and own(value.strip()))}
        if len(kept) != len(given):
            return payload._replace(headers=headers, body=dumps({**fields, "headers": kept}))
    return payload._replace(headers=headers)

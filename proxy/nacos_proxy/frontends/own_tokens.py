"""Keeps this proxy's own API tokens from the upstream: they are taken out of what is passed on.

Not for: who may ask (`guard`), what the upstream makes of its own tokens, which go on as they came. A value goes only
where it is one of ours and stands where a token can stand, so that no byte of anything else changes.

What is cut out of a body is overwritten, not left out: the length that was announced stays right, and no body has to
be read before it is sent on. In a form `&&` separates nothing from nothing, for Tomcat as for all others.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from urllib.parse import unquote_plus

from starlette.types import Scope

from nacos_proxy.model.errors import BadCall
from nacos_proxy.wire.http import FORM_TYPE
from nacos_proxy.wire.multipart import (
    MAX_HEAD,
    MULTIPART_TYPE,
    boundary_of,
    part_name,
)
from nacos_proxy.wire.rest.query import TOKENS

OWN = "nacos_proxy.own"
"""Where the guard leaves in the scope what says of a text whether it is one of this proxy's tokens."""

_LONGEST = 16 * 1024  # bytes of a parameter that may hold a token; what is longer holds none
_PLAIN_HEAD = b'\r\nContent-Disposition: form-data; name="'

Known = Callable[[str], bool]


def _none(text: str) -> bool:
    return False


def own_in(scope: Scope) -> Known:
    """What says whether a text is a token of ours; where there are none, nothing is."""
    return scope.get(OWN, _none)


def without_own_headers(headers: Iterable[tuple[bytes, bytes]], own: Known) -> list[tuple[bytes, bytes]]:
    """The headers without tokens of ours. A page that has one in its address names it as `Referer`, too."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        text, lower = value.decode("latin-1"), name.lower()
        if lower == b"authorization":
            if any(map(own, text.split())):  # whatever scheme it is said to be of
                continue
        elif lower == b"accesstoken" and own(text.strip()):
            continue
        elif lower == b"referer":
            address, hash_mark, fragment = text.partition("#")
            place, mark, query = address.partition("?")
            value = (place + mark + without_own_parameters(query, own) + hash_mark + fragment).encode("latin-1")
        kept.append((name, value))
    return kept


def without_own_parameters(query: str, own: Known) -> str:
    """A query, or a form, without the parameters that hold tokens of ours; the rest is as it came."""
    return "&".join(pair for pair in query.split("&") if not _is_token(pair, own))


def _is_token(pair: str, own: Known) -> bool:
    name, _, value = pair.partition("=")
    return unquote_plus(name) in TOKENS and own(unquote_plus(value))


def without_own_in_body(
    headers: Iterable[tuple[bytes, bytes]], body: AsyncIterator[bytes], own: Known
) -> AsyncIterator[bytes]:
    """The body with tokens of ours overwritten, as long as it was, where it is a form of either kind."""
    media = next((value.decode("latin-1") for name, value in headers if name.lower() == b"content-type"), "")
    kind = media.partition(";")[0].strip().lower()
    if own is _none:
        return body
    if kind == FORM_TYPE:
        return _overwritten(body, b"&", lambda piece: _blank_pair(piece, own))
    if kind == MULTIPART_TYPE and (boundary := _boundary(media)):
        return _overwritten(body, b"--" + boundary, lambda piece: _blank_part(piece, own))
    return body


def _boundary(media: str) -> bytes:
    try:
        return boundary_of(media)
    except BadCall:  # nobody can tell its parts apart, nor the upstream
        return b""


def _blank_pair(pair: bytes, own: Known) -> bytes:
    return b"&" * len(pair) if _is_token(pair.decode("latin-1"), own) else pair


def _blank_part(part: bytes, own: Known) -> bytes:
    """A part of another name, and nothing in it. Its name is read as the guard reads it."""
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
    """The body piece by piece; at most `_LONGEST` bytes of it, and a chunk, are held back."""
    held, long = b"", False  # `long`: the piece is too long for a token, and its beginning has gone
    async for chunk in body:
        *pieces, held = (held + chunk).split(separator)
        ready = b""
        for piece in pieces:
            ready += (piece if long else blank(piece)) + separator
            long = False
        if len(held) > _LONGEST + len(separator):
            cut = len(held) - len(separator)  # its end may be the beginning of a separator
            ready, held, long = ready + held[:cut], held[cut:], True
        if ready:
            yield ready
    if held:
        yield held if long else blank(held)

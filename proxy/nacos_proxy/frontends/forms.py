"""A request's form, read before its turn: for who must know a parameter of it, and leave it to be read once more.

Not for: what stands in a form (`wire`), bodies that are read where they are used (`answers`).
"""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.types import Message, Receive, Scope

from nacos_proxy.frontends.answers import length_of
from nacos_proxy.model.errors import BadCall
from nacos_proxy.wire.http import FORM_TYPE, form_pairs
from nacos_proxy.wire.multipart import MULTIPART_TYPE

_FORM, _MULTIPART = FORM_TYPE.encode(), MULTIPART_TYPE.encode()


async def form_of(scope: Scope, receive: Receive, most: int) -> tuple[bytes, Receive]:
    """The form of a request, up to `most` bytes, and what gives it once more; b'' for any other.

    The Go SDK's writes and beats carry the token there. What announces more streams on unread, what turns out to be
    more streams on with what was read of it. One of `multipart/form-data` is given as the other type writes it.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    content_type = headers.get(b"content-type", b"")
    media = content_type.partition(b";")[0].strip().lower()
    if media not in (_FORM, _MULTIPART):
        return b"", receive
    announced = length_of(headers.get(b"content-length", b""))
    if not (0 < announced <= most or b"transfer-encoding" in headers):
        return b"", receive
    body, more = bytearray(), True
    last: Message | None = None
    while more and len(body) <= most:
        last = await receive()
        more = last["type"] == "http.request" and last.get("more_body", False)
        body += last.get("body", b"")
    form = bytes(body)
    gone = [last] if last is not None and last["type"] == "http.disconnect" else []
    taken: list[Message] = list(gone)  # the last comes first
    if form or not gone:
        taken.append({"type": "http.request", "body": form, "more_body": more or bool(gone)})

    async def once_more() -> Message:
        return taken.pop() if taken else await receive()

    if more or len(form) > most:
        return b"", once_more
    return (form if media == _FORM else _as_form(content_type, form)), once_more


def _as_form(content_type: bytes, body: bytes) -> bytes:
    try:
        return urlencode(form_pairs(content_type.decode("latin-1"), body)).encode()
    except BadCall:  # said where the form is read to be used
        return b""

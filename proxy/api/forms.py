"""A request's form, read before its turn: for who must know a parameter of it, and leave it to be read once more.

Not for: what stands in a form (`wire`), bodies that are read where they are used (`answers`).
"""

from __future__ import annotations

from starlette.types import Message, Receive, Scope

from proxy.wire.base import FORM_TYPE

_FORM = FORM_TYPE.encode()


async def form_of(scope: Scope, receive: Receive, most: int) -> tuple[bytes, Receive]:
    """The form of a request, up to `most` bytes, and what gives it once more; b'' for any other.

    The Go SDK's writes and beats carry the token there. What announces more streams on unread, what turns out to be
    more streams on with what was read of it.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _FORM:
        return b"", receive
    length = headers.get(b"content-length", b"")
    announced = int(length) if length.isdigit() else 0
    if not (0 < announced <= most or b"transfer-encoding" in headers):
        return b"", receive
    taken: list[Message] = []
    size, more = 0, True
    while more and size <= most:
        message = await receive()
        taken.append(message)
        more = message["type"] == "http.request" and message.get("more_body", False)
        size += len(message.get("body", b""))
    taken.reverse()

    async def once_more() -> Message:
        return taken.pop() if taken else await receive()

    whole = not more and size <= most
    return (b"".join(m.get("body", b"") for m in reversed(taken)) if whole else b""), once_more

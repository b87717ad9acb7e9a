"""Whose account a request shows: a token of the upstream's, or name and password (nacos-http.md 7.2).

Not for: whether the upstream takes them (`registry.rights`), this proxy's own API tokens (`api.guard`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from starlette.types import Scope

from nacos_proxy.frontends.own_tokens import Known
from nacos_proxy.wire.http import first_of

_NAMESPACE = re.compile(r"[\w-]{1,128}", re.ASCII)
_LONGEST = 4096  # characters of a token, or of name and password


@dataclass(frozen=True, slots=True)
class Shown:
    """A token, or name and password, that a request shows; and the namespace that it is about, if it says so."""

    token: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    namespace: str = ""

    @property
    def endless(self) -> bool:
        """Whether it is longer than anybody's: what is prepared to be sent with it is kept for a while."""
        return len(self.token or self.username + self.password) > _LONGEST


def shown_in(scope: Scope, form: bytes, own: Known) -> Shown | None:
    """What a request shows, as Nacos clients do it (nacos-http.md 7.2), the bearer first; None for nothing.

    A token of this proxy's own is none of the upstream's.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    values = first_of(scope["query_string"], form)
    scheme, _, bearer = headers.get(b"authorization", "").partition(" ")
    tokens = (
        bearer.strip() if scheme.lower() == "bearer" else "",
        values.get("accessToken", ""),
        headers.get(b"accesstoken", ""),
    )
    token = next((token for token in tokens if token and not own(token)), "")
    named = values.get("namespaceId") or values.get("namespace", "")
    namespace = named if _NAMESPACE.fullmatch(named) else ""
    if token:
        return Shown(token, namespace=namespace)
    if values.get("username") and values.get("password"):
        return Shown("", values["username"], values["password"], namespace)
    return None

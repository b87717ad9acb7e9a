"""The credentials in a request: a token of the upstream, or a name and password (nacos-http.md 7.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from starlette.types import Scope

from nacos_proxy.frontends.own_tokens import IsOwnToken
from nacos_proxy.wire.http import first_of

_NAMESPACE = re.compile(r"[\w-]{1,128}", re.ASCII)
_MAX_LENGTH = 4096  # characters of a token, or of name and password


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """A token, or name and password; and the namespace that the request names, if any."""

    token: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    namespace: str = ""

    @property
    def too_long(self) -> bool:
        """Whether they are longer than any real ones. Prepared answers would keep them in memory, so refuse them."""
        return len(self.token or self.username + self.password) > _MAX_LENGTH


def find_credentials(scope: Scope, form: bytes, own: IsOwnToken) -> ClientCredentials | None:
    """Looks where Nacos clients put their credentials (nacos-http.md 7.2), for a bearer token first.

    Skips the API tokens of this proxy, for which `own` is true. Returns None if the request has no credentials.
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
        return ClientCredentials(token, namespace=namespace)
    if values.get("username") and values.get("password"):
        return ClientCredentials("", values["username"], values["password"], namespace)
    return None

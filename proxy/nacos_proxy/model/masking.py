"""Masks secrets in log lines, and in URLs that settings and errors show.

Parameter names are decoded first, so `access%54oken` counts, too. The type of a setting masks a setting that is secret
as a whole (`app.setting_types`).
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

MASK = "********"

# A parameter is secret if its name contains one of these: accessToken, newPassword, client_secret, X-Api-Key …
_SECRET_PARTS = ("passw", "pwd", "token", "secret", "credential", "signature", "apikey", "accesskey", "secretkey")
_SECRET_NAMES = ("sk", "sig", "auth")
_AFTER_HOST = re.compile(r"[/?#]")  # the first character after the host in a URL
_PIECE = re.compile(r"[^\s?&#]+")  # may be name=value
_USER_INFO = re.compile(r"(?<=://)[^\s/?#'\"]*@")


def masked(text: str) -> str:
    """The line without the values of secret parameters, and without the credentials in URLs."""
    return _USER_INFO.sub(f"{MASK}@", _PIECE.sub(_masked_piece, text))


def _masked_piece(found: re.Match[str]) -> str:
    name, equals, _ = found[0].partition("=")
    return f"{name}={MASK}" if equals and is_secret(name) else found[0]


def is_secret(name: str) -> bool:
    """Whether a parameter is secret, by its name as written in a URL."""
    plain = re.sub(r"[^a-z]", "", unquote_plus(name).lower())
    return plain in _SECRET_NAMES or any(word in plain for word in _SECRET_PARTS)


def shown_url(url: str) -> str:
    """A URL that people may see: secrets masked, no fragment.

    A password may contain `/`, `?` or `#`. So if no `@` comes before the first of them, everything up to the last `@`
    is masked.
    """
    scheme, separator, rest = _scheme(url)
    authority = _AFTER_HOST.split(rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@") if "@" in authority else rest.rpartition("@")
    if at:
        rest = f"{MASK}@{rest[len(user) + 1 :]}"
    return masked(f"{scheme}{separator}{rest.partition('#')[0]}")


def shown_origin(url: str) -> str:
    """Only the scheme, host and port of a URL."""
    scheme, separator, rest = _scheme(shown_url(url))
    return f"{scheme}{separator}{_AFTER_HOST.split(rest, maxsplit=1)[0].rpartition('@')[2]}"


def _scheme(url: str) -> tuple[str, str, str]:
    return url.partition("://") if "://" in url else ("", "", url)

"""What people are shown of text that may hold a secret: log lines, URLs of settings and errors. Pure.

Not for: settings that are secrets as a whole (`spelling`). A parameter is known by its name as a server reads it, so
`access%54oken` is one; its value ends where the parameter does, whatever stands in it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

MASK = "********"

# A name that holds one of these is that of a secret: accessToken, newPassword, client_secret, X-Api-Key, Signature …
_WORDS = ("passw", "pwd", "token", "secret", "credential", "signature", "apikey", "accesskey", "secretkey")
_NAMES = ("sk", "sig", "auth")
_END = re.compile(r"[/?#]")  # of the part of a URL that names a host
_PIECE = re.compile(r"[^\s?&#]+")  # of a line: what may be name=value
_USER = re.compile(r"(?<=://)[^\s/?#'\"]*@")


def masked(text: str) -> str:
    """A line without the values of secret parameters and without who logs in by a URL."""
    return _USER.sub(f"{MASK}@", _PIECE.sub(_masked_piece, text))


def _masked_piece(found: re.Match[str]) -> str:
    name, equals, _ = found[0].partition("=")
    return f"{name}={MASK}" if equals and is_secret(name) else found[0]


def is_secret(name: str) -> bool:
    """Whether a parameter of this name, as it is written in a URL, holds what nobody is to see."""
    plain = re.sub(r"[^a-z]", "", unquote_plus(name).lower())
    return plain in _NAMES or any(word in plain for word in _WORDS)


def shown_url(url: str) -> str:
    """A URL as people may see it, without its fragment.

    Where no `@` stands before the first of `/?#`, what stands before the last one can be a password that holds them.
    """
    scheme, separator, rest = _scheme(url)
    place = _END.split(rest, maxsplit=1)[0]
    user, at, _ = place.rpartition("@") if "@" in place else rest.rpartition("@")
    if at:
        rest = f"{MASK}@{rest[len(user) + 1 :]}"
    return masked(f"{scheme}{separator}{rest.partition('#')[0]}")


def shown_origin(url: str) -> str:
    """Scheme, host and port of a URL alone, as far as it has them."""
    scheme, separator, rest = _scheme(shown_url(url))
    return f"{scheme}{separator}{_END.split(rest, maxsplit=1)[0].rpartition('@')[2]}"


def _scheme(url: str) -> tuple[str, str, str]:
    return url.partition("://") if "://" in url else ("", "", url)

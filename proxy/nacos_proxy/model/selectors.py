"""Selectors: which instances a reader wants, by their metadata, in the grammar of Kubernetes' label selectors.

    zone=a  zone==a  zone!=a  canary  !old  region in (x,y)  region notin (x,y)  build>7  build<9

Requirements are separated by commas, and all of them have to hold. As in Kubernetes, `!=` and `notin` also match
instances without the key, and `>` and `<` compare whole numbers. Beyond Kubernetes, a key or value with other
characters may stand in double quotes, with a backslash before quotes and backslashes in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nacos_proxy.model.services import Metadata

MAX_SELECTOR = 1_000  # characters

_TOKENS = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<sign>==|!=|[=!<>(),])|(?P<word>[^\s"=!<>(),]+))""", re.DOTALL
)
_PLAIN = re.compile(r"[^\s\"=!<>(),]+")
_SIGNS = {"=": "in", "==": "in", "!=": "notin", ">": ">", "<": "<"}


class Requirement(NamedTuple):
    """`operator` is one of `in`, `notin`, `exists`, `!`, `>`, `<`. `a=b` is `a in (b)`."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, metadata: Metadata) -> bool:
        """A null value counts as an empty text."""
        known = self.key in metadata
        value = metadata.get(self.key) or ""
        match self.operator:
            case "in":
                return known and value in self.values
            case "notin":
                return not known or value not in self.values
            case "exists":
                return known
            case "!":
                return not known
            case _:
                return known and _is_number(value) and _compare(int(value), self.operator, int(self.values[0]))

    def __str__(self) -> str:
        key, values = _quoted(self.key), [_quoted(value) for value in self.values]
        match self.operator:
            case "exists":
                return key
            case "!":
                return f"!{key}"
            case "in" | "notin" if len(values) == 1:
                return f"{key}{'=' if self.operator == 'in' else '!='}{values[0]}"
            case "in" | "notin":
                return f"{key} {self.operator} ({','.join(values)})"
            case _:
                return f"{key}{self.operator}{values[0]}"


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements, all of which have to hold. Equal if they are the same in any order; false if there are none."""

    text: str = ""
    requirements: tuple[Requirement, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Raises `ValueError` with a text that names the place and what is expected there."""
        if len(text) > MAX_SELECTOR:
            raise ValueError(f"it has {len(text)} characters, {MAX_SELECTOR} are allowed")
        found = _Parser(text).requirements()
        return cls.of(*found)

    @classmethod
    def of(cls, *requirements: Requirement) -> Selector:
        rows = {str(requirement): requirement for requirement in requirements}
        return cls(",".join(sorted(rows)), tuple(rows[text] for text in sorted(rows)))

    def matches(self, metadata: Metadata) -> bool:
        return all(requirement.matches(metadata) for requirement in self.requirements)

    def __bool__(self) -> bool:
        return bool(self.requirements)

    def __str__(self) -> str:
        return self.text


ANY = Selector()


class _Parser:
    """Reads tokens (kind, text, position) one after another. The kind of the end is ''."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._read()
        self._kind, self._token, self._at = next(self._tokens)

    def _read(self) -> Iterator[tuple[str, str, int]]:
        at, end = 0, len(self._text.rstrip())
        while at < end:
            match = _TOKENS.match(self._text, at)
            if match is None or match.lastgroup is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self._error("the quote is never closed", at)
            yield match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)
            at = match.end()
        while True:
            yield "", "", end

    def _next(self) -> str:
        token = self._token
        self._kind, self._token, self._at = next(self._tokens)
        return token

    def _error(self, expected: str, at: int) -> ValueError:
        rest = self._text[at : at + 20]
        return ValueError(f"at character {at + 1} ({rest!r}): {expected}" if rest else f"at its end: {expected}")

    def _is(self, *signs: str) -> bool:
        return self._kind == "sign" and self._token in signs

    def requirements(self) -> Iterator[Requirement]:
        if not self._kind:
            return
        yield self._requirement()
        while self._kind:
            if not self._is(","):
                raise self._error("expected ',' or the end", self._at)
            self._next()
            yield self._requirement()

    def _requirement(self) -> Requirement:
        if self._is("!"):
            self._next()
            return Requirement(self._key(), "!")
        key = self._key()
        if self._kind == "word" and self._token in ("in", "notin"):
            return Requirement(key, self._next(), self._list())
        if self._kind == "sign" and self._token in _SIGNS:
            sign = self._next()
            at, value = self._at, self._value()
            if sign in "<>" and not _is_number(value):
                raise self._error(f"'{sign}' compares whole numbers", at)
            return Requirement(key, _SIGNS[sign], (value,))
        if self._kind and not self._is(","):
            raise self._error("expected '=', '!=', 'in', 'notin', '<', '>' or ','", self._at)
        return Requirement(key, "exists")

    def _key(self) -> str:
        if self._kind not in ("word", "quoted"):
            raise self._error("expected a metadata key", self._at)
        return self._word()

    def _value(self) -> str:
        """Empty before ',' or ')' and at the end, as in Kubernetes."""
        if not self._kind or self._is(",", ")"):
            return ""
        if self._kind == "sign":
            raise self._error("expected a value; one with such characters stands in double quotes", self._at)
        return self._word()

    def _word(self) -> str:
        kind, token = self._kind, self._next()
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL) if kind == "quoted" else token

    def _list(self) -> tuple[str, ...]:
        if not self._is("("):
            raise self._error("expected '('", self._at)
        self._next()
        values = [self._value()]
        while self._is(","):
            self._next()
            values.append(self._value())
        if not self._is(")"):
            raise self._error("expected ',' or ')'", self._at)
        self._next()
        return tuple(sorted(set(values)))


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) < 20


def _compare(left: int, sign: str, right: int) -> bool:
    return left > right if sign == ">" else left < right


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text not in ("in", "notin"):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"' if text else ""

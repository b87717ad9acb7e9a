"""Which dialects a server speaks, learned from its version and, for each kind of call, from its answers.

Nacos 3.0 answers 410 to some calls of v1 and not to others, 3.2 answers 404 to all of them. A refusal counts for its
kind of call, which uses the next dialect from then on. If a kind of call is refused that worked before, the server has
another version now: everything learned is forgotten, so that an upgrade or a downgrade loses no call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nacos_proxy.model.calls import Call, CreateService, ListDetails

DialectName = Literal["v1", "v2", "v3"]

ORDER: tuple[DialectName, ...] = ("v1", "v2", "v3")
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


@dataclass(slots=True)
class Capabilities:
    """The capabilities of one server.

    `version` is '' while it is unknown. `version_asked_at` is the time of the last request for it, -inf if one is due.
    `has_parameter_check`: the version is known, and has Nacos's parameter check (2.3 and later).
    """

    version: str = ""
    has_parameter_check: bool = False
    version_asked_at: float = float("-inf")
    _worked: set[tuple[DialectName, type]] = field(default_factory=lambda: set())
    _gone: set[tuple[DialectName, type]] = field(default_factory=lambda: set())

    def dialects_for(self, call: Call[Any], order: tuple[DialectName, ...]) -> list[DialectName]:
        """The dialects to try, in order: those that have not refused the call, or all if each has."""
        kind = type(call)
        if self.version[:2] in ("3.", "4."):  # v2's whole naming API is gone (nacos-http.md 4.0)
            order = tuple(name for name in order if name != "v2") or order
        # v1 creates only persistent services (nacos-http.md 2.10); only v3 has pages with instances
        if isinstance(call, ListDetails) or (isinstance(call, CreateService) and call.ephemeral):
            order = tuple(reversed(order))
        left: list[DialectName] = [name for name in order if (name, kind) not in self._gone] if self._gone else []
        return left or list(order)

    def worked(self, name: DialectName, kind: type) -> None:
        self._worked.add((name, kind))
        self._gone.discard((name, kind))

    def has_worked(self, name: DialectName, kind: type) -> bool:
        return (name, kind) in self._worked

    def gone(self, name: DialectName, kind: type) -> bool:
        """Notes that a dialect does not have this call. Returns whether it had before, in another version."""
        changed = (name, kind) in self._worked
        if changed:
            self.forget()
        self._gone.add((name, kind))
        return changed

    def forget(self) -> None:
        """Called when the server may have another version. Makes a request for the version due."""
        self.version, self.has_parameter_check = "", False
        self._worked.clear()
        self._gone.clear()
        self.version_asked_at = float("-inf")

    def set_version(self, state: Mapping[str, str | None]) -> None:
        """Reads the version from the server's state object."""
        self.version = str(state.get("version") or "")
        number = _VERSION.match(self.version)
        self.has_parameter_check = number is not None and (int(number[1]), int(number[2])) >= (2, 3)

    @property
    def dialects(self) -> list[str]:
        """The dialects in which a call has worked, for people."""
        return sorted({name for name, _ in self._worked})

"""What a server speaks: learned from its answers, call by call, and from the version that it tells.

Not for: asking (`nacos`), how a dialect is spoken (`speech`).

A server of 3.0 answers 410 to some calls of v1 and not to others, one of 3.2 answers 404 to all: what was refused is
remembered per kind of call, and the next dialect is used at once. What worked before and is refused now means another
version: all that was learned is forgotten, so that an upgrade, or a downgrade, of the server loses no call.
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
    """What is known of one server. `version` is '' until it has told one, `dialect` the last that worked.

    `asked_at` is when it was last asked for its version; it is asked again after `forget`. `checks` says that it is
    known to have Nacos's parameter check, which came with 2.3.
    """

    version: str = ""
    dialect: str = ""
    checks: bool = False
    asked_at: float = float("-inf")
    _worked: set[tuple[DialectName, type]] = field(default_factory=lambda: set())
    _gone: set[tuple[DialectName, type]] = field(default_factory=lambda: set())

    def plan(self, call: Call[Any], order: tuple[DialectName, ...]) -> list[DialectName]:
        """The dialects to try, in order; all of them again where each has been refused."""
        kind = type(call)
        if self.version[:2] in ("3.", "4."):  # there all of v2's naming API is gone (nacos-http.md 4.0)
            order = tuple(name for name in order if name != "v2") or order
        # v1 creates persistent services only (nacos-http.md 2.10), and v3 alone has pages with instances
        if isinstance(call, ListDetails) or (isinstance(call, CreateService) and call.ephemeral):
            order = tuple(reversed(order))
        left: list[DialectName] = [name for name in order if (name, kind) not in self._gone] if self._gone else []
        return left or list(order)

    def worked(self, name: DialectName, kind: type) -> None:
        self.dialect = name
        self._worked.add((name, kind))
        self._gone.discard((name, kind))

    def gone(self, name: DialectName, kind: type) -> bool:
        """The server does not offer this call in this dialect. True: it did before, so it is another version now."""
        changed = (name, kind) in self._worked
        if changed:
            self.forget()
        self._gone.add((name, kind))
        return changed

    def forget(self) -> None:
        """It may be another version, after a reconnect or because it refuses what it took; it is asked again."""
        self.version, self.checks = "", False
        self._worked.clear()
        self._gone.clear()
        self.asked_at = float("-inf")

    def told(self, state: Mapping[str, str | None]) -> None:
        """A server's own state object."""
        self.version = str(state.get("version") or "")
        number = _VERSION.match(self.version)
        self.checks = number is not None and (int(number[1]), int(number[2])) >= (2, 3)

    @property
    def dialects(self) -> list[str]:
        """Those in which something worked, for people."""
        return sorted({name for name, _ in self._worked})

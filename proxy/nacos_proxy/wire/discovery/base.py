"""What a format is. Each is one module here, and one row of `formats.FORMATS`: routes and documents follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.wire.http import JSON_TYPE


class Shown(NamedTuple):
    """A service as a reader sees it: filtered, in a stable order."""

    key: ServiceKey
    hosts: Sequence[Instance]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """`write` returns bytes, or a value for JSON. It gets only hosts that `carries` accepts.

    `several`: it takes several services. `yaml`: its JSON may be asked for as YAML, which it is. `needs_server`: the
    program refuses a list without a server, so its reader gets an error instead. `healthy_only` is the default of this
    parameter. `example`, `summary`, `description`, and `model` unless the form is free, are for the OpenAPI document.
    """

    name: str
    summary: str
    description: str
    example: object
    write: Callable[[Sequence[Shown]], object]
    carries: Callable[[Instance], bool] = lambda host: True
    media: str = JSON_TYPE
    several: bool = False
    yaml: bool = False
    needs_server: bool = False
    healthy_only: bool = True
    model: Any = None

    def of(self, services: Iterable[Shown]) -> object:
        """The answer: bytes, or a value for JSON. b"" if the format needs a server and can carry none of these."""
        shown = [Shown(key, [host for host in hosts if self.carries(host)]) for key, hosts in services]
        if self.needs_server and not any(hosts for _, hosts in shown):
            return b""
        return self.write(shown)

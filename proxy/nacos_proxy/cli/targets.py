"""One file that `render` keeps current: which text belongs into it, and what it was made from.

Beside the file is a hidden one, `.NAME.nacos-proxy`: the lists that the file was made from, so that an empty list does
not replace a full one after a restart either; and whether its command still has to succeed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nacos_proxy.cli.commands import words
from nacos_proxy.cli.files import beside, read_text, real_path, replace_file
from nacos_proxy.cli.lists import Lists, Reader
from nacos_proxy.cli.templates import BUILT_IN, Scope, Template
from nacos_proxy.model.services import EMPTY

_COLON = re.compile(r"(?<!\\):")


@dataclass(frozen=True, slots=True)
class Spec:
    """`TEMPLATE:FILE[:COMMAND]`. `template` is a file, or a built-in one for the services `names`."""

    template: Path | str
    names: tuple[str, ...]
    file: Path
    command: tuple[str, ...] = ()


def read_spec(text: str) -> Spec:
    r"""Reads `TEMPLATE:FILE[:COMMAND]`, with `\:` for a colon in TEMPLATE or FILE. Raises `ValueError`.

    >>> read_spec("nginx@orders:/etc/nginx/orders.conf:nginx -s reload").command
    ('nginx', '-s', 'reload')
    """
    parts = _COLON.split(text, maxsplit=2)
    template, file = (part.replace("\\:", ":") for part in (*parts, "")[:2])
    if not template or not file:
        raise ValueError(rf"{text!r} is not TEMPLATE:FILE[:COMMAND]; write a colon in a name as \:")
    command = words(parts[2]) if len(parts) == 3 else ()
    kind, at, services = template.partition("@")
    if kind not in BUILT_IN:
        return Spec(Path(template), (), Path(file), command)
    names = tuple(dict.fromkeys(name for name in services.split(",") if name))
    if not at or not names:
        raise ValueError(
            f"{kind} is a built-in template; name its services, as in {kind}@orders, or write ./{template}"
        )
    return Spec(kind, names, Path(file), command)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file was made from: `lists` by call, without empty ones. `command_due`: its command must still succeed."""

    lists: Mapping[str, Sequence[Any]] = field(default_factory=lambda: EMPTY)
    command_due: bool = False


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text, what it was made from, and what the file contains now (None: there is no file)."""

    text: bytes
    reader: Reader
    before: bytes | None


class Target:
    """A template and its file. `origin` is None if nothing is known about the file, or there is none."""

    def __init__(
        self, spec: Spec, *, namespace: str = "", group: str = "", view: Mapping[str, str] | None = None
    ) -> None:
        """Scope and view are those of calls in the template that name none. Raises `TemplateError`, `CannotReplace`."""
        self.spec = spec
        self._scope = Scope(namespace, group, view or EMPTY)
        self.path = real_path(spec.file)
        self.reload()
        self.origin = self._read_origin()

    def reload(self) -> None:
        """Reads the template again. Raises `TemplateError`."""
        self._template = Template(self.spec.template, self.spec.names, self._scope)

    def render(self, lists: Lists, *, allow_empty: bool) -> Rendering:
        """Raises `TemplateError`, `OSError`, and what `lists` raises."""
        path = real_path(self.spec.file)
        if path != self.path:  # a link that points elsewhere now
            self.path = path
            self.origin = self._read_origin()
        before = read_text(path)
        if before is None:
            self.origin = None
        unknown = self.origin is None and bool(before)
        reader = Reader(lists, self._kept, allow_empty=allow_empty, unknown=unknown)
        return Rendering(self._template.render(reader).encode(), reader, before)

    def write(self, made: Rendering, check: Callable[[Path], bool]) -> bool:
        """Replaces the file, unless `check` refuses the new one. Raises `OSError`."""
        old, due = self._kept, bool(self.spec.command)

        def prepare(new: Path) -> bool:
            if not check(new):
                return False
            # If this process is killed before or after the file is replaced: the lists of both, and the command.
            self._set_origin(Origin({**old, **made.reader.lists}, due))
            return True

        if not replace_file(self.path, made.text, check=prepare):
            return False
        self._set_origin(Origin(made.reader.lists, due))
        return True

    def confirm(self, made: Rendering) -> None:
        """The file has this text already. Raises `OSError`."""
        if self.origin is None or self.origin.lists.keys() != made.reader.lists.keys():
            self._set_origin(Origin(made.reader.lists, self.command_due))

    def command_done(self) -> None:
        """Raises `OSError`."""
        if self.origin is not None and self.origin.command_due:
            self._set_origin(Origin(self.origin.lists))

    @property
    def command_due(self) -> bool:
        return bool(self.spec.command) and self.origin is not None and self.origin.command_due

    @property
    def _kept(self) -> Mapping[str, Sequence[Any]]:
        return self.origin.lists if self.origin is not None else EMPTY

    def _set_origin(self, origin: Origin) -> None:
        content = {"lists": origin.lists, "command_due": origin.command_due}
        replace_file(self._origin_path, json.dumps(content).encode(), mode=0o600)
        self.origin = origin

    def _read_origin(self) -> Origin | None:
        """None also for a damaged file: then the target counts as unknown, and no empty list replaces it."""
        try:
            content = json.loads(read_text(self._origin_path) or b"null")
            lists = {
                text: list(found) for text, found in content["lists"].items() if isinstance(json.loads(text), list)
            }
            return Origin(lists, bool(content["command_due"]))
        except (ValueError, TypeError, LookupError, AttributeError):
            return None

    @property
    def _origin_path(self) -> Path:
        return beside(self.path, "nacos-proxy")

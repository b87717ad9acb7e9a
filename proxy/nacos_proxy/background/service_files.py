"""Service files: reads `*.toml` of a directory, and keeps registered what they declare.

A broken file changes nothing: what it declared before stays. So does everything if the directory cannot be read. The
`HealthChecker` registers and deregisters; which file declares an instance is kept with its registration, so that after
a restart the proxy knows what a file that is gone has declared.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import orjson

from nacos_proxy.background.health_checker import HealthChecker
from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.limits import LENIENT, Rules
from nacos_proxy.model.services import Instance, ServiceKey
from nacos_proxy.runtime import Supervisor
from nacos_proxy.wire.service_files import BadFile, as_written, parse

log = logging.getLogger("nacos_proxy.service_files")

MAX_SIZE = 64 << 10  # bytes of a file
MAX_INSTANCES = 1_000  # of all files


class Declaration(NamedTuple):
    """An instance as a service file declares it, and how to check it."""

    service: ServiceKey
    instance: Instance
    spec: CheckSpec

    @property
    def key(self) -> RegistrationKey:
        return (self.service, self.instance.ip, self.instance.port)

    @property
    def digest(self) -> str:
        whole = [str(self.service), self.instance, self.spec.dump()]
        return hashlib.blake2b(
            orjson.dumps(whole, default=dict, option=orjson.OPT_SORT_KEYS), digest_size=8
        ).hexdigest()


Files: TypeAlias = Mapping[str, "tuple[Declaration, ...] | str"]
"""By name, in the order of the names: what a file declares, or what is wrong with it."""


def read_files(directory: Path | None, rules: Rules = LENIENT) -> Files:
    """The service files of a directory, without hidden ones. Raises `BadFile` if the directory cannot be used."""
    if directory is None:
        return {}
    try:
        if os.stat(directory).st_mode & stat.S_IWOTH:
            raise BadFile("every user of this host can write to it: run chmod o-w on it")
        names = sorted(name for name in os.listdir(directory) if name.endswith(".toml") and not name.startswith("."))
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}") from None
    files: dict[str, tuple[Declaration, ...] | str] = {}
    declared_in: dict[RegistrationKey, str] = {}
    for name in names:
        try:
            found = _declarations(_read(directory / name), rules)
            _refuse_duplicates(name, found, declared_in)
        except BadFile as error:
            files[name] = str(error)
        else:
            files[name] = found
            declared_in.update((one.key, name) for one in found)
    return files


def _read(path: Path) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # a pipe would block
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise BadFile("is no file; remove it")
            if mode & stat.S_IWOTH:
                raise BadFile("every user of this host can write to it: run chmod o-w on it")
            text = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}") from None
    if len(text) > MAX_SIZE:
        raise BadFile(f"is larger than {MAX_SIZE >> 10} KiB; divide it")
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise BadFile("is not UTF-8 text") from None


def _declarations(text: str, rules: Rules) -> tuple[Declaration, ...]:
    found: list[Declaration] = []
    for where, register, managed in parse(text, rules):
        try:
            spec = CheckSpec("none") if managed is None else CheckSpec.parse(managed)
        except BadCall as error:
            raise BadFile(where + as_written(error)) from None
        found.append(Declaration(register.service, register.instance, spec))
    return tuple(found)


def _refuse_duplicates(name: str, found: tuple[Declaration, ...], declared_in: Mapping[RegistrationKey, str]) -> None:
    keys = [one.key for one in found]
    for number, one in enumerate(found):
        other = declared_in.get(one.key) or (name if one.key in keys[:number] else "")
        if other:
            where = "twice" if other == name else f"and so does {other}: remove one of them"
            raise BadFile(f"declares {one.instance.address} of {one.service} {where}")
    if len(declared_in) + len(found) > MAX_INSTANCES:
        raise BadFile(f"with it, the files declare more than {MAX_INSTANCES} instances")


@dataclass(eq=False)
class ServiceFiles:
    """The service files of one proxy. `directory` None: there are none, and none had any.

    `rules()`: what names may be, which depends on the upstream. `errors`: what is wrong, by file or directory.
    """

    checker: HealthChecker
    supervisor: Supervisor
    directory: Path | None
    rules: Callable[[], Rules]
    errors: Mapping[str, str] = field(default_factory=lambda: {})
    files: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def reload(self) -> asyncio.Task[None]:
        """Reads the files and applies them, in the background."""
        return self.supervisor.once(self._load(), name="service files")

    async def _load(self) -> None:
        async with self._lock:
            try:
                files = await asyncio.to_thread(read_files, self.directory, self.rules())
            except BadFile as error:
                self._report({str(self.directory): str(error)})
                return
            self.files = len(files)
            self._report({name: found for name, found in files.items() if isinstance(found, str)})
            self._apply(files)

    def _report(self, errors: Mapping[str, str]) -> None:
        for name, error in errors.items():
            if self.errors.get(name) != error:
                log.error("the service file %s is not used, what it declared before stays: %s", name, error)
        self.errors = errors

    def _apply(self, files: Files) -> None:
        wanted = {one.key: (name, one) for name, found in files.items() if not isinstance(found, str) for one in found}
        for checked in self.checker:
            if checked.file and checked.key not in wanted and checked.file not in self.errors:
                self.checker.withdraw(checked)
        for name, one in wanted.values():
            self.checker.declare(name, one.service, one.instance, one.spec, one.digest)
        if self.directory is not None:
            log.info("%d service files declare %d instances", len(files), len(wanted))

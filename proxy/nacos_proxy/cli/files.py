"""Files that other programs read: written whole beside the target, flushed to disk, and renamed.

Nothing here follows a plan of its own: which text goes into which file is decided in `cli/targets.py`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

NEW_MODE = 0o644


class CannotReplace(OSError):
    """The file cannot be replaced as it is; the message says why and what to do."""


def real_path(path: Path) -> Path:
    """The file that is replaced: what a link points to, not the link. Raises `CannotReplace`."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise CannotReplace(f"{path} is a link that leads to itself")
    if not real.parent.is_dir():
        raise CannotReplace(f"the directory {real.parent} does not exist")
    if real.exists() and not real.is_file():
        raise CannotReplace(f"{path} is not a regular file")
    return real


def beside(path: Path, purpose: str) -> Path:
    """A hidden file beside `path`, which no `include *.conf` and no directory of dnsmasq or HAProxy covers."""
    return path.parent / f".{path.name}.{purpose}"


def read_text(path: Path) -> bytes | None:
    """The content; None if the file does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace_file(
    path: Path, content: bytes, *, mode: int = NEW_MODE, check: Callable[[Path], bool] | None = None
) -> bool:
    """Replaces the file; a reader sees the old content or the new one, also after a crash. `path` is no link.

    Mode, owner and group stay as they are; a new file has `mode`. `check` gets the complete new file before it takes
    its place; if it returns False, the old one stays, and so does the answer. Raises `OSError`.
    """
    new = beside(path, "nacos-proxy-new")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()  # left by a process that was killed
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            _copy_rights(path, descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        if check is not None and not check(new):
            return False
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
    _flush_directory(path.parent)
    return True


def _copy_rights(path: Path, descriptor: int, mode: int) -> None:
    try:
        before = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        os.fchmod(descriptor, mode)
        return
    ours = os.fstat(descriptor)
    if (ours.st_uid, ours.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except PermissionError as error:
            owner = f"user {before.st_uid} and group {before.st_gid}"
            raise CannotReplace(f"{path} belongs to {owner}; run as this user or root, or remove the file") from error
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))  # after fchown, which clears some bits


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

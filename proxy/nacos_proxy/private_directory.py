"""A directory that belongs to this process alone, and the files in it.

A user who can plant a link or a file in it could make this process write or read any file. So this module follows no
link and uses no file of a third user. If anybody can write to the directory, it makes a subdirectory of its own. It
trusts the owner of the directory, root, and users who can rename the directory.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("nacos_proxy.disk")

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: opening a pipe would wait for its other end


class UnsafeDirectory(OSError):
    """The message says what is wrong with the directory or a file in it, and what to do."""


class PrivateDirectory:
    """Creates the directory if it is missing, and holds it open until `close`. Raises `OSError`, `UnsafeDirectory`.

    The directory may be a link (systemd makes one for a dynamic user); the files in it may not. If anybody can write to
    the directory, as to an `emptyDir` of Kubernetes, `path` is a subdirectory of it.
    """

    def __init__(self, path: Path, *, ours: bool = False) -> None:
        """`ours`: anybody could have created the path, so require that it is ours and no link."""
        if ours and path.is_symlink():
            raise UnsafeDirectory(f"{path} is a link, and anybody could have made it: remove it")
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._descriptor = os.open(path, flags | os.O_NOFOLLOW if ours else flags)
        try:
            status = os.fstat(self._descriptor)
            if ours and status.st_uid != os.geteuid():
                raise UnsafeDirectory(_foreign(path, status))
            self._owner = self._check_directory(status)
        except OSError:
            self.close()
            raise

    def _check_directory(self, status: os.stat_result) -> int:
        """Denies access to others, or moves to a subdirectory. Returns the owner."""
        ours, writable = status.st_uid == os.geteuid(), status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if ours and writable:
            with suppress(OSError):  # on a read-only file system nobody can write anyway
                os.fchmod(self._descriptor, stat.S_IMODE(status.st_mode) & ~writable)
                log.warning("others could write to %s; they cannot any more", self.path)
        elif writable & stat.S_IWOTH:
            own = PrivateDirectory(self.path / "nacos-proxy", ours=True)
            os.close(self._descriptor)
            self.path, self._descriptor = own.path, own._descriptor
            log.info("anybody can write to %s, so the state is in %s", self.path.parent, self.path)
            return own._owner
        elif not ours and status.st_uid != 0:
            log.warning("%s belongs to user %d, and this process is user %d", self.path, status.st_uid, os.geteuid())
        return status.st_uid

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file in the directory, created with mode 0600. Raises `OSError`, `UnsafeDirectory`."""
        self.own(name)
        return os.open(name, flags | _FLAGS, 0o600, dir_fd=self._descriptor)

    def own(self, *names: str) -> None:
        """Make sure that these files, if they exist, belong to us and have mode 0600."""
        for name in names:
            with suppress(FileNotFoundError):
                self._own(name, os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))

    def _own(self, name: str, status: os.stat_result) -> None:
        path = self.path / name
        if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1:
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "one file under several names"
            raise UnsafeDirectory(f"{path} is {kind}, and writing to it could destroy another file: remove it")
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeDirectory(f"{path} is no file: remove it, or choose another directory")
        if status.st_uid not in (os.geteuid(), self._owner) and os.geteuid() != 0:
            raise UnsafeDirectory(_foreign(path, status))
        if status.st_mode & 0o077:
            descriptor = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=self._descriptor)
            try:
                with suppress(PermissionError):  # we are not its owner, or the mount gives all files one mode
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _foreign(path: Path, status: os.stat_result) -> str:
    us = os.geteuid()
    return f"{path} belongs to user {status.st_uid}, and this process is user {us}: chown it to {us}, or choose another"

"""A directory that is this process's alone, and the files in it. Not for: what is in them.

Whoever can plant a link, or a file of his own, where this process writes has it write, or read, what he likes. So no
link is followed, no file of a third user is used, and where anybody can write a directory of our own is made. Who owns
the directory is trusted, and so are root and whoever can rename it.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("nacos_proxy.disk")

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # to open a pipe would wait for its other end


class UnsafeHome(OSError):
    """A sentence: what is wrong with the directory or a file in it, and what to do."""


class Home:
    """Open until `close`. Made where it is missing; raises `UnsafeHome` and other `OSError`s.

    The directory may be a link (systemd makes one for a dynamic user); what is in it may not. `path` is a directory in
    the one that was named where anybody can write to that, as to an `emptyDir` of Kubernetes.
    """

    path: Path
    _descriptor: int
    _owner: int

    def __init__(self, path: Path, *, ours: bool = False) -> None:
        """`ours`: anybody can put something in its place, so it is neither a link nor somebody else's."""
        if ours and path.is_symlink():
            raise UnsafeHome(f"{path} is a link, and anybody could have made it: remove it")
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._descriptor = os.open(path, flags | os.O_NOFOLLOW if ours else flags)
        try:
            found = os.fstat(self._descriptor)
            if ours and found.st_uid != os.geteuid():
                raise UnsafeHome(_foreign(path, found))
            self._owner = self._check_directory(found)
        except OSError:
            self.close()
            raise

    def _check_directory(self, found: os.stat_result) -> int:
        """Its owner."""
        ours, writable = found.st_uid == os.geteuid(), found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if ours and writable:
            with suppress(OSError):  # where all can only be read, nobody can write
                os.fchmod(self._descriptor, stat.S_IMODE(found.st_mode) & ~writable)
                log.warning("others could write to %s; they cannot any more", self.path)
        elif writable & stat.S_IWOTH:
            own = Home(self.path / "nacos-proxy", ours=True)
            os.close(self._descriptor)
            self.path, self._descriptor = own.path, own._descriptor
            log.info("anybody can write to %s: the state is in %s", self.path.parent, self.path)
            return own._owner
        elif not ours and found.st_uid != 0:
            log.warning("%s belongs to user %d, and this process is user %d", self.path, found.st_uid, os.geteuid())
        return found.st_uid

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file in it, of mode 0600 where it is made. Raises `UnsafeHome` and other `OSError`s."""
        self.own(name)
        return os.open(name, flags | _FLAGS, 0o600, dir_fd=self._descriptor)

    def own(self, *names: str) -> None:
        """Files as far as they are there: ours alone, which their modes say from now on."""
        for name in names:
            with suppress(FileNotFoundError):
                self._own(name, os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))

    def _own(self, name: str, found: os.stat_result) -> None:
        path = self.path / name
        if stat.S_ISLNK(found.st_mode) or found.st_nlink > 1:
            kind = "a link" if stat.S_ISLNK(found.st_mode) else "one file under several names"
            raise UnsafeHome(f"{path} is {kind}, and to write to it could destroy another file: remove it")
        if not stat.S_ISREG(found.st_mode):
            raise UnsafeHome(f"{path} is no file: remove it, or choose another directory")
        if found.st_uid not in (os.geteuid(), self._owner) and os.geteuid() != 0:
            raise UnsafeHome(_foreign(path, found))
        if found.st_mode & 0o077:
            descriptor = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=self._descriptor)
            try:
                with suppress(PermissionError):  # its owner's to change, or the same for all files of a mount
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _foreign(path: Path, found: os.stat_result) -> str:
    us = os.geteuid()
    return f"{path} belongs to user {found.st_uid}, and this process is user {us}: chown it to {us}, or choose another"

"""One process alone holds a state directory. Not for: what is in it (`disk`)."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

from nacos_proxy.private_directory import Home

FILE = "lock"
OF_THE_DISK = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)


class StateLocked(Exception):
    """Another process holds the state directory."""


def lock(home: Home) -> int:
    """The descriptor that holds it until it is closed. Raises `StateLocked`, `OSError`."""
    try:
        descriptor = home.open(FILE, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.errno not in OF_THE_DISK or not (home.path / FILE).exists():
            raise
        descriptor = home.open(FILE, os.O_RDONLY)  # what cannot be written can still be locked
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        text = f"the state directory {home.path} is in use by another nacos-proxy (process {holder})"
        raise StateLocked(f"{text}; give this one its own --state-dir") from error
    with suppress(OSError):  # a full disk; the lock itself needs no room
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor

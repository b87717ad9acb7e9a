"""Runs the commands of users: words without a shell, with a time-out, and each in a process group of its own.

What they print passes through. At a time-out or `close`, the whole group ends, so no child is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

TIMEOUT = 30.0  # seconds
GRACE = 3.0  # seconds from SIGTERM to SIGKILL


def words(text: str) -> tuple[str, ...]:
    """Splits a command as a shell does. Raises `ValueError` if it is empty or a quote is open."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if not found:
        raise ValueError("the command is empty")
    return tuple(found)


class Runner:
    """Runs commands, from any thread. `timeout` in seconds."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def run(self, command: Sequence[str], *, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """Runs a command and returns '' if it succeeded, else why not. Variables in `env` are added to ours."""
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        with self._lock:
            if self._closed:
                return "it was not started"
            try:
                child = subprocess.Popen(
                    command, stdin=source, env={**os.environ, **(env or {})}, start_new_session=True
                )
            except (OSError, ValueError) as error:
                return f"cannot be run: {getattr(error, 'strerror', None) or error}"
            self._running.add(child)
        try:
            child.communicate(stdin, self._timeout)  # a command need not read it
        except subprocess.TimeoutExpired:
            return f"did not end within {self._timeout:g} s"
        finally:
            if child.poll() is None:
                _end(child)
            if child.stdin is not None:
                with contextlib.suppress(OSError):
                    child.stdin.close()
            with self._lock:
                self._running.discard(child)
        code = child.returncode
        return "" if code == 0 else f"exit code {code}" if code > 0 else f"ended by signal {-code}"

    def close(self) -> None:
        """Ends what runs, and starts nothing more."""
        with self._lock:
            self._closed = True
            running = tuple(self._running)
        for child in running:
            _send(child, signal.SIGTERM)
        for child in running:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    _send(child, signal.SIGTERM)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _send(child, signal.SIGKILL)  # also what the command left in its group
        child.wait()


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)

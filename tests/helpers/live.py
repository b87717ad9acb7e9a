"""Real servers as child processes on free ports of 127.0.0.1, with their own data.

Environment:
    NACOS_PROXY_TEST_RNACOS           path of the rnacos binary; empty: none; unset: PATH, then ~/.cargo/bin
    NACOS_PROXY_TEST_REQUIRE_RNACOS   1: a missing binary is an error, not a skip
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from nacos_proxy.runtime import SystemClock
from nacos_proxy.wire.nacos.grpc.payload import GRPC_OFFSET

# Limits for a program that hangs. A start takes a second or two, and much longer on a busy machine.
START_SECONDS = 60.0
STOP_SECONDS = 60.0
LISTENING = re.compile(r"listening on ([^\s\"]+)")

P = TypeVar("P", bound="Process")


def free_port(*, and_offset: int = 0) -> int:
    """A free TCP port of 127.0.0.1; with an offset, port + offset is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + and_offset if and_offset else 0))
            except (OSError, OverflowError):
                continue
            return port


class Process:
    """A child process whose output is read continuously and which ends with its `with`."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.command = list(command)
        self.env = dict(os.environ if env is None else env)
        self.cwd = cwd
        self._popen: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._said = threading.Condition()

    @property
    def log(self) -> str:
        """Everything that it has printed, over all starts."""
        with self._said:
            return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._alive().pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"{self.command[0]} runs already")
        self._popen = subprocess.Popen(
            self.command,
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        stdout = self._popen.stdout
        assert stdout is not None
        self._reader = threading.Thread(target=self._read, args=(stdout,), daemon=True)
        self._reader.start()

    def wait_for(self, pattern: re.Pattern[str], *, since: int = 0, seconds: float = START_SECONDS) -> re.Match[str]:
        """The first match in the lines after the first `since` ones; raises if the process ends before."""
        with self._said:
            self._said.wait_for(lambda: self._find(pattern, since) or self._silent(), seconds)
            found = self._find(pattern, since)
        if found is None:
            self.kill()
            raise RuntimeError(f"{self.command} never said {pattern.pattern!r}; it said:\n{self.log}")
        return found

    def signal(self, number: int) -> None:
        self._alive().send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Waits for its end; returns the exit code. The log is complete by then."""
        code = self._alive().wait(seconds)
        reader = self._reader  # _read sets it to None at the end
        if reader is not None:
            reader.join(seconds)
        return code

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """Sends SIGTERM and returns the exit code. Kills a process that does not end in time, and raises."""
        if self.running:
            self.signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.command} did not end on SIGTERM in {seconds} s; it said:\n{self.log}") from None

    def kill(self) -> None:
        """Sends SIGKILL; has no effect on a process that has ended."""
        if self._popen is not None:
            self._popen.kill()
            self.wait()

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self.running:
            self.terminate()

    def __enter__(self: P) -> P:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _alive(self) -> subprocess.Popen[str]:
        if self._popen is None:
            raise RuntimeError(f"{self.command[0]} was never started")
        return self._popen

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                with self._said:
                    self._lines.append(line)
                    self._said.notify_all()
        with self._said:
            self._reader = None
            self._said.notify_all()

    def _silent(self) -> bool:
        return self._reader is None

    def _find(self, pattern: re.Pattern[str], since: int) -> re.Match[str] | None:
        return next((found for line in self._lines[since:] if (found := pattern.search(line))), None)


class ProxyProcess(Process):
    """The proxy as its users run it: `python -m nacos_proxy serve --port 0 …`; ready when it prints where it listens.

    A second `start()` uses the same port and state as the first, as a restart by systemd does.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
        command: Sequence[str] = (sys.executable, "-m", "nacos_proxy", "serve"),
    ) -> None:
        self._own_state = None if state_dir else tempfile.TemporaryDirectory(prefix="nacos-proxy-state-")
        self.state_dir = state_dir or Path(self._own_state.name if self._own_state else "")
        self.arguments = arguments
        self.address = ""
        self.port = 0
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
        super().__init__(command, env=clean | {"NACOS_PROXY_STATE_DIR": str(self.state_dir)} | dict(env or {}))
        self._base = list(command)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a trailing slash."""
        return self.address

    def start(self) -> None:
        port = () if "--port" in self.arguments else ("--port", str(self.port))
        self.command = [*self._base, *port, *self.arguments]
        said_before = len(self._lines)
        super().start()
        self.address = self.wait_for(LISTENING, since=said_before)[1].rstrip("/")
        if (number := re.search(r":(\d+)$", self.address)) is not None:
            self.port = int(number[1])

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._own_state is not None:
                self._own_state.cleanup()


class RNacos(Process):
    """A real r-nacos. A second `start()` uses the same ports and data, as after a crash."""

    def __init__(self, binary: str, *, settings: Mapping[str, str] | None = None) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="r-nacos-")
        self._settings = dict(settings or {})
        self._clock = SystemClock()
        self.port = 0
        super().__init__([binary], cwd=Path(self._data.name))

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`; the API is below `/nacos`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def _data_dir(self) -> Path:
        return Path(self._data.name) / "data"

    @property
    def grpc_port(self) -> int:
        return self.port + GRPC_OFFSET

    def start(self) -> None:
        """Starts it and waits until it is ready; raises with its output.

        Without data it sometimes panics at its start on a busy machine (0.8.8, `raftapply.rs`), then serves all the
        same but never keeps any configuration. In that case, and if another program took its port, it is started again.
        """
        chosen, fresh = self.port, not self._data_dir.exists()
        for left in reversed(range(20 if fresh else 1)):
            self.port = chosen or free_port(and_offset=GRPC_OFFSET)
            self._configure()
            said_before = len(self._lines)
            super().start()
            if self._until(self._ready, START_SECONDS) and (not fresh or self._is_whole(said_before)):
                return
            self.kill()
            if not left:
                raise RuntimeError(f"r-nacos did not become ready on port {self.port}; it said:\n{self.log}")
            self.forget()

    def forget(self) -> None:
        """Deletes its data; only while it does not run."""
        shutil.rmtree(self._data_dir, ignore_errors=True)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._data.cleanup()

    def _configure(self) -> None:
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("RNACOS_")}
        self.env = {
            **foreign,
            "RNACOS_SDK_HOST": "127.0.0.1",
            "RNACOS_HTTP_PORT": str(self.port),
            "RNACOS_GRPC_PORT": str(self.grpc_port),
            "RNACOS_HTTP_CONSOLE_PORT": "0",  # 0: no console
            "RNACOS_DATA_DIR": str(self._data_dir),
            "RUST_LOG": "warn",
            **self._settings,
        }

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = self._clock.now() + seconds
        while self._clock.now() < end:
            if condition():
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._alive().wait(0.02)
                return False
        return False

    def _is_whole(self, said_before: int) -> bool:
        def panicked() -> bool:
            return any("panicked" in line for line in self._lines[said_before:])

        return self._until(lambda: panicked() or self._keeps(), START_SECONDS) and not panicked()

    def _keeps(self) -> bool:
        query = "dataId=started&group=tests"
        return self._ask(f"v1/cs/configs?{query}&content=1", "POST") and self._ask(f"v1/cs/configs?{query}")

    def _ready(self) -> bool:
        return self._ask("v1/console/health/readiness")

    def _ask(self, path: str, method: str = "GET") -> bool:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.url}/nacos/{path}", method=method), timeout=2
            ) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as answer:
            answer.close()
            return False
        except OSError:
            return False


def rnacos_binary(environ: Mapping[str, str] = os.environ) -> str | None:
    """The path of r-nacos, or None. Raises if the environment names a program that cannot be run."""
    named = environ.get("NACOS_PROXY_TEST_RNACOS")
    if named:
        if found := shutil.which(named):
            return found
        raise RuntimeError(f"NACOS_PROXY_TEST_RNACOS names {named}, which cannot be run")
    if named == "":
        return None
    return shutil.which("rnacos") or shutil.which(str(Path.home() / ".cargo" / "bin" / "rnacos"))


def rnacos_required(environ: Mapping[str, str] = os.environ) -> bool:
    return environ.get("NACOS_PROXY_TEST_REQUIRE_RNACOS") == "1"

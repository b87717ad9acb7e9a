"""The contenders: how each one is started and stopped, and when it is ready. One worker each, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.load import find_program
from loadtest.wire import at_once

LIST = "/nacos/v1/ns/instance/list?serviceName="
READY_WITHIN = 30.0


class Missing(Exception):
    """A program that is not installed. The report names it and leaves it out."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def local(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def free_pair(step: int = 1000) -> int:
    """A free port such that port + `step` is free as well: Nacos speaks gRPC there."""
    for _ in range(100):
        port = free_port()
        if port + step >= 65535:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + step))
            return port
    raise RuntimeError("no pair of free ports")


@dataclass(slots=True)
class Contender:
    """A server: its base URL, how it is started, and its process while it runs."""

    name: str
    url: str
    command: Sequence[str]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)
    probe: str = "/"
    environment: Mapping[str, str] = field(default_factory=lambda: {}, repr=False)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process

    def spawn(self) -> None:
        """Starts its process, in its folder, and does not wait for it."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                cwd=self.folder.name,
            )

    def start(self) -> Contender:
        """Starts it and waits until it answers. Raises `RuntimeError` if it does not."""
        self.spawn()
        deadline = time.perf_counter() + READY_WITHIN
        while not answers(self.url + self.probe):
            if self.process.poll() is not None or time.perf_counter() > deadline:
                text = self.log[-2000:]
                self.stop()
                raise RuntimeError(f"{self.name} did not start: {text}")
            pause(0.05)
        return self

    def end(self) -> None:
        """Ends its process; it can be started again, on the same port and with the same files."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """Ends its process as a crash would."""
        process, self._process = self.process, None
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Ends its process and removes its files."""
        self.end()
        self.folder.cleanup()

    @property
    def _log(self) -> Path:
        return Path(self.folder.name) / "log"

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")


def pause(seconds: float) -> None:
    """Waits between two checks of a program that does not report when it is ready."""
    threading.Event().wait(seconds)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, urllib.error.URLError):
        return False


def request(method: str, url: str) -> bytes:
    """One call of the set-up. The load itself comes from wrk or from asyncio."""
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as reply:
        return bytes(reply.read())


def register(url: str, service: str, number: int) -> None:
    """Registers `number` persistent instances, which need no beats while the load runs."""
    register_all(url, [service], number)


def register_all(url: str, services: Sequence[str], number: int) -> None:
    """The same for many services at once."""
    queries = (
        f"serviceName={service}&ip=10.1.{n // 250}.{n % 250 + 1}&port=8080&ephemeral=false"
        for service in services
        for n in range(number)
    )
    asyncio.run(at_once(url, [("POST", f"/nacos/v1/ns/instance?{query}") for query in queries]))


def rnacos() -> Contender:
    """r-nacos, the Nacos-compatible server in Rust."""
    program = find_program("rnacos")
    if program is None:
        raise Missing("r-nacos is not installed (cargo install rnacos --version 0.8.8 --locked)")
    port = free_pair()
    folder = tempfile.TemporaryDirectory()
    settings = {
        "RNACOS_HTTP_API_HOST": "127.0.0.1",
        "RNACOS_HTTP_HOST": "127.0.0.1",
        "RNACOS_HTTP_PORT": str(port),
        "RNACOS_GRPC_PORT": str(port + 1000),
        "RNACOS_HTTP_CONSOLE_PORT": str(free_port()),
        "RNACOS_DATA_DIR": folder.name,
        "RNACOS_CONFIG_DB_DIR": folder.name,
        "RUST_LOG": "error",
    }
    server = Contender("r-nacos", local(port), [program], folder, LIST + "x", settings).start()
    if "panicked" in server.log:  # on a busy machine it may panic at its start; it serves then, but keeps nothing
        server.stop()
        return rnacos()
    return server


def proxy(upstream: str = "embedded", *options: str, name: str = "nacos-proxy") -> Contender:
    """This proxy, one process. Its state is in its folder."""
    port = free_pair()
    folder = tempfile.TemporaryDirectory()
    command = [sys.executable, "-m", "nacos_proxy", "serve", "--port", str(port), "--upstream", upstream, "--state-dir"]
    source = str(Path(__file__).resolve().parent.parent / "proxy")
    path = {"PYTHONPATH": source}
    return Contender(name, local(port), [*command, folder.name, *options], folder, "/healthz", path).start()


@contextlib.contextmanager
def running(*contenders: Contender) -> Generator[None]:
    """Stops all of them at the end, whatever happens."""
    try:
        yield
    finally:
        for contender in contenders:
            contender.stop()

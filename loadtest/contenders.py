"""The contenders: how each one is started and stopped, and when it is ready. One worker each, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
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
    """A running server: its base URL and its process."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


def _start(name: str, port: int, command: Sequence[str], folder: tempfile.TemporaryDirectory[str], probe: str,
           environment: Mapping[str, str] | None = None) -> Contender:  # fmt: skip
    log = Path(folder.name) / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}, cwd=folder.name
        )
    contender = Contender(name, f"http://127.0.0.1:{port}", process, folder)
    deadline = time.perf_counter() + READY_WITHIN
    while not answers(contender.url + probe):
        if process.poll() is not None or time.perf_counter() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            contender.stop()
            raise RuntimeError(f"{name} did not start: {text}")
        _pause(0.05)
    return contender


def _pause(seconds: float) -> None:
    """Waits between two checks of a program that does not report when it is ready."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-c", "import select; select.select([], [], [], 9)"], timeout=seconds, check=False
        )


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
    return _start("r-nacos", port, [program], folder, LIST + "x", settings)


def proxy(upstream: str = "embedded", *options: str, name: str = "nacos-proxy") -> Contender:
    """This proxy, one process."""
    port = free_pair()
    folder = tempfile.TemporaryDirectory()
    command = [sys.executable, "-m", "nacos_proxy", "serve", "--port", str(port), "--upstream", upstream, "--state-dir"]
    command += [folder.name, *options]
    source = str(Path(__file__).resolve().parent.parent / "proxy")
    return _start(name, port, command, folder, "/healthz", {"PYTHONPATH": source})


def nginx(upstream: str) -> Contender:
    """nginx with proxy_cache in front of the upstream."""
    cache = "proxy_cache_path {folder}/cache keys_zone=nacos:64m levels=1:2 inactive=10m;"
    server = """
        location / {{
            proxy_pass %s;
            proxy_cache nacos;
            proxy_cache_valid 200 10s;
            proxy_cache_use_stale error timeout updating;
            proxy_cache_lock on;
        }}
    """
    return _nginx("nginx proxy_cache", server % upstream, "/", head=cache)


def nchan() -> Contender:
    """nginx with nchan: /pub?id=x publishes, /sub?id=x is an event stream."""
    server = """
        location /pub {{ nchan_publisher; nchan_channel_id $arg_id; nchan_message_buffer_length 10; }}
        location /sub {{ nchan_subscriber eventsource; nchan_channel_id $arg_id; }}
        location / {{ return 200; }}
    """
    return _nginx("nchan", server, "/", module="ngx_nchan_module.so")


def _nginx(name: str, server: str, probe: str, *, head: str = "", module: str = "") -> Contender:
    program = find_program("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").is_file() else None)
    if program is None:
        raise Missing(f"{name} is not installed (Debian: nginx)")
    library = Path("/usr/lib/nginx/modules") / module
    if module and not library.is_file():
        raise Missing(f"{name} is not installed (Debian: libnginx-mod-nchan)")
    port, folder = free_port(), tempfile.TemporaryDirectory()
    Path(folder.name).chmod(0o755)
    text = f"""
        daemon off; master_process on; worker_processes 1; worker_rlimit_nofile 65536; user root;
        pid {{folder}}/nginx.pid; error_log {{folder}}/error.log error;
        {f"load_module {library};" if module else ""}
        events {{{{ worker_connections 60000; }}}}
        http {{{{
            access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
            client_body_temp_path {{folder}}/body; proxy_temp_path {{folder}}/proxy; fastcgi_temp_path {{folder}}/fcgi;
            uwsgi_temp_path {{folder}}/uwsgi; scgi_temp_path {{folder}}/scgi;
            {head}
            server {{{{ listen 127.0.0.1:{port} backlog=4096; {server} }}}}
        }}}}
    """
    config = Path(folder.name) / "nginx.conf"
    config.write_text(textwrap.dedent(text.format(folder=folder.name)))
    return _start(name, port, [program, "-c", str(config), "-p", folder.name], folder, probe)


RAW = """
BODY = open("body", "rb").read()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
"""


def raw_asgi(body: bytes) -> Contender:
    """The least work for uvicorn: an ASGI app that always sends the same prepared body."""
    port, folder = free_port(), tempfile.TemporaryDirectory()
    Path(folder.name, "raw.py").write_text(RAW)
    Path(folder.name, "body").write_bytes(body)
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "raw:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "error",
    ]
    return _start(
        "raw ASGI", port, [*command, "--http", "httptools", "--loop", "uvloop", "--lifespan", "off"], folder, "/"
    )


@contextlib.contextmanager
def running(*contenders: Contender) -> Iterator[None]:
    """Stops all of them at the end, whatever happens."""
    try:
        yield
    finally:
        for contender in contenders:
            contender.stop()

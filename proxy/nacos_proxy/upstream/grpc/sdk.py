"""Makes clients of the official Rust SDK's Python binding, and turns their failures into text.

Two properties of the binding (0.8.0, observed and read in its source) shape this module:

- The constructor of a client blocks and holds the interpreter's lock: usually for 0.1 s, but for ever if a port accepts
  connections and sends nothing. So it gets only servers that have just answered a request.
- It writes log files below HOME, and panics if it cannot. So HOME is a writable directory meanwhile.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import importlib.util
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from nacos_proxy.private_directory import PrivateDirectory

log = logging.getLogger("nacos_proxy.push")

MODULE = "nacos_sdk_rust_binding_py"
OFFSET = 1000  # the SDK is given an HTTP port, and connects to the gRPC port that is this much higher


@dataclass(frozen=True, slots=True)
class PushPolicy:
    """Times in seconds. `servers` are the upstream's URLs; their gRPC ports are `offset` higher than the URLs' ports.

    `port`, if not 0, is the gRPC port of the first server, and sets `offset` for all. `probe` is the interval between
    probes, `answer` the time limit of each; push counts as alive once probes have been answered for `settle`. `home` is
    the directory for the SDK's files, if it is writable.
    """

    servers: tuple[str, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    home: str = ""
    offset: int = OFFSET
    port: int = 0
    probe: float = 2.0
    answer: float = 3.0
    settle: float = 10.0
    max_services: int = 20_000
    namespaces: int = 16


Listener = Callable[[Any], None]


class Client(Protocol):
    """The methods of the SDK's client that push uses."""

    def subscribe(
        self, service: str, group: str, clusters: list[str] | None, listener: Listener, /
    ) -> Awaitable[Any]: ...

    def get_all_instances(
        self, service: str, group: str, clusters: list[str] | None, subscribe: bool, /
    ) -> Awaitable[Any]: ...


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec(MODULE) is not None


async def connect(policy: PushPolicy, namespace: str) -> Client:
    """Makes a client for one namespace. Raises `OSError` if no gRPC port answers, `RuntimeError` if the SDK fails."""
    if policy.port and policy.servers:
        policy = replace(policy, offset=policy.port - (urlsplit(policy.servers[0]).port or 8848))
    answering = await asyncio.gather(*(_port_answers(url, policy) for url in policy.servers))
    urls = [url for url, answers in zip(policy.servers, answering, strict=True) if answers]
    if not urls:
        raise OSError("no gRPC port answers")
    addresses = ",".join(_address(url, policy.offset) for url in urls)
    return await asyncio.get_running_loop().run_in_executor(None, _construct, policy, addresses, namespace)


async def _port_answers(url: str, policy: PushPolicy) -> bool:
    """Whether the gRPC port answers in time. If it only accepted connections, the SDK would freeze the process."""
    parts = urlsplit(url)
    try:
        return await asyncio.wait_for(
            _await_frame(parts.hostname or "", (parts.port or 8848) + policy.offset), policy.answer
        )
    except (OSError, OverflowError, UnicodeError, EOFError, asyncio.TimeoutError):
        return False


async def _await_frame(host: str, port: int) -> bool:
    """Sends `CHECK`. Any frame on its stream is an answer: headers, data, even a refusal."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(CHECK)
        while True:
            head = await reader.readexactly(9)  # length, kind, flags, stream (RFC 9113 4.1)
            if head[5:] == b"\0\0\0\1":
                return True
            await reader.readexactly(int.from_bytes(head[:3], "big"))
    finally:
        writer.transport.abort()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protobuf message. `value` must be shorter than 128 bytes."""
    return bytes((number << 3 | 2, len(value))) + value


def _header(name: str, value: str) -> bytes:
    """A literal header field without indexing (RFC 7541 6.2.2)."""
    return b"".join((b"\0", *(bytes((len(text),)) + text.encode() for text in (name, value))))


_HEADERS = b"".join(
    _header(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/Request/request"),
        (":authority", "nacos"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
)
_MESSAGE = _field(2, _field(3, b"ServerCheckRequest")) + _field(3, _field(2, b"{}"))

# The first request of a Nacos client, in HTTP/2 with prior knowledge: settings, headers, and data that end the stream.
CHECK = b"".join(
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        _frame(4, 0, 0, b""),
        _frame(1, 4, 1, _HEADERS),
        _frame(0, 1, 1, b"\0" + len(_MESSAGE).to_bytes(4, "big") + _MESSAGE),
    )
)


_constructing = threading.Lock()
_constructed = threading.Event()


def _construct(policy: PushPolicy, addresses: str, namespace: str) -> Client:
    """Blocks. The SDK reads HOME and RUST_LOG only when it makes its first client."""
    with _constructing:
        before = os.environ.get("HOME")
        moved = bool(policy.home) and not _constructed.is_set()
        os.environ.setdefault("RUST_LOG", "off")
        if moved:
            os.environ["HOME"] = _choose_home(policy.home)
        try:
            sdk = importlib.import_module(MODULE)
            options = sdk.ClientOptions(
                addresses,
                namespace,
                app_name="nacos-proxy",
                username=policy.username or None,
                password=policy.password or None,
                naming_push_empty_protection=False,
            )
            client = sdk.AsyncNacosNamingClient(options)
        except BaseException as error:  # a panic in Rust is not an Exception
            raise RuntimeError(f"the SDK cannot be used: {error}") from error
        finally:
            if moved and before is None:
                del os.environ["HOME"]
            elif moved and before is not None:
                os.environ["HOME"] = before
        _constructed.set()
        return client


def _choose_home(wanted: str) -> str:
    """The directory for the SDK's files: the wanted one, or a temporary one if that is not writable."""
    try:
        PrivateDirectory(Path(wanted)).close()
        tempfile.TemporaryFile(dir=wanted).close()
    except OSError as error:
        log.warning("%s cannot be written (%s): push uses %s", wanted, error.strerror or error, _temporary_home())
        return _temporary_home()
    return wanted


@cache
def _temporary_home() -> str:
    """Deleted at the end of the process, because the SDK's threads use it until then."""
    directory = tempfile.mkdtemp(prefix="nacos-proxy-push-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _address(url: str, offset: int) -> str:
    """The HTTP address from which the SDK computes the wanted gRPC port, since it does not accept that port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{(parts.port or 8848) + offset - OFFSET}"


async def failure(call: Callable[[], Awaitable[Any]]) -> str:
    """Why a call of the SDK failed, '' if it did not. A panic in Rust is a `BaseException`, but no `Exception`."""
    try:
        await call()
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return str(error) or type(error).__name__
    return ""

"""The client of the official Rust SDK's Python binding: how to make one, and how its calls fail.

What the binding does was seen with 0.8.0, and read in its source:

- Its constructor blocks and holds the interpreter's lock, usually for 0.1 s, but for ever if a port accepts connections
  and sends nothing. So it only gets servers that have answered a call just before.
- It writes log files below HOME, and panics if it cannot. So it gets a writable directory.
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
OFFSET = 1000  # from the HTTP port that the SDK gets to the gRPC port that it connects to


@dataclass(frozen=True, slots=True)
class PushPolicy:
    """Times in seconds. `servers` are the upstream's URLs; the gRPC ports are `offset` above theirs.

    `port`, if given, is the gRPC port of the first server, and sets `offset` for all. A probe is sent every `probe` and
    must be answered within `answer`; push counts as alive when probes have been answered for `settle`. `home` is the
    directory for the SDK's files, if it is writable.
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
    """The part of the SDK's client that is used."""

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
    """A client of the SDK for one namespace. Raises `OSError` if no gRPC port answers, else `RuntimeError`."""
    if policy.port and policy.servers:
        policy = replace(policy, offset=policy.port - (urlsplit(policy.servers[0]).port or 8848))
    answering = await asyncio.gather(*(_answers(url, policy) for url in policy.servers))
    urls = [url for url, answers in zip(policy.servers, answering, strict=True) if answers]
    if not urls:
        raise OSError("no gRPC port answers")
    addresses = ",".join(_address(url, policy.offset) for url in urls)
    return await asyncio.get_running_loop().run_in_executor(None, _construct, policy, addresses, namespace)


async def _answers(url: str, policy: PushPolicy) -> bool:
    """Whether a call is answered in time. A port that only accepts connections would freeze the whole process."""
    parts = urlsplit(url)
    try:
        return await asyncio.wait_for(_check(parts.hostname or "", (parts.port or 8848) + policy.offset), policy.answer)
    except (OSError, OverflowError, UnicodeError, EOFError, asyncio.TimeoutError):
        return False


async def _check(host: str, port: int) -> bool:
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
    """A field of a protobuf message, shorter than 128 bytes."""
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

# The first request of a Nacos client, as HTTP/2 with prior knowledge: settings, headers, data that end the stream.
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
    """Blocks. The SDK reads HOME and RUST_LOG only when its first client is made."""
    with _constructing:
        before = os.environ.get("HOME")
        moved = bool(policy.home) and not _constructed.is_set()
        os.environ.setdefault("RUST_LOG", "off")
        if moved:
            os.environ["HOME"] = _home(policy.home)
        try:
            client = _client(policy, addresses, namespace)
        except BaseException as error:  # a panic in Rust is not an Exception
            raise RuntimeError(f"the SDK cannot be used: {error}") from error
        finally:
            if moved and before is None:
                del os.environ["HOME"]
            elif moved and before is not None:
                os.environ["HOME"] = before
        _constructed.set()
        return client


def _home(wanted: str) -> str:
    """The directory for the SDK's files: a temporary one if the wanted one is not writable."""
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


def _client(policy: PushPolicy, addresses: str, namespace: str) -> Client:
    sdk = importlib.import_module(MODULE)
    options = sdk.ClientOptions(
        addresses,
        namespace,
        app_name="nacos-proxy",
        username=policy.username or None,
        password=policy.password or None,
        naming_push_empty_protection=False,
    )
    return sdk.AsyncNacosNamingClient(options)


def _address(url: str, offset: int) -> str:
    """The address from which the SDK derives the gRPC port, which it does not take directly."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{(parts.port or 8848) + offset - OFFSET}"


async def failure(call: Callable[[], Awaitable[Any]]) -> str:
    """Why a call of the SDK failed, '' if it did not.

    The SDK raises any type of exception, and a panic in Rust is not an `Exception`.
    """
    try:
        await call()
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return str(error) or type(error).__name__
    return ""

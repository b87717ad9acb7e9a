"""How a client of the SDK is made, how that fails, and that the process stays unchanged."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nacos_proxy.upstream.grpc.sdk import PushPolicy, available, connect, failure
from tests.helpers.live import RNacos, free_port

needs_sdk = pytest.mark.skipif(not available(), reason="without the extra push")


async def test_connect_raises_for_a_closed_port() -> None:
    with pytest.raises(OSError, match="no gRPC port answers"):
        await connect(PushPolicy((f"http://127.0.0.1:{free_port()}",), offset=0), "public")


@pytest.mark.parametrize("url", ["http://127.0.0.1:65000", "http://" + "a" * 70 + ".:80"])
async def test_connect_raises_for_an_invalid_address(url: str) -> None:
    with pytest.raises(OSError):
        await connect(PushPolicy((url,)), "public")


async def test_connect_applies_the_offset_of_the_first_port_to_all_servers() -> None:
    asked: list[int] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer.get_extra_info("sockname")[1])
        writer.close()

    listening = [await asyncio.start_server(hang_up, "127.0.0.1", 0) for _ in range(2)]
    ports = [server.sockets[0].getsockname()[1] for server in listening]
    servers = tuple(f"http://127.0.0.1:{port - 7}" for port in ports)
    with pytest.raises(OSError, match="no gRPC port answers"):
        await connect(PushPolicy(servers, port=ports[0]), "public")
    for server in listening:
        server.close()
    assert sorted(asked) == sorted(ports)


async def test_connect_raises_without_a_server() -> None:
    with pytest.raises(OSError):
        await connect(PushPolicy(()), "public")


SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", SETTINGS, SETTINGS * 2 + b"\0\0"])
@pytest.mark.parametrize("hangs_up", [True, False])
async def test_connect_keeps_a_port_that_answers_no_call_from_the_sdk(said: bytes, hangs_up: bool) -> None:
    """The SDK's constructor would block for ever, and with it the whole process."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        if not hangs_up:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(OSError, match="no gRPC port answers"):
            await connect(PushPolicy((f"http://127.0.0.1:{port}",), offset=0, answer=0.2), "public")
    finally:
        server.close()


@needs_sdk
async def test_connect_uses_the_grpc_port_and_restores_home(rnacos: RNacos, tmp_path: Path) -> None:
    before = dict(os.environ)
    servers = (f"http://127.0.0.1:{free_port() - 1007}", f"http://127.0.0.1:{rnacos.port - 7}")
    policy = PushPolicy(servers, home=str(tmp_path / "push"), offset=1007)
    client = await connect(policy, "public")
    assert await failure(lambda: client.get_all_instances("sdk-test", "DEFAULT_GROUP", None, False)) == ""
    assert {**os.environ, "RUST_LOG": ""} == {**before, "RUST_LOG": ""}


CONNECTING = """
import asyncio, os, sys
from nacos_proxy.upstream.grpc.sdk import PushPolicy, connect, failure

async def main(url, home):
    client = await connect(PushPolicy((url,), home=home), "public")
    print(await failure(lambda: client.get_all_instances("sdk-test", "DEFAULT_GROUP", None, False)) or "answered")
    print(os.listdir(os.environ["TMPDIR"]))

asyncio.run(main(*sys.argv[1:]))
"""


@needs_sdk
@pytest.mark.parametrize("missing", [False, True])
def test_connect_gives_the_sdk_a_temporary_home_if_its_own_is_not_writable(
    rnacos: RNacos, tmp_path: Path, missing: bool
) -> None:
    home = Path("/proc/none") if missing else Path("/proc")  # not even root can create files there
    spare = tmp_path / "spare"
    spare.mkdir()
    command = [sys.executable, "-c", CONNECTING, f"http://127.0.0.1:{rnacos.port}", str(home)]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(spare)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count(f"{home} cannot be written")) == (0, 1), done.stderr
    said, made = done.stdout.splitlines()
    assert (said, made.count("nacos-proxy-push-")) == ("answered", 1)
    assert list(spare.iterdir()) == []


async def test_failure_gives_the_text_of_any_exception() -> None:
    class Panic(BaseException):
        pass

    async def raising(error: BaseException | None) -> None:
        if error is not None:
            raise error

    assert await failure(lambda: raising(None)) == ""
    assert await failure(lambda: raising(RuntimeError("denied"))) == "denied"
    assert await failure(lambda: raising(Panic())) == "Panic"
    with pytest.raises(asyncio.CancelledError):
        await failure(lambda: raising(asyncio.CancelledError()))

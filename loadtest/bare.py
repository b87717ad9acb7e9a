"""The least that one Python process can do: a protocol on uvloop that writes prepared bytes and parses nothing."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from loadtest.contenders import Contender, free_port, local

NAME = "bare uvloop protocol"
PROGRAM = """
import asyncio
import sys

import uvloop

ANSWER = open("answer", "rb").read()


class Bare(asyncio.Protocol):
    def connection_made(self, transport):
        self.write = transport.write

    def data_received(self, data):
        self.write(ANSWER)


async def main():
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


uvloop.run(main())
"""


def protocol(answer: bytes) -> Contender:
    """Writes `answer`, a whole HTTP response, for each piece of bytes that it receives."""
    port, folder = free_port(), tempfile.TemporaryDirectory()
    Path(folder.name, "bare.py").write_text(PROGRAM)
    Path(folder.name, "answer").write_bytes(answer)
    return Contender(NAME, local(port), [sys.executable, "bare.py", str(port)], folder).start()

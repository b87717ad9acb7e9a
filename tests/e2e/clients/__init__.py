"""Nacos SDKs of other languages as processes: built once into a directory, driven by lines of JSON.

    to its stdin      {"id": 1, "do": "register", "client": "a", "service": "s", "ip": "10.0.0.1", "port": 80}
    from its stdout   {"id": 1, "ok": true}     or     {"id": 1, "error": "what its SDK said"}
                      {"event": "naming", "name": "what `subscribe` named", "hosts": [...]}
                      {"event": "config", "name": "what `listen` named", "content": "..."}

`connect` creates a client of that name; one process holds many. A driver answers with an error if its SDK lacks the
call.

Environment:
    NACOS_PROXY_TEST_REQUIRE_SDKS   1, or names with commas: a missing tool or a failed build is an error, not a skip
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nacos_proxy.runtime import spawn, stop

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds for an answer or an event; the machine may be busy, and SDKs try three times
BUILD = 900.0
LARGEST = 1 << 22


class SdkError(Exception):
    """An error that an SDK raised."""


class NotBuilt(Exception):
    """A tool or a package registry is not available."""


def run(directory: Path, *command: str) -> str:
    if shutil.which(command[0]) is None:
        raise NotBuilt(f"no {command[0]} here")
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=BUILD)
    except subprocess.TimeoutExpired:
        raise NotBuilt(f"{' '.join(command)} did not end") from None
    if done.returncode:
        raise NotBuilt(f"{' '.join(command)} failed: {(done.stderr + done.stdout)[-2000:]}")
    return done.stdout


def build_java(place: Path) -> Sequence[str]:
    """Maven only resolves the class path; it tries offline first, because online checks are slow."""
    maven = ("mvn", "-q", "-B", "dependency:build-classpath", "-Dmdep.outputFile=path")
    if shutil.which("javac") is None:
        raise NotBuilt("no javac here")
    try:
        run(place, *maven, "-o")
    except NotBuilt:
        run(place, *maven)
    path = (place / "path").read_text().strip()
    run(place, "javac", "-nowarn", "-cp", path, "-d", ".", "Driver.java")
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", f"-Duser.home={place}")
    return ["java", *quick, "-cp", f"{place}:{path}", "Driver"]


def build_go(place: Path) -> Sequence[str]:
    run(place, "go", "build", "-o", "driver", ".")
    return [str(place / "driver")]


def build_node(place: Path) -> Sequence[str]:
    if shutil.which("node") is None:
        raise NotBuilt("no node here")
    run(place, "npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
    return ["node", "driver.js"]


BUILDS: Mapping[str, Callable[[Path], Sequence[str]]] = {"java": build_java, "go": build_go, "node": build_node}


def required(language: str, environ: Mapping[str, str] = os.environ) -> bool:
    named = environ.get("NACOS_PROXY_TEST_REQUIRE_SDKS", "")
    return named == "1" or language in named.split(",")


@dataclass
class Sdk:
    """A running driver. `heard[name]`: the events of a subscription, in order."""

    language: str
    process: asyncio.subprocess.Process
    heard: dict[str, asyncio.Queue[Any]] = field(default_factory=lambda: defaultdict(asyncio.Queue))
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)
    _reader: asyncio.Task[None] | None = None

    async def call(self, do: str, **asked: Any) -> Any:
        """Returns the result. Raises `SdkError`."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": number, "do": do, **asked}).encode() + b"\n")
        return await asyncio.wait_for(answer, PATIENCE)

    async def event(self, name: str) -> Any:
        return await asyncio.wait_for(self.heard[name].get(), PATIENCE)

    async def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), PATIENCE)
        except asyncio.TimeoutError:
            self.process.kill()
            await self.process.wait()
        await stop(self._reader)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for text in self.process.stdout:
            line = json.loads(text)
            if "event" in line:
                self.heard[line.get("name", line["event"])].put_nowait(line.get("hosts", line.get("content")))
                continue
            answer = self._answers.pop(line["id"])
            if answer.done():
                continue
            if "error" in line:
                answer.set_exception(SdkError(line["error"]))
            else:
                answer.set_result(line["ok"])


def build(language: str, directory: Path) -> Sequence[str]:
    """The command that runs the driver. Raises `NotBuilt`."""
    place = directory / language
    shutil.copytree(HERE / language, place)
    return BUILDS[language](place)


async def start(language: str, command: Sequence[str], directory: Path) -> Sdk:
    """Starts the driver; its log goes to a file in the directory."""
    with (directory / language / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=directory / language,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=LARGEST,
        )
    sdk = Sdk(language, process)
    sdk._reader = spawn(sdk._read(), name=f"{language} sdk")
    await sdk.event("ready")
    return sdk

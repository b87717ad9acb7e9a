"""Nacos SDKs of other languages as processes: built once into a directory, driven by lines of JSON.

    to its stdin      {"id": 1, "do": "register", "client": "a", "service": "s", "ip": "10.0.0.1", "port": 80}
    from its stdout   {"id": 1, "ok": true}     or     {"id": 1, "error": "what its SDK said"}
                      {"event": "naming", "name": "what `subscribe` named", "hosts": [...]}
                      {"event": "config", "name": "what `listen` named", "content": "..."}

`connect` creates a client of that name; one process holds many. A driver answers with an error if its SDK lacks the
call. `HTTP` are the SDKs that speak HTTP, `GRPC` those that speak gRPC.

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
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.runtime import SystemClock, spawn, stop

HERE = Path(__file__).parent
PORT = 8080  # of instances
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


def build_java(place: Path, client: str) -> Sequence[str]:
    """Maven only resolves the class path; it tries offline first, because online checks are slow."""
    maven = ("mvn", "-q", "-B", "dependency:build-classpath", "-Dmdep.outputFile=path", f"-Dnacos.client={client}")
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


def build_go(place: Path, version: str) -> Sequence[str]:
    """A major version of a Go module has its own import path."""
    source, sdk = (place / "main.go").read_text(), '"github.com/nacos-group/nacos-sdk-go/'
    (place / version / "main.go").write_text(source.replace(sdk, f"{sdk}v2/") if version == "v2" else source)
    run(place / version, "go", "build", "-o", "../driver", ".")
    return [str(place / "driver")]


def build_node(place: Path) -> Sequence[str]:
    if shutil.which("node") is None:
        raise NotBuilt("no node here")
    run(place, "npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
    return ["node", "driver.js"]


def build_python(place: Path, driver: str, *packages: str) -> Sequence[str]:
    python = str(place / "venv/bin/python")
    run(place, sys.executable, "-m", "venv", "venv")
    run(place, python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--prefer-binary", *packages)
    return [python, driver]


@dataclass(frozen=True)
class Driver:
    """The folder of its source, and a function that builds it in a copy of that folder."""

    source: str
    build: Callable[[Path], Sequence[str]]


HTTP: Mapping[str, Driver] = {
    "java": Driver("java", partial(build_java, client="1.4.8")),
    "go": Driver("go", partial(build_go, version="v1")),
    "node": Driver("node", build_node),
}
GRPC: Mapping[str, Driver] = {
    "java25": Driver("java", partial(build_java, client="2.5.1")),
    "java3": Driver("java", partial(build_java, client="3.0.3")),
    "go2": Driver("go", partial(build_go, version="v2")),
    "python3": Driver("python", lambda place: build_python(place, "python3.py", "nacos-sdk-python==3.2.0")),
    "rust": Driver("python", lambda place: build_python(place, "rust.py", "nacos-sdk-rust-binding-py==0.8.0")),
}
BUILDS = {**HTTP, **GRPC}


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
        try:
            return await asyncio.wait_for(answer, PATIENCE)
        except asyncio.TimeoutError:
            raise SdkError(f"{self.language} did not answer {do}") from None

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
    driver = BUILDS[language]
    shutil.copytree(HERE / driver.source, place, ignore=shutil.ignore_patterns("__pycache__"))
    return driver.build(place)


async def start(language: str, command: Sequence[str], directory: Path) -> Sdk:
    """Starts the driver; its log goes to a file in the directory."""
    with (directory / language / "log").open("ab") as log:
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


@dataclass
class Sdks:
    """Drivers that run, and why the others do not."""

    directory: Path
    running: dict[str, Sdk] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    _commands: dict[str, Sequence[str]] = field(default_factory=dict)
    _others: list[Sdk] = field(default_factory=list)

    async def add(self, language: str) -> None:
        try:
            self._commands[language] = await asyncio.to_thread(build, language, self.directory)
            self.running[language] = await start(language, self._commands[language], self.directory)
        except NotBuilt as why:
            self.missing[language] = str(why)

    def get(self, language: str) -> Sdk:
        if language in self.missing:
            if required(language):
                pytest.fail(f"the SDK for {language} is required: {self.missing[language]}", pytrace=False)
            pytest.skip(f"no SDK for {language}: {self.missing[language]}")
        return self.running[language]

    async def another(self, language: str) -> Sdk:
        """One more process of this SDK, for a test that kills it."""
        self.get(language)
        sdk = await start(language, self._commands[language], self.directory)
        self._others.append(sdk)
        return sdk

    async def close(self) -> None:
        for sdk in (*self.running.values(), *self._others):
            await sdk.close()


@dataclass
class Client:
    """One SDK at one proxy."""

    sdk: Sdk
    name: str
    proxy: str

    async def __call__(self, do: str, **asked: Any) -> Any:
        return await self.sdk.call(do, client=self.name, **asked)

    async def seen(self, do: str, expected: Any, view: Callable[[Any], Any], **asked: Any) -> None:
        """Calls until it returns `expected`: SDKs answer from their caches, which a push or their poll renews."""
        end = SystemClock().now() + PATIENCE
        while (found := view(await self(do, **asked))) != expected:
            assert SystemClock().now() < end, f"{do} shows {found}, not {expected}"
            await asyncio.sleep(0.05)

    async def told(self, name: str, expected: list[tuple[str, str]]) -> None:
        """Waits until the subscription gets this state, after any number of others."""
        found: Any = "nothing"
        try:
            while (found := addresses(await self.sdk.event(name))) != expected:
                pass
        except asyncio.TimeoutError:
            pytest.fail(f"{self.sdk.language} at {self.name} was last told {found}, not {expected}")


def addresses(hosts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((host["ip"], host["cluster"]) for host in hosts)


def of(ip: str, *names: str) -> Callable[[Any], Any]:
    """These fields of the host with that address."""
    return lambda hosts: [tuple(host[name] for name in names) for host in hosts if host["ip"] == ip]


async def by_another(proxy: str, method: str, service: str, ip: str, **more: str) -> None:
    """A write by another client of this proxy, by HTTP."""
    query = {"serviceName": service, "ip": ip, "port": str(PORT), **more}
    async with httpx.AsyncClient(base_url=proxy, trust_env=False, timeout=PATIENCE) as http:
        reply = await http.request(method, "/nacos/v1/ns/instance", params=query)
        assert (reply.status_code, reply.text) == (200, "ok")

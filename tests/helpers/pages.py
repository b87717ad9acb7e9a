"""The code blocks of the documentation, and a runner for pages whose blocks run in order, as a reader types them.

A `text` block is the output of the block before it; `…` in it stands for anything in the line, and alone in a line for
any lines. Comments, each alone in the line above a block or between two, tell the test what a reader sees by the text:

    <!-- not run: REASON -->   the test leaves the block out
    <!-- terminal: NAME -->    the command of the block runs on and on, in a terminal of this name
    <!-- says: NAME -->        the output below is what that terminal prints from now on
    <!-- soon -->              the block is repeated until its output is as shown
    <!-- ctrl-c: NAME -->      the terminal's command is interrupted, and ends
    <!-- given: COMMAND -->    what the text takes for granted: a proxy that runs
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from nacos_proxy.runtime import SystemClock
from tests.helpers.live import GRPC_OFFSET, LISTENING, Process, free_port

PATIENCE = 60.0
PLACES = {"/var/lib/nacos-proxy": "state", "/var/backups": "backups"}
_FENCE = re.compile(r"^```(\w*)(?:[ \t]+title=\"?([^\s\"]+)\"?)?[ \t]*$")
_COMMENT = re.compile(r"^<!-- ([a-z-]+(?: [a-z]+)*)(?:: (.+))? -->$")
_INDENTED = re.compile(r"^(?: {4}|\t)")


@dataclass(slots=True)
class Block:
    """A fenced block, or a comment without one. `language` is "" without one; `line` counts from 1."""

    page: Path
    line: int
    language: str = ""
    title: str = ""
    text: str = ""
    comments: dict[str, str] = field(default_factory=lambda: {})

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} ({self.title or self.language or 'no language'})"


def blocks(page: Path) -> list[Block]:
    """All blocks of a page. Raises `ValueError` for code that is indented, which has no language, or left open."""
    found: list[Block] = []
    comments: dict[str, str] = {}
    lines = iter(enumerate(page.read_text("utf-8").splitlines(), 1))
    before = ""
    for number, line in lines:
        if comment := _COMMENT.match(line):
            comments[comment[1]] = comment[2] or ""
            if comment[1] in ("ctrl-c", "given"):
                found.append(Block(page, number, comments=comments))
                comments = {}
        elif fence := _FENCE.match(line):
            body: list[str] = []
            for _, inner in lines:
                if inner.rstrip() == "```":
                    break
                body.append(f"{inner}\n")
            else:
                raise ValueError(f"{page.name}:{number}: the block is never closed")
            found.append(Block(page, number, fence[1], fence[2] or "", "".join(body), comments))
            comments = {}
        elif _INDENTED.match(line) and not before.strip():
            raise ValueError(f"{page.name}:{number}: code in a fenced block is tested; this is indented")
        elif line.startswith("```"):
            raise ValueError(f"{page.name}:{number}: the fence {line!r} cannot be read")
        before = line
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether an output is as a page shows it."""
    return re.fullmatch(_pattern(shown), _trimmed(printed)) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _pattern(shown: str) -> str:
    lines = [re.escape(line).replace("…", "[^\n]*") for line in _trimmed(shown).splitlines()]
    text = "\n".join("\0" if line == "[^\n]*" else line for line in lines)
    return text.replace("\0\n", "(?:.*\n)*").replace("\n\0", "(?:\n.*)*").replace("\0", "(?s:.*)")


class Reader:
    """Runs the blocks of a page in order, in a directory of its own, and keeps its terminals until the end.

    The ports on the page (8840 of the proxy, 8848 of Nacos) become free ones, in both directions. The directories of a
    host (`PLACES`) become some below its own.
    """

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        self._ports = {port: free_port(and_offset=GRPC_OFFSET) for port in (8840, 8848)}
        self._terminals: dict[str, Process] = {}
        self._clock = SystemClock()
        self._stack = ExitStack()
        for place in PLACES.values():
            (directory / place).mkdir(mode=0o700)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
        self.env = {
            **clean,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}",
            "NACOS_PROXY_PORT": str(self._ports[8840]),
            "NACOS_PROXY_SERVER": f"http://127.0.0.1:{self._ports[8840]}",
            "NACOS_PROXY_CONFIG": os.devnull,
            "NACOS_PROXY_STATE_DIR": str(directory / "state"),
            "TERM": "dumb",
            "COLUMNS": "120",
        } | variables

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, page: Path) -> int:
        """Runs a page; returns how many of its blocks ran. Raises `AssertionError` at the first that differs."""
        ran = 0
        rest = blocks(page)
        while rest:
            block = rest.pop(0)
            if "not run" in block.comments:
                continue
            output = rest.pop(0).text if rest and rest[0].language == "text" and not rest[0].comments else None
            if "ctrl-c" in block.comments:
                self._terminals.pop(block.comments["ctrl-c"]).interrupt()
            elif "given" in block.comments:
                self._start(block.comments["given"], block.comments["given"]).expect(LISTENING)
            elif block.language == "text":
                assert "says" in block.comments, f"{block}: an output follows its command, or says whose it is"
                self._expect(block, block.comments["says"], block.text)
            elif block.language == "sh":
                self._type(block, output)
                ran += 1
            elif block.title:
                (self.directory / block.title).write_text(self._here(block.text))
            else:
                raise AssertionError(f"{block}: neither a command, an output nor a file with a title")
        return ran

    def _type(self, block: Block, output: str | None) -> None:
        if "terminal" in block.comments:
            self._start(block.comments["terminal"], block.text)
            self._expect(block, block.comments["terminal"], output or "")
            return
        end = self._clock.now() + PATIENCE
        for done in self._runs(block):
            printed = self._there(done.stdout)
            if done.returncode == 0 and (output is None or matches(output, printed)):
                return
            if "soon" not in block.comments or self._clock.now() > end:
                raise AssertionError(f"{block}: exit code {done.returncode}\n{block.text}{printed}\nshown:\n{output}")

    def _start(self, name: str, command: str) -> _Terminal:
        terminal = _Terminal(["bash", "-c", f"exec {self._here(command)}"], env=self.env, cwd=self.directory)
        self._terminals[name] = terminal
        return self._stack.enter_context(terminal)

    def _runs(self, block: Block) -> Iterator[subprocess.CompletedProcess[str]]:
        command = ["bash", "-euo", "pipefail", "-c", self._here(block.text)]
        while True:
            yield subprocess.run(
                command,
                cwd=self.directory,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
            )

    def _expect(self, block: Block, name: str, output: str) -> None:
        terminal = self._terminals[name]
        for line in output.splitlines():
            if line.strip() not in ("", "…"):
                pattern = re.escape(self._here(line.strip())).replace("…", ".*")
                try:
                    terminal.expect(re.compile(pattern))
                except RuntimeError as error:
                    raise AssertionError(f"{block}: {error}") from error

    def _here(self, text: str) -> str:
        for place, name in PLACES.items():
            text = text.replace(place, str(self.directory / name))
        return self._replaced(text, {str(known): str(here) for known, here in self._known()})

    def _there(self, text: str) -> str:
        return self._replaced(text, {str(here): str(known) for known, here in self._known()})

    def _known(self) -> Iterator[tuple[int, int]]:
        for known, here in self._ports.items():
            yield known, here
            yield known + GRPC_OFFSET, here + GRPC_OFFSET

    @staticmethod
    def _replaced(text: str, numbers: Mapping[str, str]) -> str:
        return re.sub(r"\b\d{4,5}\b", lambda found: numbers.get(found[0], found[0]), text)


class _Terminal(Process):
    """A command that runs until it is interrupted; each `expect` looks behind the line of the last one."""

    _seen = 0

    def expect(self, pattern: re.Pattern[str]) -> None:
        self.wait_for(pattern, since=self._seen)
        lines = self.log.splitlines()
        self._seen = next(n for n, line in enumerate(lines) if n >= self._seen and pattern.search(line)) + 1

    def interrupt(self) -> None:
        self.signal(signal.SIGINT)
        self.wait()

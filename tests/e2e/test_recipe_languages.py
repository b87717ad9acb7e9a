"""The programs of docs/recipes/{go,rust,java,node,php,python,shell}.md, as they are on the pages, at a real proxy.

All programs run at once, so that the waits are the same for all. A program that fails leaves; its test says why.

Environment:
    NACOS_PROXY_TEST_REQUIRE_SDKS   1, or names with commas: a missing tool is an error, not a skip
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.e2e.clients import NotBuilt, required, run
from tests.helpers.live import Process, ProxyProcess, free_port
from tests.helpers.recipes import block
from tests.helpers.scaling import PATIENCE

BUILD = Path(__file__).parents[2] / "build"
SIGTERM_CODES = {0, 143}  # the JVM ends with 143 after its shutdown hooks
Replace = dict[str, str]

pytestmark = pytest.mark.timeout(1000)  # the first build of Go and Rust takes minutes on a busy machine


def save(place: Path, page: str, title: str, replace: Replace) -> Path:
    file = place / title
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block(page, title, replace))
    return file


def go(place: Path, common: Replace) -> Sequence[str]:
    save(place, "go", "main.go", common | {"5 * time.Second": "1 * time.Second"})
    run(place, "go", "build", "-o", "carts", "main.go")
    return [str(place / "carts")]


def rust(place: Path, common: Replace) -> Sequence[str]:
    save(place, "rust", "Cargo.toml", {})
    save(place, "rust", "src/main.rs", common | {"from_secs(5)": "from_secs(1)"})
    run(place, "cargo", "build", "-q", "--target-dir", str(BUILD / "recipe-rust"))
    return [str(shutil.copy2(BUILD / "recipe-rust" / "debug" / "carts", place))]


def java(place: Path, common: Replace) -> Sequence[str]:
    file = save(place, "java", "Carts.java", common | {"pause(5)": "pause(1)"})
    run(place, "javac", "-Xlint:all", "-Werror", str(file))
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", str(place), "Carts"]


def node(place: Path, common: Replace) -> Sequence[str]:
    run(place, "node", "--version")
    return ["node", str(save(place, "node", "carts.mjs", common | {"sleep(5000": "sleep(1000"}))]


def php(place: Path, common: Replace) -> Sequence[str]:
    address = common.pop("http://127.0.0.1:8840")
    save(place, "php", "orders.php", {"http://127.0.0.1:8840": address, "/run/carts/orders": str(place / "known")})
    worker = save(place, "php", "worker.php", common | {"wait=5s": "wait=1s"})
    run(place, "php", "-l", str(worker))
    return ["php", str(worker)]


def python(place: Path, common: Replace) -> Sequence[str]:
    return [sys.executable, "-u", str(save(place, "python", "carts.py", common | {"wait(5)": "wait(1)"}))]


def shell(place: Path, common: Replace) -> Sequence[str]:
    return ["sh", str(save(place, "shell", "carts.sh", common | {"wait=5s": "wait=1s"}))]


LANGUAGES: dict[str, Callable[[Path, Replace], Sequence[str]]] = {
    "go": go, "rust": rust, "java": java, "node": node, "php": php, "python": python, "shell": shell,
}  # fmt: skip


@dataclass
class Play:
    """The programs that still do as they should, and what the others did."""

    http: httpx.Client
    programs: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def everyone(self, *patterns: str, after: Callable[[], object] = lambda: None) -> None:
        """Does `after`; then each program has to print a line for each pattern, in this order."""
        said = {language: program.log.count("\n") for language, program in self.programs.items()}
        after()
        for language in [*self.programs]:
            try:
                for pattern in patterns:
                    said[language] = self._said(language, pattern, said[language])
            except RuntimeError as error:
                self._leave(language, str(error))

    def _said(self, language: str, pattern: str, since: int) -> int:
        """The number of lines up to the one that matches."""
        program = self.programs[language]
        found = program.wait_for(re.compile(pattern), since=since, seconds=PATIENCE)
        return next(n for n, line in enumerate(program.log.splitlines(), 1) if n > since and line == found.string[:-1])

    def healthy(self) -> None:
        """Waits until the instances of all programs are healthy."""
        clock, pause = SystemClock(), threading.Event()
        end = clock.now() + PATIENCE
        while (unhealthy := self._unhealthy()) and clock.now() < end:
            pause.wait(0.05)
        for language in unhealthy:
            self._leave(language, f"its instance is not healthy; it said:\n{self.programs[language].log}")

    def stays_healthy(self, seconds: float) -> None:
        clock, pause = SystemClock(), threading.Event()
        end = clock.now() + seconds
        while clock.now() < end:
            for language in self._unhealthy():
                self._leave(language, f"it did not beat in time; it said:\n{self.programs[language].log}")
            pause.wait(0.05)

    def ends(self) -> None:
        """Sends SIGTERM to all: each has to deregister its instance and to end."""
        for program in self.programs.values():
            program.signal(signal.SIGTERM)
        codes = {language: program.wait() for language, program in self.programs.items()}
        left = self.carts()
        for language, code in codes.items():
            log = self.programs[language].log
            if code not in SIGTERM_CODES or self.ports[language] in left or "drain:" in log:
                self._leave(language, f"it ended with {code}, left are {left}; it said:\n{log}")

    def carts(self) -> dict[int, bool]:
        hosts = self.http.get("/api/v1/services/carts").raise_for_status().json()["hosts"]
        return {host["port"]: host["healthy"] for host in hosts}

    def add(self, ip: str) -> None:
        body = {"ip": ip, "port": 8080, "ephemeral": False}
        self.http.post("/api/v1/services/orders/instances", json=body).raise_for_status()

    def remove(self, ip: str) -> None:
        path = f"/api/v1/services/orders/instances/{ip}:8080"
        self.http.delete(path, params={"ephemeral": "false"}).raise_for_status()

    def impatient(self) -> None:
        """Makes each instance unhealthy after 5 s without a beat; the programs beat every second."""
        times = {"heart.beat.interval": "1000", "heart.beat.timeout": "5000", "ip.delete.timeout": "60000"}
        body = {"metadata": {f"preserved.{name}": value for name, value in times.items()}}
        for port in self.carts():
            path = f"/api/v1/services/carts/instances/127.0.0.1:{port}"
            self.http.patch(path, json=body).raise_for_status()

    def _unhealthy(self) -> list[str]:
        found = self.carts()
        return [language for language in self.programs if not found.get(self.ports[language])]

    def _leave(self, language: str, why: str) -> None:
        self.failed[language] = why
        self.programs.pop(language).kill()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    with ExitStack() as stack:
        proxy = ProxyProcess("--port", str(free_port(and_offset=1000)))
        stack.callback(proxy.close)
        address = f"http://127.0.0.1:{proxy.arguments[1]}"
        play = Play(stack.enter_context(httpx.Client(base_url=address, trust_env=False)))

        def build(language: str) -> None:
            place, play.ports[language] = tmp_path_factory.mktemp(language), free_port()
            common = {"http://127.0.0.1:8840": address, "9000": str(play.ports[language]), "wait=20s": "wait=1s"}
            try:
                play.programs[language] = Process(LANGUAGES[language](place, common), cwd=place)
            except NotBuilt as why:
                play.missing[language] = str(why)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(build, LANGUAGES))
        for program in play.programs.values():
            stack.enter_context(program)
        scenario(play, proxy)
        yield play


def scenario(play: Play, proxy: ProxyProcess) -> None:
    play.everyone("^beat: .*trying again$")  # the proxy does not run yet
    play.everyone("^registered$", "^no instance of orders$", after=proxy.start)
    play.everyone("^orders: 10.0.0.1:8080$", "^picked 10.0.0.1:8080$", after=lambda: play.add("10.0.0.1"))
    play.everyone("^orders: 10.0.0.1:8080 10.0.0.2:8080$", after=lambda: play.add("10.0.0.2"))
    play.everyone("^orders: 10.0.0.2:8080$", "^picked 10.0.0.2:8080$", after=lambda: play.remove("10.0.0.1"))
    play.healthy()
    play.impatient()
    play.stays_healthy(7.0)
    play.everyone("^pick: .*using the last list$", "^picked 10.0.0.2:8080$", after=proxy.terminate)
    proxy.start()
    play.everyone("^orders: 10.0.0.2:8080 10.0.0.3:8080$", after=lambda: play.add("10.0.0.3"))
    play.healthy()
    play.ends()


@pytest.mark.parametrize("language", LANGUAGES)
def test_program_picks_watches_and_registers_while_the_proxy_comes_and_goes(language: str, played: Play) -> None:
    if language in played.missing:
        if required(language):
            pytest.fail(f"{language} is required: {played.missing[language]}", pytrace=False)
        pytest.skip(played.missing[language])
    assert language not in played.failed, played.failed[language]

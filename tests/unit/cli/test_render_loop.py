"""The loop of `render`, one step at a time, against a running proxy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nacos_proxy.cli.client_options import Session
from nacos_proxy.cli.commands import Runner
from nacos_proxy.cli.failures import ApiProblem
from nacos_proxy.cli.render_loop import RenderLoop
from nacos_proxy.cli.rest_client import RestClient
from nacos_proxy.cli.targets import Target, read_spec
from tests.helpers.live import ProxyProcess
from tests.unit.conftest import Run


class Loop:
    """The loop of `render` in this process, one step at a time."""

    def __init__(self, client: RestClient, *specs: str, check: str = "", names_every: float = 0.02) -> None:
        targets = [Target(read_spec(spec)) for spec in specs]
        session = Session(client, "", "")
        checks = tuple(check.split())
        self.loop = RenderLoop(session, targets, Runner(), check=checks, wait=(0.0, 0.0), names_every=names_every)
        self.loop.start()

    def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.loop.step()


def test_render_follows_the_services_that_a_template_finds(ask: Run, running: ProxyProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "t").write_text(
        "{% for s in services(group='found') %}{{ s }}:{{ service(s, group='found') | caddy }} {% endfor %}"
    )
    with RestClient(running.url) as client:
        loop = Loop(client, f"{tmp_path}/t:{out}")
        try:
            for number in (1, 2):
                ask("register", f"s{number}", "10.0.0.1:80", "--group", "found")
                loop.until(lambda number=number: f"s{number}:10.0.0.1:80" in out.read_text())
            ask("register", "s1", "10.0.0.2:80", "--group", "found")
            loop.until(lambda: out.read_text() == "s1:10.0.0.1:80 10.0.0.2:80 s2:10.0.0.1:80 ")
        finally:
            loop.loop.close()


def test_render_tries_a_check_and_a_command_again(
    ask: Run, running: ProxyProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("register", "retried", "10.0.0.1:80")
    spec = f"caddy@retried:{tmp_path}/out:sh -c '[ ! -e {tmp_path}/fail ] && touch {tmp_path}/ran'"
    (tmp_path / "fail").touch()
    with RestClient(running.url) as client:
        loop = Loop(client, spec, check=f"test -e {tmp_path}/fine")
        try:
            assert not (tmp_path / "out").exists()
            (tmp_path / "fine").touch()
            loop.until((tmp_path / "out").exists)
            loop.loop.step()
            assert not (tmp_path / "ran").exists()
            (tmp_path / "fail").unlink()
            loop.until((tmp_path / "ran").exists)
        finally:
            loop.loop.close()
    said = capsys.readouterr().err.replace(str(tmp_path), "")
    assert re.findall(r"stays as it is|wrote|exit code 1\. Trying again|succeeded", said) == [
        *("stays as it is", "wrote", "exit code 1. Trying again", "succeeded"),
    ]


def test_render_start_raises_what_the_proxy_refuses_for_good(running: ProxyProcess, tmp_path: Path) -> None:
    with RestClient(running.url) as client, pytest.raises(ApiProblem):
        Loop(client, f"nginx@a@@b@@c!:{tmp_path}/out")

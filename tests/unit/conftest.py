"""A proxy as its users run it, for the command line's tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from nacos_proxy.cli.main import main
from tests.helpers.live import ProxyProcess

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def running() -> Iterator[ProxyProcess]:
    """One proxy on its own registry. Tests share it: each uses services of its own name."""
    with ProxyProcess() as proxy:
        yield proxy


@pytest.fixture
def cli() -> Run:
    """Runs a command line without the settings of whoever runs the tests; keyword arguments are variables."""

    def run(*arguments: str, **environ: str | None) -> Result:
        foreign = {name: None for name in os.environ if name.startswith("NACOS_PROXY_")}
        ours = {"NACOS_PROXY_CONFIG": os.devnull, "TERM": "dumb"}
        return CliRunner(env={**foreign, **ours, **environ}).invoke(main, list(arguments))

    return run


@pytest.fixture
def ask(cli: Run, running: ProxyProcess) -> Run:
    """Runs a command that asks the running proxy."""
    return lambda *arguments, **environ: cli(*arguments, **{"NACOS_PROXY_SERVER": running.url, **environ})

"""Commands of users: words, time-outs, and nothing left behind."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from nacos_proxy.cli.commands import Runner, words

PYTHON = sys.executable


def test_words_splits_as_a_shell_does() -> None:
    assert words("sh -c 'a && b' \"c d\"") == ("sh", "-c", "a && b", "c d")


@pytest.mark.parametrize("text", ["", "  ", "'open"])
def test_words_refuses_no_command_and_an_open_quote(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        words(text)


def test_runner_gives_input_and_environment_without_a_shell(tmp_path: Path) -> None:
    code = "import os,sys; open(sys.argv[1],'w').write(sys.stdin.read() + os.environ['WHO'] + sys.argv[2])"
    assert Runner().run([PYTHON, "-c", code, str(tmp_path / "out"), "$(id)"], stdin=b"in ", env={"WHO": "me "}) == ""
    assert (tmp_path / "out").read_text() == "in me $(id)"


def test_runner_says_why_a_command_failed() -> None:
    runner = Runner()
    assert runner.run([PYTHON, "-c", "raise SystemExit(3)"]) == "exit code 3"
    assert runner.run(["/nowhere/at-all"]) == "cannot be run: No such file or directory"
    assert runner.run([PYTHON, "-c", "import os; os.kill(os.getpid(), 9)"]) == "ended by signal 9"


def test_runner_takes_a_command_that_does_not_read_its_input() -> None:
    assert Runner().run([PYTHON, "-c", "pass"], stdin=b"x" * 1_000_000) == ""


# The command and its child hold the write end of a pipe, so that its reader sees both end.
HANG = (
    "import subprocess,sys; pipe=open(sys.argv[1],'w'); "
    "c=subprocess.Popen(['sleep','1000'],pass_fds=[pipe.fileno()]); pipe.write('started'); pipe.flush(); c.wait()"
)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def hang(runner: Runner, pipe: Path, ends: list[str]) -> threading.Thread:
    command = [PYTHON, "-c", HANG, str(pipe)]
    run = threading.Thread(target=lambda: ends.append(runner.run(command, stdin=b"x" * 1_000_000)))
    run.start()
    return run


def test_runner_ends_a_late_command_and_its_children(pipe: Path) -> None:
    ends = list[str]()
    run = hang(Runner(2.0), pipe, ends)
    assert pipe.read_text() == "started"
    run.join()
    assert ends == ["did not end within 2 s"]


def test_runner_close_ends_what_runs_and_starts_nothing_more(pipe: Path) -> None:
    ends, runner = list[str](), Runner()
    run = hang(runner, pipe, ends)
    with pipe.open() as started:
        assert started.read(7) == "started"
        runner.close()
        assert started.read() == ""
    run.join()
    assert (ends, runner.run([PYTHON, "-c", "pass"])) == (["ended by signal 15"], "it was not started")

"""The manual page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nacos_proxy.cli.main import COMMANDS
from nacos_proxy.cli.manual import page

FILE = Path(__file__).parents[3] / "docs" / "nacos-proxy.1"


def test_manual_page_equals_the_help_of_the_commands() -> None:
    """If this fails: python -m nacos_proxy.cli.manual > docs/nacos-proxy.1"""
    assert page() == FILE.read_text("utf-8")


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_manual_page_is_clean_roff() -> None:
    words = ["groff", "-man", "-Tutf8", "-ww", "-z", "-P-c", str(FILE)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if "can't break line" not in line] == []


def test_manual_page_has_each_command_and_keeps_its_examples() -> None:
    text = page()
    assert [name for name in COMMANDS if f"\n.SS {name} " not in text] == []
    assert "\n.nf\nnacos\\-proxy serve                     " in text
    assert text.count("\\-\\-cache\\-ttl") == 1
    assert text.count("\n.B \\-\\-token TEXT\n") == 1

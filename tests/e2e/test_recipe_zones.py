"""docs/recipes/zones.md, run line by line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.live import ProxyProcess
from tests.helpers.recipes import block


def test_zones_recipe_chooses_by_metadata() -> None:
    with ProxyProcess() as proxy:
        environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environ |= {"NACOS_PROXY_SERVER": proxy.url, "TERM": "dumb"}

        def run(title: str) -> list[str]:
            """The output of each line of the block."""
            outputs: list[str] = []
            for line in block("zones", title).splitlines():
                here = line.replace("http://127.0.0.1:8840", proxy.url).replace("curl ", "curl -sS --fail-with-body ")
                done = subprocess.run(here, shell=True, env=environ, capture_output=True, text=True, timeout=100)
                assert done.returncode == 0, f"{here}\n{done.stdout}{done.stderr}"
                outputs.append(done.stdout)
            return outputs

        run("register.sh")
        table, picked, lines = run("select.sh")
        assert ("10.0.0.2:8080" in table, table.count("10.0.0.")) == (True, 1)
        assert (picked, lines) == ("10.0.0.3:8080", "10.0.0.2:8080\n")
        near, everything = run("prefer.sh")
        assert near == "10.0.0.1:8080\n"
        assert everything.count('"ip":"10.0.0.') == 3


def test_block_raises_for_a_text_that_does_not_occur() -> None:
    with pytest.raises(ValueError, match="'nowhere' does not occur"):
        block("zones", "prefer.sh", {"nowhere": "here"})

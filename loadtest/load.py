"""Load generators: wrk for reads, and its output as figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

REPORT = """
done = function(summary, latency, requests)
  local seconds = summary.duration / 1000000
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout
  io.write(string.format("FIGURES rate=%f p50=%f p99=%f p999=%f errors=%d requests=%d\\n", summary.requests / seconds,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(99.9) / 1000, bad,
    summary.requests))
end
"""


def wrk(url: str, *, seconds: float, connections: int = 32, threads: int = 1, script: str = "") -> dict[str, float]:
    """Runs wrk: `rate` per second, `p50 p99 p999` in ms, `errors`, `requests`.

    `script` is Lua that makes requests; `{host}` in it stands for the server.
    """
    with tempfile.TemporaryDirectory() as folder:
        lua = Path(folder) / "load.lua"
        lua.write_text(script.replace("{host}", urlsplit(url).netloc) + REPORT)
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(lua), url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    found = re.search(r"^FIGURES (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk printed no figures: {done.stdout}{done.stderr}")
    return {name: float(value) for name, value in (pair.split("=") for pair in found[1].split())}


def in_turn(requests: Sequence[str]) -> str:
    """Lua: sends these whole requests in turn, each with a new UUID in place of `{id}`.

    What is constant is prepared, because Lua and the server share the machine.
    """
    halves = [request.partition("{id}") for request in requests]
    before, after = (",".join(json.dumps(half[n]) for half in halves) for n in (0, 2))
    return f"""
local before = {{{before}}}
local after = {{{after}}}
local hex = {{}}
for i = 0, 65535 do hex[i] = string.format("%04x", i) end
local stamp = string.format("%08x-0000-4000-8000-0000", os.time())
local floor = math.floor
local n = 0
request = {_NEW_ID if all(half[1] for half in halves) else _SAME}
"""


_NEW_ID = """function()
  n = n + 1
  local i = n % #before + 1
  return before[i] .. stamp .. hex[floor(n / 65536)] .. hex[n % 65536] .. after[i]
end"""
_SAME = """function()
  n = n % #before + 1
  return before[n]
end"""


def random_targets(targets: Sequence[str]) -> str:
    """Lua: each request asks for one of the targets at random; its bytes are prepared once."""
    rows = ",".join(f'"{target}"' for target in targets)
    return f"""
targets = {{{rows}}}
prepared = {{}}
init = function(args)
  math.randomseed(os.time())
  for i, target in ipairs(targets) do prepared[i] = wrk.format("GET", target) end
end
request = function() return prepared[math.random(#prepared)] end
"""


class Usage:
    """What a process and its children used between two moments: CPU seconds and peak memory."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._cpu()

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu(self) -> float:
        return sum(sum(p.cpu_times()[:2]) for p in self._family())

    def figures(self, requests: float) -> dict[str, float]:
        """`cpu_s_per_1000`: CPU seconds per 1,000 requests; `memory`: peak resident MiB since the start."""
        cpu = self._cpu() - self._before
        return {"cpu_s_per_1000": 1000 * cpu / max(requests, 1), "memory": sum(map(_peak, self._family())) / (1 << 20)}

    def resident(self) -> float:
        """Resident MiB now."""
        return sum(p.memory_info().rss for p in self._family()) / (1 << 20)

    def cpu_seconds(self) -> float:
        return self._cpu() - self._before


def _peak(process: psutil.Process) -> int:
    """Peak resident bytes as Linux records them; on other systems the bytes now."""
    status = Path(f"/proc/{process.pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) << 10 if found else int(process.memory_info().rss)


def installed(program: str) -> bool:
    """The program, from the PATH or from cargo's folder."""
    return find_program(program) is not None


def find_program(program: str) -> str | None:
    cargo = Path(os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))) / "bin" / program
    return shutil.which(program) or (str(cargo) if cargo.is_file() else None)

"""`list -A`, `get`, `export` and `import` in front of every generation of servers."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.e2e.conftest import process
from tests.helpers.live import ProxyProcess


async def run(proxy: ProxyProcess, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error. The upstream may run in this event loop, so it does not block."""
    command = [sys.executable, "-m", "nacos_proxy", *arguments, "--server", proxy.url]
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=proxy.env
    )
    out, err = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def test_instances_move_from_any_server_to_another(upstream: str, generation: str, service: str) -> None:
    group = f"{service}-group"
    async with process("--upstream", upstream) as old, process() as new:
        for word in ((), ("-g", group)):
            code, _, err = await run(
                old, "register", service, "10.0.0.1:80", "--persistent", "--metadata", "a=b", *word
            )
            assert code == 0, err
        # A proxy that knows nothing yet has to ask Nacos.
        async with process("--upstream", upstream) as fresh:
            names = (await run(fresh, "list", "-A", "-n", "public", "-o", "name"))[1].splitlines()
            code, _, hint = await run(fresh, "get", service, "-g", "wrong")
            assert code == 1
            if generation in ("v1", "r-nacos"):  # they do not list all groups
                assert "Nacos does not list all groups" in (await run(fresh, "list", "-A"))[2]
                groups: tuple[tuple[str, ...], ...] = ((), ("-g", group))
            else:
                assert {f"DEFAULT_GROUP@@{service}", f"{group}@@{service}"} <= set(names)
                assert f"It is in group DEFAULT_GROUP: -g DEFAULT_GROUP; group {group}: -g {group}." in hint
                groups = ((),)
            exported = [await run(fresh, "export", *word) for word in groups]
        lines = [line for _, out, _ in exported for line in out.splitlines() if json.loads(line)["service"] == service]
        assert len(lines) == 2, exported
        for line in lines:
            path = old.state_dir / "lines"
            await asyncio.to_thread(path.write_text, line)
            code, out, _ = await run(new, "import", str(path))
            assert (code, out) == (0, "1 registered, 0 already there\n")
        _, again, _ = await run(new, "export")
        assert sorted(again.splitlines()) == sorted(lines)

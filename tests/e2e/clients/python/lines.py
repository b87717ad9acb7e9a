"""The protocol of ../__init__.py, for drivers of SDKs for Python."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

OUT = sys.stdout


def say(line: dict[str, Any]) -> None:
    OUT.write(json.dumps(line) + "\n")
    OUT.flush()


def heard(kind: str, name: str, value: Any) -> None:
    say({"event": kind, "name": name, "hosts" if kind == "naming" else "content": value})


def host(instance: Any, names: Sequence[str]) -> dict[str, Any]:
    """`names`: what the SDK calls id, cluster, service and enabled."""
    found = dict(zip(("id", "cluster", "service", "enabled"), names, strict=True))
    same = {name: name for name in ("ip", "port", "weight", "healthy", "metadata")}
    return {name: getattr(instance, theirs) for name, theirs in (found | same).items()}


async def answer(perform: Callable[[dict[str, Any]], Awaitable[Any]], asked: dict[str, Any]) -> None:
    try:
        say({"id": asked["id"], "ok": await perform(asked)})
    except Exception as error:  # whatever the SDK raises is the answer
        say({"id": asked["id"], "error": f"{type(error).__name__}: {error}"})


async def drive(perform: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    loop, tasks = asyncio.get_running_loop(), set[Any]()
    reader = asyncio.StreamReader(limit=1 << 22)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sys.stdout = sys.stderr
    say({"event": "ready"})
    async for line in reader:
        task = loop.create_task(answer(perform, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

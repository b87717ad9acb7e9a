"""The loop is a parameter where sockets are: uvloop raises where asyncio is silent, and the proxy runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

BOTH = ("test_connection.py", "test_transport.py", "test_forward.py")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in BOTH:
        loops["uvloop"] = uvloop.new_event_loop
    return loops

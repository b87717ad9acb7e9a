from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.helpers.world import World


@pytest.fixture(params=["send", "begin"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """On a registry that only sends, and on one that begins what it can."""
    made = World(begins=request.param == "begin")
    yield made
    await made.agent.close()

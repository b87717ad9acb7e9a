"""Fixtures for the fault suites: seeded random numbers, and logged errors."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator

import pytest

SEED = int(os.environ.get("NACOS_PROXY_TEST_SEED", "1")) or random.SystemRandom().randrange(1, 1 << 32)


@pytest.fixture
def rng() -> random.Random:
    """Every run draws the same numbers, so that a failure comes from the change under test.

    NACOS_PROXY_TEST_SEED sets another seed; 0 draws one, and a failure prints it.
    """
    print(f"NACOS_PROXY_TEST_SEED={SEED}")
    return random.Random(SEED)


class Errors(logging.Handler):
    """Collects messages logged as errors, including unhandled exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()} {record.exc_info}")


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """The messages logged as errors. uvicorn's warnings about invalid requests are expected and left out."""
    handler, root, loud = Errors(), logging.getLogger(), logging.getLogger("uvicorn.error")
    level = loud.level
    loud.setLevel(logging.ERROR)
    root.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        loud.setLevel(level)

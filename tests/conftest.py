"""Fixtures and Hypothesis profiles for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.live import RNacos, rnacos_binary, rnacos_required

# HYPOTHESIS_PROFILE=deep tries many new examples. The default profile repeats the same ones in every run, so that
# a failure comes from the change under test. There is no deadline, because a busy machine is not a bug.
settings.register_profile(
    "fast", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# A shell that starts the tests in the background makes them and their children ignore SIGINT; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def rnacos() -> Iterator[RNacos]:
    """One real r-nacos for the session. Each test uses its own service names."""
    binary = rnacos_binary()
    if binary is None:
        if rnacos_required():
            pytest.fail("r-nacos is required and was not found", pytrace=False)
        pytest.skip("no r-nacos: install it with cargo, or name it in NACOS_PROXY_TEST_RNACOS")
    with RNacos(binary) as server:
        yield server

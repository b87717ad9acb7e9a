"""What tests take as parameters."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.live import RNacos, rnacos_binary, rnacos_required

# HYPOTHESIS_PROFILE=deep for a long look, at other examples each time; the fast ones are the same in every run, so that
# a failure is of the change that it came with. No deadline, because a busy machine is no bug.
settings.register_profile(
    "fast", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# A shell that starts the tests in its background lets them and all their children ignore it; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def rnacos() -> Iterator[RNacos]:
    """One real r-nacos for the session. Tests share it: each uses services of its own name."""
    binary = rnacos_binary()
    if binary is None:
        if rnacos_required():
            pytest.fail("r-nacos is required and was not found", pytrace=False)
        pytest.skip("no r-nacos: install it with cargo, or name it in NACOS_PROXY_TEST_RNACOS")
    with RNacos(binary) as server:
        yield server

"""The REST API conforms to its OpenAPI document for any input."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.helpers.live import ProxyProcess

# 503 is documented (nothing to pick, nothing known); 500 is not.
CHECKS = [response_schema_conformance, content_type_conformance, status_code_conformance]
# Streams never end, and a long poll waits for a change.
ENDLESS = ("/api/v1/events", "/api/v1/services/{service}/watch")
EXAMPLES = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    with ProxyProcess("--upstream", "embedded", "--push", "off", "--no-udp-push") as process:
        yield process


@pytest.mark.timeout(600)
def test_rest_api_conforms_to_its_openapi_document(proxy: ProxyProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{proxy.url}/openapi.json").exclude(path=list(ENDLESS))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:

        @EXAMPLES
        @given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            assert case.call_and_validate(checks=CHECKS, timeout=60).status_code != 500

        conforms()
    assert proxy.running
    assert "Traceback" not in proxy.log, proxy.log[-3000:]

"""The load and the backends of the tests that scale a service, with a client that picks for each request."""

from __future__ import annotations

import httpx

from tests.helpers.live import ProxyProcess
from tests.helpers.scaling import Backends, scales, steady


def test_scales_passes_for_a_client_that_picks_for_each_request() -> None:
    with ProxyProcess() as proxy, httpx.Client(trust_env=False, timeout=5.0) as http:

        def ask() -> str:
            address = http.get(f"{proxy.url}/api/v1/services/orders/pick?format=text").raise_for_status().text
            return http.get(f"http://{address}/").raise_for_status().text

        with Backends(proxy.url, "orders") as backends, steady(ask) as load:
            scales(backends, load)

"""The status page by itself."""

from __future__ import annotations

from typing import Any

from proxy.api.page import CONTENT_SECURITY_POLICY, page

STATUS: dict[str, Any] = {
    "version": "1",
    "uptimeSeconds": 5.5,
    "upstream": {"state": "up", "forSeconds": 1, "reason": "", "servers": ["a:1"]},
    "push": {"state": "off"},
    "disk": {"state": "ok"},
    "subscribers": {"streams": 3, "byClient": {}},
    "registrations": 2,
    "counts": {"reads": {"hit": 1}},
    "servicesTotal": 2,
    "services": [
        {
            "service": "g@@a",
            "namespaceId": "n",
            "state": "fresh",
            "ageSeconds": None,
            "instances": 60,
            "healthy": 59,
            "subscribers": 0,
            "error": None,
            "hosts": [(f"10.0.0.{n}:80", "c", 1.0, n > 0, n != 1, {}) for n in range(60)],
        }
    ],
}


def test_long_lists_are_cut_and_say_so() -> None:
    html = page(STATUS, "degraded", ["push: lost", "<disk>"]).decode()
    assert "10.0.0.49:80" in html and "10.0.0.50:80" not in html
    assert "and 10 more" in html and "and 1 more" in html
    assert "push: lost<br>&lt;disk&gt;" in html


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    assert CONTENT_SECURITY_POLICY.count("sha256-") == 1
    assert "unsafe" not in CONTENT_SECURITY_POLICY

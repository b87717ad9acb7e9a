"""The HTML of the status page."""

from __future__ import annotations

from typing import Any

import pytest

from nacos_proxy.frontends.operations.status_page import CONTENT_SECURITY_POLICY, service_row
from nacos_proxy.frontends.operations.status_page import page as whole

STATUS: dict[str, Any] = {
    "version": "1",
    "uptimeSeconds": 5.5,
    "upstream": {
        "state": "down",
        "forSeconds": 93_700,
        "reason": "<refused>",
        "servers": [
            {"url": "http://a:1", "state": "down", "error": "<gone>", "latencyMs": 1.25, "version": ""},
            {"url": "http://b:1", "state": "up", "error": "", "latencyMs": 2.5, "version": "2.5.1"},
        ],
    },
    "push": {"state": "off"},
    "disk": {"state": "failing", "reason": "no <space>"},
    "subscribers": {"streams": 3, "byClient": {}},
    "registrations": 2,
    "counts": {"reads": {"hit": 1, "<miss>": 2}, "writes": {}, "local_beats": 7},
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


def page(status: dict[str, Any], *more: Any) -> bytes:
    return whole(status, [service_row(row) for row in status["services"]], *more)


def test_page_cuts_long_lists_and_says_so() -> None:
    html = page(STATUS, "degraded", ["push: lost", "<disk>"]).decode()
    assert "10.0.0.49:80" in html and "10.0.0.50:80" not in html
    assert "and 10 more" in html and "and 1 more" in html
    assert "push: lost<br>&lt;disk&gt;" in html


def test_page_shows_faults_with_their_duration_and_server() -> None:
    html = page(STATUS, "degraded", []).decode()
    assert '<span class="down">down</span> for 1 d 2 h: &lt;refused&gt;' in html
    assert (
        '<code>http://a:1</code> <span class="down">down</span> <span class="muted">1.25 ms &lt;gone&gt;</span>' in html
    )
    assert '<code>http://b:1</code> <span class="up">up</span> version 2.5.1' in html
    assert "no &lt;space&gt;" in html
    assert "<th>Reads</th><td>1 hit, 2 &lt;miss&gt;</td>" in html
    assert "<th>Writes</th><td>0</td>" in html and "<th>Local beats</th><td>7</td>" in html


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_661, "1 h 1 min"), (86_401, "1 d")]
)
def test_page_shows_durations_in_their_largest_units(seconds: float, text: str) -> None:
    assert f"<td>{text}</td>" in page({**STATUS, "uptimeSeconds": seconds}, "ready", []).decode()


def test_service_row_shows_the_name_above_group_and_namespace() -> None:
    row = {**STATUS["services"][0], "service": "<g>@@orders", "namespaceId": "<n>", "error": "<no>"}
    html = page({**STATUS, "services": [row]}, "ready", []).decode()
    assert '<td>orders<br><span class="muted">&lt;g&gt; in &lt;n&gt;</span></td>' in html
    assert '<span class="muted">&lt;no&gt;</span>' in html


def test_page_says_if_no_service_is_known() -> None:
    assert "none was read or registered yet" in page({**STATUS, "services": []}, "ready", []).decode()


def test_content_security_policy_allows_only_the_style_of_the_page() -> None:
    assert CONTENT_SECURITY_POLICY.count("sha256-") == 1
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_page_links_carry_the_token() -> None:
    plain = page(STATUS, "ready", []).decode()
    assert 'href="/status"' in plain and 'href="/metrics"' in plain
    html = page(STATUS, "ready", [], {"accessToken": 'se"cr&et'}).decode()
    for path in ("/status", "/metrics"):
        assert f'href="{path}?accessToken=se%22cr%26et"' in html
    assert 'href="/docs"' in html  # `/docs` needs no token and asks for its own

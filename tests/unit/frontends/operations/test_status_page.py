"""The status page by itself."""

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


def test_page_cuts_long_lists_and_shows_how_many_are_left_out() -> None:
    html = page(STATUS, "degraded", ["push: lost", "<disk>"]).decode()
    assert "10.0.0.49:80" in html and "10.0.0.50:80" not in html
    assert "and 10 more" in html and "and 1 more" in html
    assert "push: lost<br>&lt;disk&gt;" in html


def test_page_shows_the_problem_its_age_and_the_server() -> None:
    html = page(STATUS, "degraded", []).decode()
    assert '<span class="down">down</span> for 1 d 2 h: &lt;refused&gt;' in html
    assert (
        '<code>http://a:1</code> <span class="down">down</span> <span class="muted">1.25 ms &lt;gone&gt;</span>' in html
    )
    assert '<code>http://b:1</code> <span class="up">up</span> version 2.5.1' in html
    assert "no &lt;space&gt;" in html
    assert "<th>Reads</th><td>1 hit, 2 &lt;miss&gt;</td>" in html
    assert "<th>Writes</th><td>0</td>" in html and "<th>Local beats</th><td>7</td>" in html


def test_page_shows_where_dns_is_served_and_what_it_answered() -> None:
    dns = {"state": "ok", "addresses": ["127.0.0.1:8853", "[::1]:8853"], "answers": {"NOERROR": 7}}
    html = page({**STATUS, "dns": dns}, "ready", []).decode()
    assert '<th>DNS</th><td><span class="ok">ok</span> on 127.0.0.1:8853, [::1]:8853, 7 NOERROR</td>' in html
    html = page({**STATUS, "dns": {"state": "off", "reason": "it is <stopped>"}}, "ready", []).decode()
    assert '<td><span class="off">off</span> it is &lt;stopped&gt;</td>' in html


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_661, "1 h 1 min"), (86_401, "1 d")]
)
def test_page_shows_times_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert f"<td>{text}</td>" in page({**STATUS, "uptimeSeconds": seconds}, "ready", []).decode()


def test_page_names_what_is_out_of_traffic_and_why() -> None:
    drained = {"service": "n/g@@a", "address": "10.0.0.1:80", "state": "draining", "reason": "", "secondsLeft": 12.5}
    kept = {"service": "n/g@@a", "address": "10.0.0.2:80", "state": "maintenance", "reason": "<disk>", "forSeconds": 61}
    html = page({**STATUS, "outOfTraffic": {"instances": 3, "shown": [drained, kept]}}, "ready", []).decode()
    assert 'draining</span> <span class="muted">12 s left</span>' in html
    assert 'maintenance</span> <span class="muted">for 1 min 1 s</span>: &lt;disk&gt;' in html
    assert "and 1 more" in html
    assert "Out of traffic" not in page(STATUS, "ready", []).decode()


def test_service_row_shows_the_name_above_group_and_namespace() -> None:
    row = {**STATUS["services"][0], "service": "<g>@@orders", "namespaceId": "<n>", "error": "<no>"}
    html = page({**STATUS, "services": [row]}, "ready", []).decode()
    assert '<td>orders<br><span class="muted">&lt;g&gt; in &lt;n&gt;</span></td>' in html
    assert '<span class="muted">&lt;no&gt;</span>' in html


def test_page_without_services_explains_that() -> None:
    assert "no service was read or registered yet" in page({**STATUS, "services": []}, "ready", []).decode()


def test_content_security_policy_allows_only_the_style_of_the_page() -> None:
    assert CONTENT_SECURITY_POLICY.count("sha256-") == 1
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_page_links_carry_the_given_parameters() -> None:
    plain = page(STATUS, "ready", []).decode()
    assert 'href="/status"' in plain and 'href="/metrics"' in plain
    html = page(STATUS, "ready", [], {"accessToken": 'se"cr&et'}).decode()
    for path in ("/status", "/metrics"):
        assert f'href="{path}?accessToken=se%22cr%26et"' in html
    assert 'href="/docs"' in html  # it is open, and takes a token of its own

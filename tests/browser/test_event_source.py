"""`EventSource` of a real browser, in a page of another origin."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.helpers.browser import Browser
from tests.helpers.fault import fault_proxy
from tests.helpers.live import ProxyProcess

pytestmark = pytest.mark.timeout(180)

LISTEN = """
window.heard = [];
window.failures = 0;
window.source = new EventSource(arguments[0]);
for (const kind of ['snapshot', 'change', 'upstream'])
  source.addEventListener(kind, event => heard.push({kind, id: event.lastEventId, ...JSON.parse(event.data)}));
source.onerror = () => { failures += 1 };
"""
FIRST = "return heard.length >= arguments[0] && heard"
RETRY = ("--events-retry", "100ms")
EVENTS = "/api/v1/events?service=orders"


def register(proxy: ProxyProcess, ip: str) -> None:
    query = {"serviceName": "orders", "ip": ip, "port": "80", "ephemeral": "false"}
    assert httpx.post(f"{proxy.url}/nacos/v1/ns/instance", params=query, trust_env=False).text == "ok"


def ips(event: dict[str, Any]) -> list[str]:
    return [host["ip"] for host in event["hosts"]]


def listen(browser: Browser, page: str, url: str) -> None:
    browser.go(page)
    browser.run(LISTEN, url + EVENTS)


def test_event_source_of_an_allowed_origin_gets_changes_and_survives_a_restart(
    browser: Browser, elsewhere: str
) -> None:
    """The browser reconnects by itself with the last id; the new process sends a reset snapshot."""
    with ProxyProcess("--cors-origins", elsewhere, *RETRY) as proxy:
        register(proxy, "10.0.0.1")
        listen(browser, elsewhere, proxy.url)
        [snapshot] = browser.until(FIRST, 1)
        assert (snapshot["kind"], ips(snapshot)) == ("snapshot", ["10.0.0.1"])
        assert "reset" not in snapshot
        register(proxy, "10.0.0.2")
        change = browser.until(FIRST, 2)[1]
        assert (change["kind"], ips(change), change["source"]) == ("change", ["10.0.0.1", "10.0.0.2"], "write")
        assert [host["ip"] for host in change["added"]] == ["10.0.0.2"]

        assert proxy.terminate() == 0
        proxy.start()
        again = browser.until(FIRST, 3)[2]
        assert (again["kind"], again["reset"]) == ("snapshot", True)
        assert ips(again) == ["10.0.0.1", "10.0.0.2"]
        assert again["id"].split("-")[0] != change["id"].split("-")[0]
        register(proxy, "10.0.0.3")
        assert [host["ip"] for host in browser.until(FIRST, 4)[3]["added"]] == ["10.0.0.3"]
        assert browser.run("source.close(); return heard.length") == 4


async def test_event_source_resumes_after_a_broken_connection(browser: Browser, elsewhere: str) -> None:
    """No event is repeated or lost: a real browser's `Last-Event-ID` against the history of one process."""
    with ProxyProcess("--cors-origins", elsewhere, *RETRY) as proxy:
        async with fault_proxy(proxy.port) as relay:
            await asyncio.to_thread(register, proxy, "10.0.0.1")
            await asyncio.to_thread(listen, browser, elsewhere, relay.url)
            await asyncio.to_thread(browser.until, FIRST, 1)
            await relay.set("refuse")
            await asyncio.to_thread(browser.until, "return failures > 0")
            await asyncio.to_thread(register, proxy, "10.0.0.2")
            await relay.set("pass")
            heard = await asyncio.to_thread(browser.until, FIRST, 2)
            await asyncio.to_thread(register, proxy, "10.0.0.3")
            heard = await asyncio.to_thread(browser.until, FIRST, 3)
            await asyncio.to_thread(browser.run, "source.close()")
    assert [event["kind"] for event in heard] == ["snapshot", "change", "change"]
    assert [[host["ip"] for host in event["added"]] for event in heard[1:]] == [["10.0.0.2"], ["10.0.0.3"]]


def test_event_source_of_another_origin_gets_nothing(browser: Browser, proxy: ProxyProcess, elsewhere: str) -> None:
    register(proxy, "10.0.0.1")
    listen(browser, elsewhere, proxy.url)
    browser.until("return failures > 0 && source.readyState === EventSource.CLOSED")
    register(proxy, "10.0.0.2")
    assert browser.run("return heard") == []


def test_cors_origins_allows_only_the_named_origin(browser: Browser, elsewhere: str) -> None:
    with ProxyProcess("--cors-origins", "https://console.example") as proxy:
        listen(browser, elsewhere, proxy.url)
        browser.until("return failures > 0 && source.readyState === EventSource.CLOSED")
        assert browser.run("return heard") == []


def test_cors_origins_allows_writes_and_exposes_headers(browser: Browser, elsewhere: str) -> None:
    ask = "return fetch(arguments[0], arguments[1]).then(async r => [r.status, r.headers.get(arguments[2])])"
    with ProxyProcess("--cors-origins", elsewhere) as proxy:
        browser.go(elsewhere)
        body = {
            "method": "POST",
            "headers": {"Content-Type": "application/json"},
            "body": '{"ip": "10.0.0.1", "port": 80}',
        }
        url = f"{proxy.url}/api/v1/services/orders/instances"
        assert browser.run(ask, url, body, "Nacos-Proxy-Answer") == [201, "upstream"]
        for _ in range(3):  # the fast path sends the CORS headers, too
            status, said = browser.run(ask, f"{proxy.url}/api/v1/services/orders", {}, "Cache-Status")
            assert (status, said[:11]) == (200, "nacos-proxy")

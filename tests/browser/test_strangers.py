"""A page of another site can do nothing to the proxy through a browser on this host."""

from __future__ import annotations

import httpx
import pytest

from tests.browser.conftest import REBOUND, REBOUND_NEARBY
from tests.helpers.browser import Browser
from tests.helpers.live import ProxyProcess

pytestmark = pytest.mark.timeout(180)

# A browser sends a form anywhere without asking. All fields of a text/plain form become one line of text.
SUBMIT = """
const form = document.createElement('form');
Object.assign(form, {method: 'post', action: arguments[0], enctype: arguments[1]});
for (const [name, value] of Object.entries(arguments[2]))
  form.append(Object.assign(document.createElement('input'), {name, value}));
document.body.append(form);
form.submit();
"""
REFUSED = (421, 403)  # the Nacos API has no 421
URLENCODED = "application/x-www-form-urlencoded"
INSTANCE = {"ip": "10.6.6.6", "port": "80"}
JSON_AS_TEXT = {'{"ip":"10.6.6.6","port":80,"metadata":{"x":"': '"}}'}
# The key is the name of the service that the request would register at.
WRITES = {
    "v1": ("/nacos/v1/ns/instance", URLENCODED, {"serviceName": "v1", **INSTANCE}),
    "query": ("/nacos/v1/ns/instance?serviceName=query&ip=10.6.6.6&port=80", URLENCODED, {}),
    "parts": ("/nacos/v1/ns/instance?serviceName=parts&ip=10.6.6.6&port=80", "multipart/form-data", INSTANCE),
    "v2": ("/nacos/v2/ns/instance", URLENCODED, {"serviceName": "v2", **INSTANCE}),
    "v3": ("/nacos/v3/client/ns/instance", URLENCODED, {"serviceName": "v3", **INSTANCE}),
    "ours": ("/api/v1/services/ours/instances", "text/plain", JSON_AS_TEXT),
}


def instances(proxy: ProxyProcess, service: str) -> list[str]:
    reply = httpx.get(f"{proxy.url}/api/v1/services/{service}", headers={"Cache-Control": "no-cache"}, trust_env=False)
    return [host["ip"] for host in reply.raise_for_status().json()["hosts"]]


@pytest.mark.parametrize("service", WRITES)
def test_form_of_another_origin_changes_nothing(
    browser: Browser, proxy: ProxyProcess, elsewhere: str, service: str
) -> None:
    path, encoding, fields = WRITES[service]
    browser.go(elsewhere)
    browser.run(SUBMIT, proxy.url + path, encoding, fields)
    browser.until("return location.href !== arguments[0] && document.readyState === 'complete'", elsewhere + "/")
    assert browser.url == proxy.url + path
    assert instances(proxy, service) == []


def test_script_of_another_origin_reads_and_changes_nothing(
    browser: Browser, proxy: ProxyProcess, elsewhere: str
) -> None:
    url = f"{proxy.url}/nacos/v1/ns/instance?serviceName=scripted&ip=10.6.6.6&port=80"
    browser.go(elsewhere)
    ask = "return fetch(arguments[0], arguments[1]).then(r => r.type + ' ' + r.status, e => e.name)"
    assert browser.run(ask, f"{proxy.url}/api/v1/services", {}) == "TypeError"
    assert browser.run(ask, url, {"method": "POST", "mode": "no-cors"}) == "opaque 0"
    assert browser.run(ask, url, {"method": "DELETE"}) == "TypeError"
    assert browser.run("return navigator.sendBeacon(arguments[0])", url)
    browser.until("return performance.getEntriesByName(arguments[0]).length >= 2", url)
    assert instances(proxy, "scripted") == []


def test_page_of_this_proxy_may_write(browser: Browser, proxy: ProxyProcess) -> None:
    browser.go(f"{proxy.url}/docs")
    url = "/nacos/v1/ns/instance?serviceName=own&ip=10.0.0.1&port=80"
    assert browser.run("return fetch(arguments[0], {method: 'POST'}).then(r => r.text())", url) == "ok"
    assert instances(proxy, "own") == ["10.0.0.1"]


@pytest.mark.parametrize(
    "path", ["/", "/ui", "/ui/page.js", "/status", "/api/v1/services", "/nacos/v1/ns/instance/list?serviceName=a"]
)
def test_rebound_host_name_reads_nothing(browser: Browser, proxy: ProxyProcess, path: str) -> None:
    browser.go(f"http://{REBOUND}:{proxy.port}{path}")
    assert browser.run("return performance.getEntriesByType('navigation')[0].responseStatus") in REFUSED
    assert REBOUND in browser.text and "allowed_hosts" in browser.text
    # The rebound page may send any request to its own origin.
    assert browser.run("return fetch(arguments[0]).then(r => r.status)", path) in REFUSED
    write = "/nacos/v1/ns/instance?serviceName=rebound&ip=10.6.6.6&port=80"
    assert browser.run("return fetch(arguments[0], {method: 'POST'}).then(r => r.status)", write) in REFUSED
    assert instances(proxy, "rebound") == []


@pytest.mark.parametrize("name", [REBOUND, REBOUND_NEARBY])
@pytest.mark.parametrize("path", ["/v3/discovery:endpoints", "/v3/discovery:clusters"])
def test_rebound_host_name_reads_nothing_where_envoy_may_name_its_cluster(
    browser: Browser, proxy: ProxyProcess, name: str, path: str
) -> None:
    """The proxy tells Envoy from a browser by `Origin`, which no script can take away."""
    envoy = httpx.post(f"{proxy.url}{path}", json={"resource_names": ["a"]}, headers={"host": name}, trust_env=False)
    assert envoy.status_code == (200 if name == REBOUND_NEARBY else 421)
    browser.go(f"http://{name}:{proxy.port}/")
    ask = "return fetch(arguments[0], arguments[1]).then(r => r.status)"
    for more in ({}, {"referrerPolicy": "no-referrer"}, {"mode": "same-origin"}, {"mode": "no-cors"}):
        how = {"method": "POST", "body": '{"resource_names":["a"]}', "credentials": "omit", **more}
        assert browser.run(ask, path, how) in REFUSED, more
    browser.run(SUBMIT, path, "text/plain", {'{"resource_names":["a"],"x":"': '"}'})
    browser.until("return location.pathname === arguments[0] && document.readyState === 'complete'", path)
    assert browser.run("return performance.getEntriesByType('navigation')[0].responseStatus") in REFUSED

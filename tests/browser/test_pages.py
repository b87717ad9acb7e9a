"""The two pages of the proxy in a real browser."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.helpers.browser import Browser
from tests.helpers.live import ProxyProcess

pytestmark = pytest.mark.timeout(180)

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror="document.title=1">'


def block(browser: Browser, method: str, path: str) -> str:
    """Opens an operation on `/docs` with editable fields; returns its selector."""
    find = """return [...document.querySelectorAll('.opblock')].find(block =>
        block.querySelector('.opblock-summary-method').innerText === arguments[0] &&
        block.querySelector('.opblock-summary-path').dataset.path === arguments[1])?.id"""
    css = f'[id="{browser.until(find, method, path)}"]'
    browser.click(f"{css} .opblock-summary-control")
    browser.until("return document.querySelector(arguments[0])", f"{css} .try-out__btn")
    browser.click(f"{css} .try-out__btn")
    browser.until("return document.querySelector(arguments[0])", f"{css} .execute")
    return css


def execute(browser: Browser, css: str) -> tuple[str, str]:
    """Executes an operation on `/docs`; returns status and body."""
    browser.click(f"{css} .execute")
    live = f"{css} .live-responses-table .response"
    browser.until("return document.querySelector(arguments[0])", live)
    status = browser.run("return document.querySelector(arguments[0]).innerText", f"{live} .response-col_status")
    body = browser.run("return document.querySelector(arguments[0])?.innerText || ''", f"{live} .microlight")
    return status.split()[0], body


def test_docs_page_loads_only_from_this_process_and_can_call_the_api(browser: Browser, proxy: ProxyProcess) -> None:
    browser.go(f"{proxy.url}/docs")
    post = block(browser, "POST", "/api/v1/services/{service}/instances")
    browser.fill(f"{post} tr[data-param-name=service] input", "tried")
    status, body = execute(browser, post)
    assert (status, json.loads(body)["ip"]) == ("201", "10.0.0.5")

    get = block(browser, "GET", "/api/v1/services/{service}")
    browser.fill(f"{get} tr[data-param-name=service] input", "tried")
    status, body = execute(browser, get)
    assert (status, [host["ip"] for host in json.loads(body)["hosts"]]) == ("200", ["10.0.0.5"])

    asked = browser.asked()
    assert any("/api/v1/services/tried" in url for url in asked)
    assert {url for url in asked if not url.startswith(proxy.url + "/")} == set()
    assert browser.complaints() == []


def test_docs_page_sends_a_token_if_one_is_required(browser: Browser) -> None:
    with ProxyProcess(env={"NACOS_PROXY_TOKENS": "read:secret-of-reader"}) as proxy:
        browser.go(f"{proxy.url}/docs")
        css = block(browser, "GET", "/api/v1/services")
        assert execute(browser, css)[0] == "401"
        browser.click(".auth-wrapper .authorize")
        browser.until("return document.querySelector('.auth-container input')")
        browser.fill(".auth-container input", "secret-of-reader")
        browser.click(".auth-btn-wrapper .authorize")
        browser.click(".auth-btn-wrapper .btn-done")
        browser.click(f"{css} .execute")
        live = "return document.querySelector(arguments[0])?.innerText.startsWith('200')"
        browser.until(live, f"{css} .live-responses-table .response .response-col_status")
        browser.complaints()  # drops the one about the 401


def test_status_page_escapes_text_of_clients(browser: Browser, proxy: ProxyProcess) -> None:
    """Metadata and names come from clients."""
    body = {"ip": "10.0.0.1", "port": 80, "metadata": {"x": SCRIPT, IMAGE: SCRIPT}}
    url = f"{proxy.url}/api/v1/services/marked/instances"
    httpx.post(url, json=body, trust_env=False).raise_for_status()
    httpx.get(f"{proxy.url}/api/v1/services/marked", trust_env=False).raise_for_status()

    browser.go(f"{proxy.url}/")
    assert f"x={SCRIPT}" in browser.text and f"{IMAGE}={SCRIPT}" in browser.text
    assert browser.run("return document.querySelectorAll('script, img, iframe, object').length") == 0
    assert browser.run("return document.title") == "nacos-proxy"
    assert browser.run("return getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"
    assert browser.asked() == [f"{proxy.url}/"]
    assert browser.complaints() == []


def test_status_page_content_security_policy_blocks_an_injected_script(browser: Browser, proxy: ProxyProcess) -> None:
    """Even if the page forgot to escape, its policy runs no script."""
    browser.go(f"{proxy.url}/")
    browser.run("document.body.insertAdjacentHTML('beforeend', arguments[0])", '<img src="/x" onerror="window.got=1">')
    browser.run("const s = document.createElement('script'); s.textContent = 'window.got=1'; document.body.append(s);")
    assert browser.run("return window.got === undefined")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_status_page_is_readable_in_a_narrow_window(browser: Browser, proxy: ProxyProcess) -> None:
    register = {"ip": "10.0.0.1", "port": 80, "metadata": {"long": "x" * 400}}
    url = f"{proxy.url}/api/v1/services/{'a-long-name-' * 8}/instances"
    httpx.post(url, json=register, trust_env=False).raise_for_status()
    browser.go(f"{proxy.url}/")
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")

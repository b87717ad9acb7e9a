"""The page at `/docs` in a real browser."""

from __future__ import annotations

import json

import pytest

from tests.helpers.browser import Browser
from tests.helpers.live import ProxyProcess

pytestmark = pytest.mark.timeout(180)


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

"""Makes the pictures in docs/images anew: `python -m tests.browser.screenshots`. They are not made by the tests.

Never here: assertions; test_page.py has them.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.helpers.browser import Browser, browsing
from tests.helpers.live import ProxyProcess

IMAGES = Path(__file__).parents[2] / "docs" / "images"
ADDRESS = "http://localhost:8840"  # as a reader's proxy, whatever port this one has
ORDERS = "#/services/public/DEFAULT_GROUP/orders"
SERVICES = {
    "orders": (5, {"zone": "a", "version": "2.1.0"}),
    "orders-archive": (1, {"zone": "a", "version": "1.9.4"}),
    "payments": (3, {"zone": "b", "version": "1.4.2"}),
    "stock": (4, {"zone": "a", "version": "3.0.1"}),
    "shipping": (2, {"zone": "b", "version": "0.9.0"}),
    "mailer": (1, {}),
    "search": (6, {"zone": "a", "canary": "true"}),
}


def fill(nacos: ProxyProcess, proxy: ProxyProcess) -> None:
    """Registers services at both, reads them through the proxy, and takes some instances out of traffic."""
    with httpx.Client(trust_env=False) as http:
        for number, (service, (instances, metadata)) in enumerate(SERVICES.items()):
            for host in range(instances):
                url = (proxy if host % 2 else nacos).url
                body = {"ip": f"10.0.{number}.{host + 11}", "port": 8080, "ephemeral": False, "metadata": metadata}
                body["healthy"] = (service, host) not in (("stock", 2), ("orders", 2))
                http.post(f"{url}/api/v1/services/{service}/instances", json=body).raise_for_status()
            http.get(f"{proxy.url}/api/v1/services/{service}").raise_for_status()
        for address, change in (("10.0.0.12:8080", {"weight": 5}), ("10.0.0.14:8080", {"enabled": False})):
            url = f"{proxy.url}/api/v1/services/orders/instances/{address}"
            http.patch(url, json=change).raise_for_status()


def picture(browser: Browser, name: str, place: str, seen: str) -> None:
    """The page at `place`, once it shows the text `seen`."""
    browser.go("about:blank")
    browser.go(f"{ADDRESS}/ui{place}")
    browser.until("return document.body.innerText.includes(arguments[0])", seen)
    if not place:
        read = "for (let n = 0; n < 400; n++) await fetch('/api/v1/services/orders')"
        browser.run(f"return (async () => {{ {read} }})()")
        browser.until("return document.body.innerText.includes('% from memory')")
    browser.run("document.querySelector('#host').textContent = 'shop-7'")
    browser.screenshot(IMAGES / f"{name}.png")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with ProxyProcess() as nacos, ProxyProcess("--upstream", nacos.url, "--push", "off") as proxy:
        fill(nacos, proxy)
        with browsing(["--hide-scrollbars", f"--host-resolver-rules=MAP localhost 127.0.0.1:{proxy.port}"]) as browser:
            for name, place, seen, size, dark in (
                ("ui-services", "", "shipping", (1280, 860), False),
                ("ui-service", ORDERS, "instances now", (1280, 900), False),
                ("ui-dark", "", "shipping", (1280, 860), True),
                ("ui-narrow", ORDERS, "instances now", (390, 844), False),
            ):
                browser.emulate(*size, dark=dark)
                picture(browser, name, place, seen)
            browser.emulate(1280, 400)
            nacos.terminate()
            picture(browser, "ui-outage", "#/services?sort=-age", "nacos-proxy doctor")


if __name__ == "__main__":
    main()

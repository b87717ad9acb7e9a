"""The page at `/ui` in a real browser: what a person does, and then sees."""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import quote

import httpx
import pytest

from tests.helpers.axe import findings
from tests.helpers.browser import Browser
from tests.helpers.live import ProxyProcess, free_port

pytestmark = pytest.mark.timeout(300)

NASTY = "<script>window.got=1</script>"
IMAGE = '"><img src=x onerror="window.got=1">'
ORDERS = "#/services/public/DEFAULT_GROUP/orders"
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
NAMES = "return [...document.querySelectorAll('.services .name')].map(link => link.innerText)"
TEXT = "return document.body.innerText.includes(arguments[0])"
GONE = "return !document.body.innerText.includes(arguments[0])"


class Site:
    """A proxy in front of another one, which is its Nacos, and the browser at the proxy's page."""

    def __init__(self, nacos: ProxyProcess, proxy: ProxyProcess, browser: Browser) -> None:
        self.nacos, self.proxy, self.browser = nacos, proxy, browser

    def register(self, service: str, ip: str, *, elsewhere: bool = False, **fields: Any) -> None:
        """`group` and `namespace` are the service's, `elsewhere`: at Nacos itself."""
        query = {name: fields.pop(name) for name in ("namespace", "group") if name in fields}
        url = f"{(self.nacos if elsewhere else self.proxy).url}/api/v1/services/{service}/instances"
        body = {"ip": ip, "port": 80, "ephemeral": False, **fields}
        httpx.post(url, params=query, json=body, trust_env=False).raise_for_status()

    def get(self, path: str) -> Any:
        return httpx.get(self.proxy.url + path, trust_env=False).raise_for_status().json()

    def open(self, place: str = "") -> Browser:
        """The page, loaded anew, once it has drawn a view."""
        self.browser.go("about:blank")
        self.browser.go(f"{self.proxy.url}/ui{place}")
        self.browser.until("return document.querySelector('h1') && !document.body.innerText.includes('Asking')")
        return self.browser

    def change(self, action: str, address: str) -> None:
        """Clicks a change of an instance, which opens the dialog."""
        css = f"button[data-change={action}][data-address='{address}']"
        self.browser.until("return document.querySelector(arguments[0])", css)
        self.browser.click(css)

    def confirm(self) -> None:
        self.browser.click("dialog .primary")
        self.browser.until("return !document.querySelector('dialog').open")


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProxyProcess, ProxyProcess]]:
    with ProxyProcess() as nacos:
        with ProxyProcess("--upstream", nacos.url, "--push", "off", "--dns", f"127.0.0.1:{free_port()}") as proxy:
            yield nacos, proxy


@pytest.fixture
def site(proxies: tuple[ProxyProcess, ProxyProcess], browser: Browser) -> Iterator[Site]:
    """Its page must load only from the proxy, and leave nothing on the console."""
    browser.emulate(1280, 900)
    site = Site(*proxies, browser)
    yield site
    assert [url for url in browser.asked() if not url.startswith(f"{site.proxy.url}/")] == []
    assert browser.complaints() == []
    browser.go("about:blank")


def view_is_as_wide_as_the_window(browser: Browser) -> bool:
    return bool(browser.run("return document.documentElement.scrollWidth <= innerWidth"))


# the services


def test_page_is_where_a_browser_is_sent(site: Site) -> None:
    site.register("orders", "10.0.0.1")
    browser = site.browser
    for path in ("/", "/nacos"):
        browser.go(site.proxy.url + path)
        browser.until(NAMES)
        assert browser.url == f"{site.proxy.url}/ui"
    host = site.get("/status")["host"]
    assert browser.run("return document.title") == f"Services · {host} · nacos-proxy"


def test_page_shows_totals_and_each_service(site: Site) -> None:
    site.register("orders", "10.0.0.1")
    site.register("totals", "10.0.0.1")
    site.register("totals", "10.0.0.2", healthy=False)
    browser = site.open("#/services?search=totals")
    (row,) = browser.until("return [...document.querySelectorAll('.services tbody tr')].map(row => row.innerText)")
    assert row.split() == ["totals", "DEFAULT_GROUP", "public", "fresh", *row.split()[4:6], "1", "2", "0"]
    summary = site.get("/status")["summary"]
    values = browser.run("return [...document.querySelectorAll('.tile .value')].map(value => value.innerText)")
    assert values[:2] == [str(summary["services"]), f"{summary['healthy']} of {summary['instances']}"]
    for _ in range(50):
        site.get("/api/v1/services/orders")
    tile = "return [...document.querySelectorAll('.tile')].find(tile => tile.innerText.startsWith('Reads')).innerText"
    browser.until(f"{tile}.match(/^Reads a second\\n[\\d.]+\\n\\d+ % from memory/)")


def test_search_and_filters_are_kept_in_the_address(site: Site) -> None:
    site.register("orders", "10.0.0.1")
    site.register("kept-a", "10.0.0.1")
    site.register("kept-b", "10.0.0.1", group="legacy", healthy=False)
    site.register("kept-c", "10.0.0.1", namespace="dev")
    browser = site.open()
    browser.fill("#filter-search", "KEPT")
    browser.until(f"{NAMES}.join() === 'kept-a,kept-b,kept-c'")
    assert browser.until("return document.querySelector('#announcer').innerText") == "3 services found"
    browser.run("document.querySelector('#filter-search').blur()")
    for name, value, left in (
        ("condition", "unhealthy", "kept-b"),
        ("namespace", "dev", "kept-c"),
        ("group", "legacy", "kept-b"),
    ):
        browser.click(f"#filter-{name} option[value={value}]")
        browser.until(f"{NAMES}.join() === arguments[0]", left)
        assert f"{name}={value}" in browser.url
        address = browser.url
        browser.go("about:blank")
        browser.go(address)
        browser.until(f"{NAMES}.join() === arguments[0]", left)
        shown = (
            "return [...document.querySelectorAll('.filters [name]')].map(field => field.value).filter(value => value)"
        )
        assert browser.run(shown) == ["KEPT", value]
        browser.click(f"#filter-{name} option[value='']")
        browser.until(f"{NAMES}.length === 3")
    browser.fill("#filter-search", "no such name")
    browser.until(TEXT, "No service is like that")
    browser.click(".empty a")
    browser.until(f"{NAMES}.length > 3")


def test_columns_sort_by_a_click(site: Site) -> None:
    for number, name in enumerate(("sorted-a", "sorted-b", "sorted-c")):
        for host in range(1 + (number + 1) % 3):
            site.register(name, f"10.0.0.{host + 1}")
    browser = site.open("#/services?search=sorted")
    sorting = "return [...document.querySelectorAll('th[aria-sort]')].map(th => [th.innerText, th.ariaSort])"
    assert browser.until(NAMES) == ["sorted-a", "sorted-b", "sorted-c"]
    assert browser.run(sorting) == [["Service", "ascending"]]
    for clicks, order, direction in ((1, "bac", "descending"), (2, "cab", "ascending")):
        browser.until("document.querySelectorAll('th a')[5].click(); return true")
        browser.until(f"{NAMES}.map(name => name.at(-1)).join('') === arguments[0]", order)
        assert browser.run(sorting) == [["Instances", direction]], clicks


def test_pages_of_many_services_have_fifty_rows(site: Site) -> None:
    for number in range(60):
        site.register(f"many-{number:03}", "10.0.0.1")
    browser = site.open("#/services?search=many")
    assert len(browser.until(NAMES)) == 50
    assert "1 to 50 of 60" in browser.text
    browser.until("document.querySelector('.pager a').click(); return true")
    browser.until(f"{NAMES}[0] === 'many-050'")
    assert "51 to 60 of 60" in browser.text
    assert "page=1" in browser.url
    browser.run("history.back()")
    browser.until(f"{NAMES}[0] === 'many-000'")


# a service


def test_service_shows_its_instances_and_where_they_came_from(site: Site) -> None:
    site.register("shown", "10.0.0.1", metadata={"zone": "a", "version": "2.1"}, weight=2.5)
    site.register("shown", "fd00::2", elsewhere=True, cluster="spare", healthy=False)
    browser = site.open("#/services?search=shown")
    browser.click(".services .name")
    browser.until("return document.querySelectorAll('.instances tbody tr').length === 2")
    cells = """return [...document.querySelectorAll('.instances tbody tr')].map(
        row => [...row.cells].slice(0, 5).map(cell => cell.innerText.trim()))"""
    assert sorted(browser.run(cells)) == [
        ["10.0.0.1:80\nDEFAULT, persistent", "healthy", "2.5", "version=2.1\nzone=a", "a client of this proxy"],
        ["[fd00::2]:80\nspare, persistent", "unhealthy", "1", "", "elsewhere"],
    ]
    assert browser.run("return document.activeElement.innerText") == "shown"
    assert browser.url.endswith("#/services/public/DEFAULT_GROUP/shown")


def test_service_follows_its_changes(site: Site) -> None:
    site.register("moving", "10.0.0.1")
    browser = site.open("#/services/public/DEFAULT_GROUP/moving")
    browser.until(TEXT, "1 instance now")
    site.register("moving", "10.0.0.2")
    browser.until(TEXT, "+ 10.0.0.2:80 (DEFAULT), weight 1")
    browser.until(TEXT, "Instances (2)")
    site.register("moving", "10.0.0.2", weight=7)
    browser.until(TEXT, "10.0.0.2:80 (DEFAULT): weight 1 → 7")
    url = f"{site.proxy.url}/api/v1/services/moving/instances/10.0.0.2:80?ephemeral=false"
    httpx.delete(url, trust_env=False).raise_for_status()
    browser.until(TEXT, "- 10.0.0.2:80 (DEFAULT)")
    assert "by a write through this proxy" in browser.text


def test_lines_to_ask_for_a_service_work_and_are_copied(site: Site) -> None:
    """Also those for a name that means something to a shell."""
    name, key = "it's$HOME;a&b", {"group": "PAY_GROUP", "namespace": "dev"}
    site.register("payments", "10.0.0.7", **key)
    site.register(quote(name), "10.0.0.7", **key)
    browser = site.open(f"#/services/dev/PAY_GROUP/{quote(name)}")
    lines = "return [...document.querySelectorAll('.command code')].map(code => code.innerText)"
    curl = browser.until(f"{lines}.length > 0 && {lines[7:]}")[0]
    asked = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=60)
    assert asked.stdout.strip() == "10.0.0.7:80", curl
    site.open("#/services/dev/PAY_GROUP/payments")
    found = browser.until(f"{lines}.length > 0 && {lines[7:]}")
    asked = subprocess.run(found[0], shell=True, capture_output=True, text=True, timeout=60)
    assert asked.stdout.strip() == "10.0.0.7:80"
    key_in_python = 'namespace_id="dev", group_name="PAY_GROUP"'
    assert found[2] == f'NacosClient("{site.proxy.url[7:]}").list_naming_instance("payments", {key_in_python})'
    dig = shlex.split(found[-1])
    assert (dig[0], dig[-1]) == ("dig", "payments.PAY-GROUP.dev.nacos")
    browser.click(".command button")
    browser.until("return document.querySelector('.command button').innerText === 'Copied'")
    assert browser.run("return getSelection().toString()") == found[0]


def test_line_for_dns_finds_the_service(site: Site) -> None:
    import dns.message
    import dns.query

    site.register("orders", "10.0.0.1")
    browser = site.open(ORDERS)
    line = browser.until("return [...document.querySelectorAll('.command code')].at(-1).innerText")
    _, server, _, port, name = shlex.split(line)
    answer = dns.query.udp(dns.message.make_query(name, "A"), server[1:], timeout=30, port=int(port))
    assert "10.0.0.1" in str(answer.answer[0])


def test_service_that_nobody_registered_says_so(site: Site) -> None:
    browser = site.open("#/services/public/DEFAULT_GROUP/nobody")
    browser.until(TEXT, "No instance is registered")


def test_hidden_page_ends_its_stream(site: Site) -> None:
    site.register("orders", "10.0.0.1")
    browser = site.open(ORDERS)
    browser.until(TEXT, "now")
    hide = """Object.defineProperty(document, 'hidden', {configurable: true, get: () => arguments[0]});
        document.dispatchEvent(new Event('visibilitychange'));"""
    streams = (
        "return fetch('/status').then(reply => reply.json()).then(shown => shown.subscribers.streams === arguments[0])"
    )
    assert browser.until(streams, 1)
    browser.run(hide, True)
    assert browser.until(streams, 0)
    browser.run(hide, False)
    assert browser.until(streams, 1)


# changes


def test_disable_and_enable_ask_before_they_act(site: Site) -> None:
    for elsewhere, address in ((False, "10.0.0.1"), (True, "10.0.0.2")):
        site.register("switched", address, elsewhere=elsewhere)
    site.get("/api/v1/services/switched")
    browser = site.open("#/services/public/DEFAULT_GROUP/switched")
    site.change("disable", "10.0.0.2:80")
    assert "Disable: 10.0.0.2:80" in browser.text
    browser.press(ESCAPE)
    browser.until("return !document.querySelector('dialog').open")
    site.change("disable", "10.0.0.2:80")
    browser.click("dialog [data-action=close]")
    assert len(site.get("/api/v1/services/switched")["hosts"]) == 2
    for address in ("10.0.0.1:80", "10.0.0.2:80"):
        site.change("disable", address)
        site.confirm()
        browser.until(TEXT, f"Disable: done for {address}")
    assert site.get("/api/v1/services/switched")["hosts"] == []
    site.open("#/services/public/DEFAULT_GROUP/switched")  # this tab remembers those that Nacos leaves out of its lists
    for address in ("10.0.0.1:80", "10.0.0.2:80"):
        site.change("enable", address)
        site.confirm()
        browser.until(TEXT, f"Enable: done for {address}")
    assert len(site.get("/api/v1/services/switched")["hosts"]) == 2
    browser.until("return document.querySelectorAll('[data-change=disable]').length === 2")


def test_weight_is_changed_with_the_keyboard_alone(site: Site) -> None:
    site.register("weighed", "10.0.0.1")
    browser = site.open("#/services/public/DEFAULT_GROUP/weighed")
    browser.until("const found = document.querySelector('[data-change=weight]'); found?.focus(); return found")
    browser.press(ENTER)
    browser.until("return document.querySelector('dialog').open && document.activeElement.name === 'value'")
    browser.run("document.activeElement.select()")
    browser.press("12.5" + ENTER)
    browser.until(TEXT, "weight 1 → 12.5")
    browser.until("return document.querySelector('.instances td.number').innerText === '12.5'")
    assert browser.run("return document.activeElement.dataset.change") == "weight"  # where it was before


def test_drain_shows_its_end_the_error_of_a_wrong_wait_and_can_be_cancelled(site: Site) -> None:
    site.register("drained", "10.0.0.1")
    site.register("drained", "10.0.0.2", elsewhere=True)
    browser = site.open("#/services/public/DEFAULT_GROUP/drained")
    site.change("drain", "10.0.0.1:80")
    assert (
        browser.run("return document.querySelectorAll('[data-change=drain]').length") == 2
    )  # the dialog's is the other
    browser.fill("#dialog-value", "a while")
    browser.click("dialog .primary")
    browser.until(TEXT, "Param 'wait' is illegal, it must be a time like 30s")
    browser.complaints()  # drops the one about the 400
    browser.fill("#dialog-value", "60s")
    site.confirm()
    browser.until(TEXT, "draining")
    browser.until("return / s left/.test(document.body.innerText)")
    site.change("undrain", "10.0.0.1:80")
    site.confirm()
    browser.until(GONE, "draining")
    assert [host["ip"] for host in site.get("/api/v1/services/drained")["hosts"]] == ["10.0.0.1", "10.0.0.2"]
    browser.until("return document.querySelector('[data-change=drain]')")
    site.change("drain", "10.0.0.1:80")
    browser.fill("#dialog-value", "10ms")
    site.confirm()
    browser.until(
        "return ![...document.querySelectorAll('.instances code')].some(code => code.innerText === '10.0.0.1:80')"
    )
    browser.complaints()  # drops the one about the 409 with which the first drain ended


def test_maintenance_of_an_instance_that_the_proxy_checks(site: Site) -> None:
    site.register("kept-up", "127.0.0.1", ephemeral=True, managed={"interval": "30s", "check": {"ttl": "60s"}})
    browser = site.open("#/services/public/DEFAULT_GROUP/kept-up")
    browser.until(TEXT, "this proxy, which checks it")
    site.change("maintain", "127.0.0.1:80")
    browser.fill("#dialog-value", "disk swap")
    site.confirm()
    browser.until(TEXT, "disk swap")
    site.open("#/proxy")
    assert "Out of traffic (1)" in browser.text and "disk swap" in browser.text
    browser.click("#view td a")
    site.change("restore", "127.0.0.1:80")
    site.confirm()
    browser.until(GONE, "disk swap")


# in Nacos


def test_services_of_nacos_that_nobody_asked_for_are_listed_and_opened(site: Site) -> None:
    for number in range(55):
        site.register(f"far-{number:02}", "10.0.0.1", elsewhere=True, group="far")
    browser = site.open("#/nacos")
    browser.fill("#nacos-group", "far")
    browser.press(ENTER)
    browser.until(TEXT, "1 to 50 of 55")
    assert browser.url.endswith("#/nacos?group=far")
    browser.until("document.querySelector('.pager a').click(); return true")
    browser.until(TEXT, "51 to 55 of 55")
    browser.click("td .name")
    browser.until(TEXT, "Instances (1)")
    assert "10.0.0.1:80" in browser.text
    site.open("#/nacos?namespace=empty")
    browser.until(TEXT, "Nacos lists no service there")
    site.open("#/nacos?namespace=a%20b%2F")
    browser.until(TEXT, "namespace")
    browser.complaints()  # drops the one about the 400


# faults


def test_page_says_what_is_wrong_keeps_the_last_state_and_recovers(browser: Browser) -> None:
    with ProxyProcess() as nacos, ProxyProcess("--upstream", nacos.url, "--push", "off") as proxy:
        site = Site(nacos, proxy, browser)
        site.register("orders", "10.0.0.1")
        site.open()
        assert browser.until("return document.querySelector('#health').innerText").startswith("Ready: upstream up for ")
        nacos.terminate()
        browser.until("return document.querySelector('#health').innerText.startsWith('Degraded: upstream down for ')")
        assert "Reads are answered from memory meanwhile." in browser.text
        assert browser.until("return document.querySelector('#announcer').innerText").startswith("degraded. upstream: ")
        proxy.terminate()
        browser.until(TEXT, "This proxy does not answer: no connection")
        assert browser.run(NAMES) == ["orders"]
        browser.until("return getComputedStyle(document.querySelector('#view')).opacity < 1")
        browser.complaints()  # drops those about refused connections
        proxy.start()
        browser.until(GONE, "This proxy does not answer: no connection")
        assert browser.run(NAMES) == ["orders"]


class _Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        gateway = self.server
        assert isinstance(gateway, Gateway)
        reply = httpx.get(gateway.target + self.path, trust_env=False)
        media, body = reply.headers["content-type"], reply.content
        length = len(body)
        if self.path.startswith("/status") and gateway.fault:
            if gateway.fault == "cut":
                body = body[: length // 2]
            else:
                media, body = gateway.fault
                length = len(body)
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Gateway(ThreadingHTTPServer):
    """Before a proxy. With a fault it cuts the answers of /status in the middle, or answers something else itself."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Gateway)
        self.target = target
        self.fault: Literal["", "cut"] | tuple[str, bytes] = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def gateway(proxies: tuple[ProxyProcess, ProxyProcess]) -> Iterator[Gateway]:
    with Gateway(proxies[1].url) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("fault", "said", "complaints"),
    [
        pytest.param("cut", "This proxy does not answer: the answer broke off", None, id="cut in the middle"),
        pytest.param(
            ("text/html", b"<!doctype html><h1>Sign in</h1>"),
            "This proxy does not answer: what answers is not JSON",
            0,
            id="HTML",
        ),
        pytest.param(
            ("application/json", b'{"summary": {}, "warnings": []}'),
            "This page cannot show what the proxy answers",
            1,
            id="JSON of something else",
        ),
    ],
)
def test_page_goes_on_after_an_answer_that_it_cannot_read(
    site: Site, gateway: Gateway, fault: Any, said: str, complaints: int | None
) -> None:
    site.register("orders", "10.0.0.1")
    browser = site.browser
    browser.go(f"{gateway.url}/ui#/services?search=orders")
    browser.until(f"{NAMES}.includes('orders')")
    gateway.fault = fault
    browser.until(TEXT, said)
    assert "orders" in browser.run(NAMES)
    browser.until("return getComputedStyle(document.querySelector('#view')).opacity < 1")
    browser.run("performance.clearResourceTimings()")
    browser.until("return performance.getEntriesByType('resource').length > 1")  # it asks again, with the same result
    assert said in browser.text
    found = browser.complaints()
    assert complaints is None or len(found) == complaints, found
    gateway.fault = ""
    browser.until(GONE, said)
    assert browser.run("return document.querySelector('#health').innerText.startsWith('Ready')")
    assert "orders" in browser.run(NAMES)
    browser.complaints()  # drops those about an answer that was cut
    browser.asked()  # drops those to the gateway


def test_address_that_means_nothing_shows_the_services_or_the_error(site: Site) -> None:
    browser = site.browser
    for place in ("#/nowhere/%E0%A4%A", "#/toString", "#/service", "#/services/a/b", "#"):
        site.open(place)
        assert browser.run("return document.querySelector('h1').innerText") == "Services", place
    site.open("#/services?condition=ill")
    browser.until(TEXT, "Param 'condition' is illegal")
    browser.complaints()  # drops the one about the 400


# tokens


def test_page_asks_for_a_token_and_offers_what_it_allows(browser: Browser) -> None:
    with ProxyProcess(env={"NACOS_PROXY_TOKENS": "read:secret-of-reader,write:secret-of-writer"}) as proxy:
        site = Site(proxy, proxy, browser)
        body = {"ip": "10.0.0.1", "port": 80, "ephemeral": False}
        writer = {"Authorization": "Bearer secret-of-writer"}
        httpx.post(f"{proxy.url}/api/v1/services/orders/instances", json=body, headers=writer, trust_env=False)
        site.open()
        assert "This proxy asks for a token" in browser.text
        assert findings(browser) == []
        for text, seen in (("wrong", "this API token is unknown to the proxy"), ("secret-of-reader", "orders")):
            browser.fill("#token", text)
            browser.press(ENTER)
            browser.until(TEXT, seen)
        site.open(ORDERS)  # this tab keeps the token
        browser.until(TEXT, "1 instance now")
        assert browser.run("return document.querySelectorAll('[data-change]').length") == 0
        assert "$TOKEN" in browser.text and "secret" not in browser.text
        browser.click("#forget")
        browser.until(TEXT, "This proxy asks for a token")

        for name in ("accessToken", "access_token"):
            browser.run("sessionStorage.clear()")
            browser.go(f"{proxy.url}/?{name}=secret-of-writer")
            browser.until(NAMES)
            assert browser.url == f"{proxy.url}/ui"
        site.open(ORDERS)
        site.change("disable", "10.0.0.1:80")
        site.confirm()
        browser.until(TEXT, "Disable: done")
        browser.complaints()  # drops those about 401


def test_page_shows_what_nacos_refuses_if_only_nacos_knows_the_rights(browser: Browser) -> None:
    tokens = {"NACOS_PROXY_TOKENS": "read:secret-of-reader,write:secret-of-writer"}
    with ProxyProcess(env=tokens) as nacos, ProxyProcess("--upstream", nacos.url, "--auth", "client") as proxy:
        body = {"ip": "10.0.0.1", "port": 80, "ephemeral": False}
        writer = {"Authorization": "Bearer secret-of-writer"}
        url = f"{nacos.url}/api/v1/services/orders/instances"
        httpx.post(url, json=body, headers=writer, trust_env=False).raise_for_status()
        browser.go("about:blank")
        browser.go(f"{proxy.url}/?accessToken=secret-of-reader")
        site = Site(nacos, proxy, browser)
        site.open(ORDERS)
        site.change("disable", "10.0.0.1:80")
        browser.click("dialog .primary")
        browser.until("return document.querySelector('dialog .error').innerText")
        assert "lacks the 'write' right" in browser.run("return document.querySelector('dialog').innerText")
        browser.complaints()  # drops the one about the 403


# what others wrote


def test_text_of_clients_stays_text(site: Site) -> None:
    """Names and metadata come from clients, and the address from whoever made the link."""
    name = "<img/src=x/onerror=window.got=1>'\"&lt;"
    site.register(quote(name, safe=""), "10.0.0.2", group="marked", metadata={"x": NASTY, IMAGE: NASTY})
    browser = site.open("#/services?search=onerror")
    assert browser.until(NAMES) == [name]
    browser.click(".services .name")
    browser.until(TEXT, f"{IMAGE}={NASTY}")
    browser.until(TEXT, f"x={NASTY}")
    browser.until(TEXT, "1 instance now")
    site.register(quote(name, safe=""), "10.0.0.3", group="marked", metadata={IMAGE: NASTY})
    browser.until(TEXT, "+ 10.0.0.3:80")
    browser.until(
        "document.querySelector('[data-change=weight]').click(); return document.querySelector('dialog').open"
    )
    assert name in browser.text
    site.open("#/nacos?group=marked")
    browser.until(TEXT, name)
    for view in ("services", "nacos", f"services/{quote(NASTY, safe='')}/{quote(IMAGE, safe='')}"):
        site.open(
            f"#/{view}/{quote(IMAGE, safe='')}?search={quote(IMAGE)}&namespace={quote(NASTY)}&group={quote(IMAGE)}"
        )
    assert browser.run(
        "return window.got === undefined && document.querySelectorAll('main img, main script').length === 0"
    )
    browser.complaints()  # drops those about names that Nacos does not allow


def test_content_security_policy_blocks_an_injected_script(site: Site) -> None:
    """Even if the page wrote HTML, its policy runs no script."""
    browser = site.open()
    browser.run("document.body.insertAdjacentHTML('beforeend', arguments[0])", '<img src="/x" onerror="window.got=1">')
    browser.run("const s = document.createElement('script'); s.textContent = 'window.got=1'; document.body.append(s);")
    assert browser.run("return window.got === undefined")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_page_of_another_origin_cannot_change_an_instance(site: Site, elsewhere: str) -> None:
    site.register("orders", "10.0.0.1")
    site.browser.go(elsewhere)
    ask = "return fetch(arguments[0], arguments[1]).then(reply => reply.type, error => error.name)"
    url = f"{site.proxy.url}/api/v1/services/orders/instances/10.0.0.1:80"
    how = {"method": "PATCH", "headers": {"Content-Type": "application/json"}, "body": '{"enabled": false}'}
    assert site.browser.run(ask, url, how) == "TypeError"
    assert site.browser.run(ask, f"{url}/drain", {"method": "POST", "mode": "no-cors"}) == "opaque"
    assert [host["enabled"] for host in site.get("/api/v1/services/orders")["hosts"]] == [True]
    site.browser.asked()
    site.browser.complaints()  # drops those about CORS


# for everybody


def test_keyboard_reaches_the_content_and_focus_stays(site: Site) -> None:
    site.register("orders", "10.0.0.1")
    browser = site.open()
    browser.press(TAB + ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    browser.until("document.querySelector('#filter-search').focus(); return true")
    watch = "{subtree: true, childList: true, characterData: true}"
    browser.run(f"window.drawn = 0; new MutationObserver(() => drawn++).observe(document.body, {watch})")
    browser.press("ord")
    browser.until("return drawn > 2 && location.hash.includes('search=ord')")
    assert browser.run("return [document.activeElement.id, document.activeElement.value]") == ["filter-search", "ord"]


@pytest.mark.parametrize("place", ["", ORDERS, "#/nacos", "#/proxy"])
def test_page_is_as_wide_as_a_phone(site: Site, place: str) -> None:
    site.register("a-long-name-" * 8, "10.0.0.1", metadata={"long": "x" * 400})
    site.register("orders", "10.0.0.1", metadata={"long": "x" * 400})
    site.browser.emulate(390, 844)
    site.open(place)
    assert view_is_as_wide_as_the_window(site.browser)


@pytest.mark.parametrize("width", [390, 800])
def test_instances_and_their_buttons_need_no_scrolling_sideways(site: Site, width: int) -> None:
    site.register("orders", "2001:db8:85a3::8a2e:370:7334", metadata={"zone": "a", "long": "x" * 100})
    site.browser.emulate(width, 844)
    site.open(ORDERS)
    site.browser.until("return document.querySelector('[data-change=drain]')")
    table = "document.querySelector('.scroll')"
    assert site.browser.run(f"return {table}.scrollWidth <= {table}.clientWidth")


@pytest.mark.parametrize("place", ["", ORDERS, "#/nacos", "#/proxy"])
def test_axe_finds_nothing(site: Site, place: str) -> None:
    site.register("orders", "10.0.0.1", metadata={"zone": "a"})
    site.register("orders", "10.0.0.2", healthy=False)
    for width, dark in ((1280, False), (1280, True), (390, False)):
        site.browser.emulate(width, 900, dark=dark)
        site.open(place)
        if place == ORDERS:
            site.browser.until(TEXT, "10.0.0.2:80")
        assert findings(site.browser) == [], (width, dark)


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_in_a_dialog(site: Site, dark: bool) -> None:
    site.register("orders", "10.0.0.1")
    site.browser.emulate(1280, 900, dark=dark)
    site.open(ORDERS)
    site.change("weight", "10.0.0.1:80")
    assert findings(site.browser) == []

"""The files of the page at `/ui`."""

from __future__ import annotations

import re

import pytest

from nacos_proxy.frontends.operations.page import CONTENT_SECURITY_POLICY, PATHS
from tests.unit.frontends.conftest import World

FILES = sorted(PATHS - {"/", "/ui/"})
SCRIPTS = [path for path in FILES if path.endswith(".js")]


@pytest.mark.parametrize("path", FILES)
async def test_page_files_are_protected_and_revalidated(world: World, path: str) -> None:
    answer = await world.ask("GET", path)
    assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-cache", "no-referrer")
    again = await world.ask("GET", path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    head = await world.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")


async def test_page_names_only_its_own_files(world: World) -> None:
    html = (await world.ask("GET", "/ui")).body.decode()
    loaded = re.findall(r'(?:src|href)="(/ui/[^"]+)"', html)
    for script in SCRIPTS:
        loaded += re.findall(r'from "([^"]+)"', (await world.ask("GET", script)).body.decode())
    assert set(loaded) == PATHS - {"/", "/ui", "/ui/", "/ui/index.html"}
    assert not re.search(r"<style|<script>|style=|onclick|https?:", html)


async def test_page_script_writes_no_html(world: World) -> None:
    """Text of clients becomes text nodes."""
    for script in SCRIPTS:
        code = (await world.ask("GET", script)).body.decode()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function", code
        )


def test_content_security_policy_allows_nothing_inline() -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY and CONTENT_SECURITY_POLICY.startswith("default-src 'none';")


async def test_page_is_where_the_root_leads_with_the_token(world: World) -> None:
    plain, with_token = await world.ask("GET", "/"), await world.ask("GET", "/?accessToken=a%20b")
    assert (plain.status, plain.headers["location"]) == (302, "/ui")
    assert with_token.headers["location"] == "/ui?accessToken=a%20b"


@pytest.mark.parametrize("path", ["/ui/x", "/ui/page.py", "/ui/..%2Fpage.py", "/ui/%2Fetc%2Fpasswd"])
async def test_page_has_no_other_files(world: World, path: str) -> None:
    assert (await world.ask("GET", path)).status == 404

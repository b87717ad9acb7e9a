"""What operators are shown."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from prometheus_client import generate_latest

from nacos_proxy.catalog.cache import Cache, CachePolicy
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.frontends.auth import UNAUTHENTICATED
from nacos_proxy.frontends.operations.endpoints import OperatorView, readiness, status_json
from nacos_proxy.frontends.rest.routing import PROVIDED
from nacos_proxy.model.calls import Register
from nacos_proxy.model.errors import Unreachable
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import settle, turns_during
from tests.unit.frontends.conftest import World

NASTY = "<script>alert(1)</script>\"'&"


async def lose_upstream(world: World) -> None:
    world.registry.script = lambda call: Unreachable("connection refused", arrived=False)
    for _ in range(3):
        world.agent.refresh(KEY)
        await settle()


async def test_healthz_is_always_200(world: World) -> None:
    await lose_upstream(world)
    answer = await world.ask("GET", "/healthz")
    assert (answer.status, answer.json(), answer.headers["cache-control"]) == (200, {"status": "ok"}, "no-store")


async def test_readyz_is_200_while_reads_can_be_answered(world: World) -> None:
    assert (await world.ask("GET", "/readyz")).json() == {"status": "ready", "reasons": []}
    await world.ask("GET", "/api/v1/services/orders")
    await lose_upstream(world)
    degraded = await world.ask("GET", "/readyz")
    assert (degraded.status, degraded.json()) == (
        200,
        {"status": "degraded", "reasons": ["upstream: connection refused"]},
    )


async def test_readyz_is_503_if_no_read_can_be_answered(world: World) -> None:
    await lose_upstream(world)
    answer = await world.ask("GET", "/readyz")
    assert (answer.status, answer.json()["status"], len(answer.json()["reasons"])) == (503, "unready", 2)


async def test_readiness_is_degraded_by_a_problem_that_does_not_affect_reads(world: World) -> None:
    sight = replace(
        world.operator_view,
        push=lambda: {"state": "lost"},
        disk=lambda: {"state": "failing", "reason": "no space left"},
    )
    assert readiness(sight) == ("degraded", ["push: lost", "disk: no space left"])
    late = replace(
        world.operator_view, polling=lambda: {"state": "late", "reason": "services wait 51 s for their turn"}
    )
    assert readiness(late) == ("degraded", ["polling: services wait 51 s for their turn"])
    world.agent.catalog.registrations.full = True
    world.events.close()
    status, reasons = readiness(world.operator_view)
    assert (status, [reason.partition(":")[0] for reason in reasons]) == ("degraded", ["registrations", "stopping"])


async def test_readiness_names_failed_background_work(world: World) -> None:
    sight = replace(world.operator_view, failing=lambda: {"disk": "OSError: no space left"})
    assert readiness(sight) == ("degraded", ["failing: disk: OSError: no space left"])


async def test_readiness_names_a_refused_login(world: World) -> None:
    sight = replace(world.operator_view, upstream=lambda: {"login": {"error": "the login as 'app' was refused"}})
    assert readiness(sight) == ("unready", ["login: the login as 'app' was refused", "cache: nothing is known yet"])
    await world.ask("GET", "/api/v1/services/orders")
    assert readiness(sight) == ("degraded", ["login: the login as 'app' was refused"])


async def test_readiness_names_nodes_that_are_down_and_is_degraded_by_more_than_half(world: World) -> None:
    def sight(*states: str) -> OperatorView:
        servers = [{"url": f"http://n{n}", "state": state, "error": "refused"} for n, state in enumerate(states)]
        return replace(world.operator_view, upstream=lambda: {"servers": servers})

    assert readiness(sight("up", "up", "up")) == ("ready", [])
    assert readiness(sight("up", "down", "up")) == ("ready", ["node http://n1: down: refused"])
    assert readiness(sight("up", "down")) == ("ready", ["node http://n1: down: refused"])
    assert readiness(sight("down", "down", "up"))[0] == "degraded"
    assert readiness(sight("down")) == ("ready", [])  # the upstream as a whole tells of the only one
    await world.ask("GET", "/api/v1/services/orders")
    await lose_upstream(world)
    assert readiness(sight("down", "down", "down")) == ("degraded", ["upstream: connection refused"])


async def test_status_shows_each_service_with_its_age_and_state(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance(), instance("10.0.0.2", healthy=False))
    stream = await world.start("/api/v1/events?service=orders")
    await world.clock.advance(4)
    shown = (await world.ask("GET", "/status")).json()
    assert (shown["version"], shown["uptimeSeconds"], shown["upstream"]["state"]) == ("1.2.3", 4.0, "up")
    assert shown["subscribers"] == {"streams": 1, "byClient": {"127.0.0.1": 1}}
    (row,) = shown["services"]
    assert row["service"] == "DEFAULT_GROUP@@orders"
    assert (row["state"], row["ageSeconds"], row["instances"], row["healthy"]) == ("fresh", 4.0, 2, 1)
    assert (row["subscribers"], row["watched"], row["error"]) == (1, True, None)
    await stream.leave()
    await lose_upstream(world)
    await world.clock.advance(20)
    lost = (await world.ask("GET", "/status?limit=1")).json()
    assert (lost["upstream"]["state"], lost["upstream"]["forSeconds"]) == ("down", 20.0)
    assert (lost["services"][0]["state"], lost["services"][0]["error"]) == ("stale", "connection refused")
    none = (await world.ask("GET", "/status?limit=0")).json()
    assert (none["services"], none["servicesTotal"]) == ([], 1)
    assert (await world.ask("GET", "/status?limit=x")).status == 400


async def test_status_pages_services_by_limit_and_offset(world: World) -> None:
    for name in "cab":
        await world.ask("GET", f"/api/v1/services/{name}")

    async def asked(query: str) -> tuple[list[str], int, int, bool]:
        shown = (await world.ask("GET", f"/status{query}")).json()
        names = [row["service"].partition("@@")[2] for row in shown["services"]]
        assert shown["servicesTotal"] == 3
        return names, shown["offset"], shown["limit"], shown["truncated"]

    assert await asked("") == (["a", "b", "c"], 0, 1000, False)
    assert await asked("?limit=2") == (["a", "b"], 0, 2, True)
    assert await asked("?limit=2&offset=2") == (["c"], 2, 2, True)
    assert (await world.ask("GET", "/status?offset=-1")).status == 400


async def test_status_of_many_services_lets_other_tasks_run(world: World) -> None:
    """With 10,000 services `/status` held everybody up for 0.3 s, `/metrics` and the page for 0.1 s."""
    for number in range(4_000):
        listed, now = snapshot(instance(), service=key(f"s{number}")), world.clock.now()
        world.agent.catalog.cache.accept(listed, now, "poll", requested_at=now)

    assert await turns_during(status_json(world.operator_view, 0)) == 1
    assert await turns_during(status_json(world.operator_view, 4000)) > 40
    assert await turns_during(world.operator_view.metrics.scrape(generate_latest)) > 4


async def test_metrics_are_text_that_prometheus_reads(world: World) -> None:
    await world.ask("GET", "/api/v1/services/orders")
    answer = await world.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert b'nacos_proxy_reads_total{outcome="miss"} 1.0' in answer.body
    openmetrics = await world.ask("GET", "/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert openmetrics.body.endswith(b"# EOF\n")
    for version in ("x.y", "9" * 5000):  # over which the library raises
        accept = f"application/openmetrics-text;version={version}"
        assert (await world.ask("GET", "/metrics", headers={"accept": accept})).status == 200


class Words(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_page_escapes_text_of_registered_instances(world: World) -> None:
    await world.ask("GET", "/api/v1/services/orders")
    await world.agent.write(Register(KEY, instance("<b>host", metadata={NASTY: NASTY, "zone": "北京"})))
    await lose_upstream(world)
    answer = await world.ask("GET", "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src" not in answer.headers["content-security-policy"]
    assert answer.headers["content-security-policy"].startswith("default-src 'none';")
    page = Words()
    page.feed(answer.body.decode())
    assert not page.tags & {"script", "b", "img", "iframe", "form"}
    for text in (NASTY, "<b>host", "北京", "connection refused", "orders", "DEFAULT_GROUP in public"):
        assert text in page.text


@pytest.mark.parametrize("name", ["accessToken", "access_token"])
async def test_page_links_carry_the_token(world: World, name: str) -> None:
    html = (await world.ask("GET", f"/?{name}=secret&limit=5")).body.decode()
    for path in ("/status", "/metrics"):
        assert f'href="{path}?{name}=secret"' in html
    assert "secret" not in (await world.ask("GET", "/", headers={name: "secret"})).body.decode()


@pytest.mark.parametrize("path", ["/status", "/metrics", "/", "/readyz"])
async def test_metrics_do_not_mark_services_as_used(world: World, path: str) -> None:
    cache = Cache(CachePolicy(max_services=2), PendingPolicy(), lambda: 0.5)
    world.agent.catalog.cache = cache
    for name in "ab":
        cache.accept(snapshot(instance(), service=key(name)), 0.0, "poll", requested_at=0.0)
    assert cache.lookup(key("a"), 0.0).snapshot is not None
    await world.ask("GET", path)
    cache.accept(snapshot(instance(), service=key("c")), 0.0, "poll", requested_at=0.0)
    assert sorted(entry.key.name for entry in cache.entries()) == ["a", "c"]


async def test_readyz_without_a_token_names_only_the_components(world: World) -> None:
    await world.ask("GET", "/api/v1/services/orders")
    servers = [
        {"url": f"http://10.0.0.{n}:8848", "state": state, "error": "locked\nhunter2"}
        for n, state in ((1, "down"), (2, "up"), (3, "up"))
    ]
    sight = replace(
        world.operator_view,
        upstream=lambda: {"servers": servers, "login": {"error": "denied\nappaccount is locked"}},
        failing=lambda: {"disk": "OSError: no space left"},
    )
    answer = await world.ask("GET", "/readyz", **{UNAUTHENTICATED: True, PROVIDED: {OperatorView: sight}})
    assert answer.json()["reasons"] == ["failing", "login", "node"]

"""What operators are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from nacos_proxy.catalog.cache import Cache, CachePolicy
from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.catalog.pending_writes import PendingPolicy
from nacos_proxy.catalog.registrations import CONNECTION
from nacos_proxy.frontends.auth import RIGHT, UNAUTHENTICATED
from nacos_proxy.frontends.operations.metrics import Metrics, Sources
from nacos_proxy.frontends.operations.status import OperatorView, Page, advice_on, readiness, status_json
from nacos_proxy.frontends.rest.routing import PROVIDED
from nacos_proxy.model.calls import Register
from nacos_proxy.model.errors import Unreachable
from nacos_proxy.runtime import spawn
from tests.helpers.build import KEY, instance, key, snapshot
from tests.helpers.clock import settle, turns_during
from tests.unit.frontends.conftest import World


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
    assert shown["host"] == "here"
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


@pytest.mark.parametrize(("more", "right"), [({}, "admin"), ({RIGHT: "read"}, "read"), ({RIGHT: None}, None)])
async def test_status_shows_what_the_token_of_the_request_allows(
    world: World, more: dict[str, str], right: str
) -> None:
    assert (await world.ask("GET", "/status", **more)).json()["right"] == right


async def test_status_counts_answers_that_the_fast_path_repeated_as_reads_and_hits(world: World) -> None:
    await world.ask("GET", "/api/v1/services/orders")
    metrics = Metrics(Sources(world.agent, "1.2.3", reads=lambda: {"hit": 40}))
    shown = await status_json(replace(world.operator_view, metrics=metrics), Page(0))
    assert (shown["summary"]["reads"], shown["summary"]["hits"]) == (41, 40)


async def test_service_status_shows_every_instance_and_where_it_came_from(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance("10.0.0.9"))
    await world.agent.read(KEY)
    spec = CheckSpec.parse({"interval": "5s", "check": {"ttl": "60s"}})
    registrations = world.agent.catalog.registrations
    for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"):
        await world.agent.write(Register(KEY, instance(ip)))
    checks = {"10.0.0.2": CONNECTION, "10.0.0.3": spec.dump(), "10.0.0.4": {**spec.dump(), "file": "a.toml"}}
    for ip, check in checks.items():
        found = registrations.find(KEY, ip, 80)
        assert found is not None
        found.check = check
    registrations.record_write(Register(KEY, instance("10.0.0.5", enabled=False)), world.clock.now())
    shown = (await world.ask("GET", "/status/orders")).json()
    assert (shown["service"], shown["state"], shown["instances"]) == ("DEFAULT_GROUP@@orders", "fresh", 5)
    assert [(host["ip"], host["listed"], host["enabled"], host["origin"]) for host in shown["hosts"]] == [
        ("10.0.0.1", True, True, "client"),
        ("10.0.0.2", True, True, "connection"),
        ("10.0.0.3", True, True, "check"),
        ("10.0.0.4", True, True, "file"),
        ("10.0.0.9", True, True, "elsewhere"),
        ("10.0.0.5", False, False, "client"),
    ]


async def test_service_status_shows_drains_and_asks_nobody(world: World) -> None:
    await world.agent.read(KEY)
    await world.agent.write(Register(KEY, instance("10.0.0.1")))
    call = spawn(world.ask("POST", "/api/v1/services/orders/instances/10.0.0.1:80/drain"), name="drain")
    await world.clock.advance(5)
    (host,) = (await world.ask("GET", "/status/orders")).json()["hosts"]
    assert (host["ip"], host["enabled"], host["drain"]["secondsLeft"]) == ("10.0.0.1", False, 15.0)
    await world.clock.advance(15)
    assert call.result().status == 200
    asked = len(world.registry.calls)
    unread = (await world.ask("GET", "/status/g@@unread?namespace=dev")).json()
    assert (unread["service"], unread["namespaceId"], unread["state"]) == ("g@@unread", "dev", "missing")
    assert unread["hosts"] == [] and len(world.registry.calls) == asked
    assert world.agent.catalog.cache.get(key("unread", "g", "dev")) is None
    assert (await world.ask("GET", "/status/a@@b@@c")).status == 400


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


async def test_status_shows_the_services_that_a_filter_chooses_in_the_order_asked_for(world: World) -> None:
    sick = instance(healthy=False)
    world.shelf.services |= {
        key("orders"): snapshot(instance(), instance("10.0.0.2")),
        key("orders-old", "legacy"): snapshot(sick, service=key("orders-old", "legacy")),
        key("stock", namespace="dev"): snapshot(service=key("stock", namespace="dev")),
    }
    for path in ("orders", "legacy@@orders-old", "stock?namespace=dev"):
        await world.ask("GET", f"/api/v1/services/{path}")

    async def asked(query: str) -> list[str]:
        shown = (await world.ask("GET", f"/status?{query}")).json()
        assert (shown["servicesTotal"], shown["servicesFound"]) == (3, len(shown["services"]))
        return [row["service"].partition("@@")[2] for row in shown["services"]]

    assert await asked("search=ORDERS") == ["orders", "orders-old"]
    assert await asked("search=legacy") == ["orders-old"]
    assert await asked("namespace=dev") == ["stock"]
    assert await asked("group=legacy") == ["orders-old"]
    assert await asked("condition=unhealthy") == ["orders-old"]
    assert await asked("condition=empty") == ["stock"]
    assert await asked("condition=fresh&sort=-instances") == ["orders", "orders-old", "stock"]
    assert await asked("sort=healthy&search=orders") == ["orders-old", "orders"]
    assert await asked("sort=-name") == ["stock", "orders-old", "orders"]
    for order in ("namespace", "state", "age", "subscribers"):
        assert len(await asked(f"sort={order}")) == 3
    await lose_upstream(world)
    assert await asked("condition=failing") == ["orders"]
    for wrong in ("condition=ill", "sort=weight"):
        assert (await world.ask("GET", f"/status?{wrong}")).status == 400


async def test_status_begins_with_warnings_and_a_summary(world: World) -> None:
    world.shelf.services[KEY] = snapshot(instance(), instance("10.0.0.2", healthy=False))
    for _ in range(2):
        await world.ask("GET", "/api/v1/services/orders")
    await world.clock.advance(4)
    await lose_upstream(world)
    shown = (await world.ask("GET", "/status?limit=0")).json()
    assert shown["status"] == "degraded"
    (warning,) = shown["warnings"]
    assert warning["reason"] == "upstream: connection refused"
    assert "nacos-proxy doctor" in warning["advice"]
    assert shown["summary"] == {
        "services": 1,
        "states": {"fresh": 1, "stale": 0, "expired": 0, "missing": 0},
        "namespaces": {"public": 1},
        "groups": {"DEFAULT_GROUP": 1},
        "watched": 1,
        "instances": 2,
        "healthy": 1,
        "oldestAgeSeconds": 4.0,
        "reads": 2,
        "hits": 1,
    }


def test_advice_on_each_reason_says_what_to_do() -> None:
    assert advice_on("upstream: embedded registry, for development: no Nacos is behind it") == ""
    assert "poll_budget" in advice_on("polling: late")
    assert "cluster" in advice_on("node http://n1: down: refused")
    assert advice_on("strange: one") == "docs/operations.md explains it."


async def test_status_of_many_services_lets_other_tasks_run(world: World) -> None:
    """With 10,000 services `/status` held everybody up for 0.3 s, `/metrics` and the page for 0.1 s."""
    for number in range(4_000):
        listed, now = snapshot(instance(), service=key(f"s{number}")), world.clock.now()
        world.agent.catalog.cache.accept(listed, now, "poll", requested_at=now)

    assert await turns_during(status_json(world.operator_view, Page(0))) > 8
    assert await turns_during(status_json(world.operator_view, Page(4000))) > 40
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


@pytest.mark.parametrize("path", ["/status", "/status/a", "/metrics", "/ui", "/readyz"])
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

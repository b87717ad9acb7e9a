"""What operators see of the parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import pytest

from nacos_proxy.app.components import Components, build
from nacos_proxy.app.operator_view import operator_view
from nacos_proxy.app.server import App
from nacos_proxy.app.settings import Settings
from nacos_proxy.catalog.health_checks import CheckSpec
from nacos_proxy.frontends.operations.status import Page, readiness, status_json
from nacos_proxy.model.calls import Register
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.upstream.grpc.push import GrpcPush
from nacos_proxy.wire.certificates import valid_until
from nacos_proxy.wire.http import OTHER
from tests.helpers.app import serving
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock, settle
from tests.helpers.grpc_client import FakeConnection, Sdk

NOTE = "upstream: embedded registry, for development: no Nacos is behind it"


def made(**settings: Any) -> Components:
    return build(Settings(**{"disk": False, "udp_push": False, "push": "off", **settings}), FakeClock())


async def test_status_names_the_embedded_registry() -> None:
    sight = operator_view(made())
    assert (await status_json(sight, Page(10)))["upstream"]["kind"] == "embedded"
    assert readiness(sight) == ("ready", [NOTE])
    families = {family.name: family for family in sight.metrics.registry.collect()}
    assert [s.value for s in families["nacos_proxy_upstream_embedded"].samples] == [1]


async def test_status_shows_the_upstream_servers_and_no_secret() -> None:
    parts = made(upstream="http://127.0.0.1:1", username="app", password="s3cret-word")
    shown = await status_json(operator_view(parts), Page(10))
    assert shown["upstream"]["kind"] == "nacos"
    assert "127.0.0.1:1" in str(shown["upstream"])
    assert "s3cret-word" not in str(shown)
    families = {family.name: family for family in operator_view(parts).metrics.registry.collect()}
    (node,) = families["nacos_proxy_upstream_node_up"].samples
    assert (node.labels, node.value) == ({"node": "http://127.0.0.1:1/nacos"}, 1)
    await parts.agent.close()


async def test_status_and_readiness_explain_a_lost_push() -> None:
    parts = made()
    parts.poller.push_alive = False
    assert readiness(operator_view(parts)) == ("ready", [NOTE])  # nobody misses what nothing is to be pushed of
    parts.agent.catalog.cache.touch(KEY, 0.0)
    assert readiness(operator_view(parts)) == (
        "ready",
        [NOTE],
    )  # a service that nobody registered is not followed either
    await parts.agent.write(Register(KEY, instance()))
    assert readiness(operator_view(parts)) == ("degraded", ["push: unavailable; polling every 5 s", NOTE])
    await parts.agent.close()


async def test_status_and_metrics_show_a_webhook_by_its_host_alone() -> None:
    parts = made(webhooks="orders http://127.0.0.1:9/hush-hush", webhook_secret="s3cret-word")
    (hook,) = parts.webhooks
    hook.error, hook.state = "it answered <404>", "failing"
    hook.outcomes["refused"] += 1
    sight = operator_view(parts)
    shown = await status_json(sight, Page(10))
    told = {"webhook": 1, "host": "127.0.0.1:9", "state": "failing", "error": "it answered <404>", "pending": 0}
    assert shown["webhooks"] == [{**told, "outcomes": {"refused": 1}}]
    assert readiness(sight) == ("ready", [NOTE])
    families = {family.name: family for family in sight.metrics.registry.collect()}
    (requests,), (pending,) = (families[f"nacos_proxy_webhook_{name}"].samples for name in ("requests", "pending"))
    labels = {"webhook": "1", "host": "127.0.0.1:9"}
    assert (requests.labels, requests.value) == ({**labels, "outcome": "refused"}, 1)
    assert (pending.labels, pending.value) == (labels, 0)
    assert "hush" not in str(shown) and "s3cret" not in str(shown)
    await parts.agent.close()


async def test_status_and_readiness_name_broken_service_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('service = "a"\naddress = "127.0.0.1:1"\n')
    parts = made(services_dir=tmp_path)
    await parts.service_files.reload()
    sight = operator_view(parts)
    shown = await status_json(sight, Page(10))
    assert shown["serviceFiles"] == {"state": "ok", "directory": str(tmp_path), "files": 1, "errors": {}}
    (managed,) = shown["managed"]
    assert (managed["file"], managed["phase"]) == ("a.toml", "waiting")
    (tmp_path / "b.toml").write_text('service = "<b>"\n')
    await parts.service_files.reload()
    shown = await status_json(sight, Page(10))
    assert shown["serviceFiles"]["errors"] == {"b.toml": "address is required."}
    assert readiness(sight) == ("degraded", ["services_dir: b.toml: address is required.", NOTE])
    families = {family.name: family for family in sight.metrics.registry.collect()}
    assert [s.value for s in families["nacos_proxy_service_files_broken"].samples] == [1]
    await parts.agent.close()


async def test_readiness_ignores_push_while_no_service_is_watched(tmp_path: Path) -> None:
    parts = made(upstream="http://127.0.0.1:1", push="on", state_dir=tmp_path)
    sight = operator_view(parts)
    assert ((await status_json(sight, Page(10)))["push"]["state"], readiness(sight)) == ("idle", ("ready", []))
    assert not [family for family in sight.metrics.registry.collect() if family.name == "nacos_proxy_push_up"]
    await parts.agent.close()


@pytest.mark.parametrize(
    ("push", "was_alive", "why", "state", "ready"),
    [
        ("auto", False, "no gRPC port answers", "unavailable", "ready"),
        ("on", False, "no gRPC port answers", "lost", "degraded"),
        ("auto", True, "no gRPC port answers", "lost", "degraded"),
        ("auto", True, "", "lost", "degraded"),
        ("auto", False, "", "connecting", "ready"),
        ("on", False, "", "connecting", "ready"),
    ],
)
async def test_readiness_is_degraded_by_a_lost_push_and_by_a_missing_grpc_port_only_if_push_is_on(
    push: str, was_alive: bool, why: str, state: str, ready: str, tmp_path: Path
) -> None:
    parts = made(upstream="http://127.0.0.1:1", push=push, state_dir=tmp_path)
    parts.agent.catalog.cache.watch(KEY, 0.0)
    assert isinstance(parts.push, GrpcPush)
    parts.push.unavailable, parts.push.was_alive = why, was_alive
    sight = operator_view(parts)
    assert ((await status_json(sight, Page(10)))["push"]["state"], readiness(sight)[0]) == (state, ready)
    shown = {family.name for family in sight.metrics.registry.collect() if family.samples}
    assert ("nacos_proxy_push_up" in shown) is (state == "lost")
    await parts.agent.close()


async def test_failed_background_work_is_in_metrics_and_status() -> None:
    parts = made()
    parts.agent.supervisor.failed("disk", OSError("no space left"))
    sight = operator_view(parts)
    assert readiness(sight) == ("degraded", ["failing: disk: OSError: no space left", NOTE])
    families = {family.name: family for family in sight.metrics.registry.collect()}
    assert [(s.labels, s.value) for s in families["nacos_proxy_background_failures"].samples] == [({"part": "disk"}, 1)]
    await parts.agent.close()


async def test_status_and_metrics_show_grpc_sessions() -> None:
    app = App(made())
    grpc, sight = app.grpc, operator_view(app.components)
    assert (await status_json(sight, Page(10)))["grpc"]["state"] == "off"
    grpc.off, grpc.port = "", 9840
    connection = FakeConnection()
    session = connection.session = grpc.made(connection)
    Sdk(session, connection).set_up()
    await Sdk(session, connection).ask("HealthCheckRequest")
    shown = await status_json(sight, Page(10))
    assert (shown["grpc"]["sessionsTotal"], shown["grpc"]["sessions"][0]["app"]) == (1, "shop")
    families = {family.name: family for family in sight.metrics.registry.collect()}
    assert [families[f"nacos_proxy_grpc_{name}"].samples[0].value for name in ("up", "sessions")] == [1, 1]
    (request,) = families["nacos_proxy_requests"].samples
    assert request.labels == {"frontend": "grpc", "route": "HealthCheckRequest", "status": "ok"}
    connection.lose()
    families = {family.name: family for family in sight.metrics.registry.collect()}
    assert families["nacos_proxy_grpc_closed"].samples[0].labels == {"reason": "peer"}
    await app.components.agent.close()


async def test_metrics_count_udp_pushes_by_outcome() -> None:
    parts = made(udp_push=True)
    assert parts.udp is not None
    parts.udp.sent, parts.udp.too_large = 5, 1
    sight = operator_view(parts)
    shown = {"sent": 5, "acknowledged": 0, "givenUp": 0, "refused": 0, "tooLarge": 1}
    assert (await status_json(sight, Page(10)))["udpPush"] == shown
    families = {family.name: family for family in sight.metrics.registry.collect()}
    samples = families["nacos_proxy_udp_pushes"].samples
    assert {s.labels["what"]: s.value for s in samples if s.value} == {"sent": 5, "too_large": 1}


async def test_metrics_have_no_udp_pushes_without_udp_push() -> None:
    sight = operator_view(made())
    assert (await status_json(sight, Page(10)))["udpPush"] == {}
    assert "nacos_proxy_udp_pushes" not in {family.name for family in sight.metrics.registry.collect()}


async def test_status_and_metrics_show_published_instances() -> None:
    parts = made()
    await parts.publications.publish("connection", KEY, [instance()])
    parts.publications.failing[(KEY, "10.0.0.1", 80)] = "no right"
    sight = operator_view(parts)
    failing = {"service": str(KEY), "address": "10.0.0.1:80", "error": "no right"}
    assert (await status_json(sight, Page(10)))["published"] == {"instances": 1, "orphaned": 0, "failing": [failing]}
    families = {family.name: family for family in sight.metrics.registry.collect()}
    for name, value in (("instances", 1), ("orphaned", 0), ("failing", 1)):
        assert [s.value for s in families[f"nacos_proxy_published_{name}"].samples] == [value]
    await parts.agent.close()


async def test_status_names_what_is_out_of_traffic() -> None:
    parts = made()
    await parts.agent.write(Register(KEY, instance("10.0.0.1")))
    await parts.health_checker.register(KEY, instance("10.0.0.2"), CheckSpec("ttl", ttl=60.0))
    await parts.health_checker.maintain(KEY, "10.0.0.2", 80, "disk swap")
    registration = parts.agent.catalog.registrations.find(KEY, "10.0.0.1", 80)
    assert registration is not None
    caller = spawn(parts.drainer.drain(registration, 20.0), name="drain")
    await settle()
    shown = (await status_json(operator_view(parts), Page(10)))["outOfTraffic"]
    assert shown["instances"] == 2
    rows = [(row["address"], row["state"], row["reason"]) for row in shown["shown"]]
    assert rows == [("10.0.0.1:80", "draining", ""), ("10.0.0.2:80", "maintenance", "disk swap")]
    families = {family.name: family for family in operator_view(parts).metrics.registry.collect()}
    values = [families[f"nacos_proxy_{name}_instances"].samples[0].value for name in ("draining", "maintained")]
    assert values == [1, 1]
    await stop(caller)
    await parts.drainer.stop()
    await parts.health_checker.stop()
    await parts.agent.close()


async def test_requests_are_counted_by_route_and_never_by_path() -> None:
    async with serving(dns="127.0.0.1:0", context_path="/nacos") as served:
        for method, path in (
            ("GET", "/api/v1/services/orders"),
            ("HEAD", "/api/v1/services/orders/"),
            ("GET", "/api/v1/services/orders?unknown=1"),
            ("GET", "/nowhere/at/all"),
            ("POST", "/nacos/v1/ns/instance?serviceName=orders&ip=10.0.0.1&port=80"),
            ("GET", "/nacos/v2/ns/instance/list?serviceName=orders"),
            ("GET", "/nacos/v3/client/ns/nothing"),
            ("GET", "/nacos/v1/cs/configs?dataId=a&group=b"),
            ("POST", "/nacos/v1/cs/configs/listener"),
            ("GET", "/nacos/made/up"),
            ("GET", "/nacos/prometheus"),
            ("GET", "/healthz"),
        ):
            await served.http.request(method, path)
        host, port = served.app.dns_listeners[0][0].getsockname()
        await dns.asyncquery.udp(dns.message.make_query("orders.nacos.", "A"), host, port=port)
        families = {f.name: f for f in operator_view(served.components).metrics.registry.collect()}
        reads = operator_view(served.components).metrics.reads()
    counted = {tuple(s.labels.values()): s.value for s in families["nacos_proxy_requests"].samples}
    assert counted == {
        ("rest", "GET /api/v1/services/{service}", "200"): 2,
        ("rest", "GET /api/v1/services/{service}", "400"): 1,
        ("other", "other", "404"): 1,
        ("v1", "POST /v1/ns/instance", "200"): 1,
        ("v2", "GET /v2/ns/instance/list", "200"): 1,
        ("v3", "other", "404"): 1,
        ("passthrough", "/v1/cs/*", "404"): 1,
        ("passthrough", "/*/configs/listener", "404"): 1,
        ("passthrough", "other", "404"): 1,
        ("discovery", "GET /prometheus", "200"): 1,
        ("operations", "GET /healthz", "200"): 1,
        ("dns", "query", "NOERROR"): 1,
    }
    durations = families["nacos_proxy_request_duration_seconds"].samples
    assert {tuple(s.labels.values()): s.value for s in durations if s.name.endswith("_count")} == counted
    assert reads[0] == sum(s.value for s in families["nacos_proxy_reads"].samples) and reads[1] >= 1


async def test_metrics_show_when_our_certificate_ends() -> None:
    certificates = Path(__file__).parent.parent.parent / "certificates"
    parts = made(tls_cert=certificates / "server.pem")
    families = {family.name: family for family in operator_view(parts).metrics.registry.collect()}
    (end,) = families["nacos_proxy_tls_certificate_expiry_timestamp_seconds"].samples
    assert end.value == valid_until((certificates / "server.pem").read_bytes())
    await parts.agent.close()


async def test_a_tenant_sees_no_requests_of_others() -> None:
    parts = made()
    parts.response_table.hits_of(OTHER, 200).head = 5
    assert operator_view(parts).metrics.reads() == (5, 5)
    parts.of_tenant = True
    metrics = operator_view(parts).metrics
    assert metrics.reads() == (0, 0)
    families = {family.name: family.samples for family in metrics.registry.collect()}
    assert families["nacos_proxy_requests"] == families["nacos_proxy_repeated"] == []
    await parts.agent.close()

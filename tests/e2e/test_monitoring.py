"""The alerts and the dashboard in deploy/, with the real Prometheus and a proxy that has something to show."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import httpx
import pytest

from nacos_proxy.runtime import SystemClock
from tests.e2e.test_tools import checked, tool
from tests.helpers.live import Process, ProxyProcess, free_port
from tests.helpers.scaling import PATIENCE

ROOT = Path(__file__).parents[2]
CERTIFICATES = ROOT / "tests" / "certificates"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "nacos-proxy.json"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
METRIC = re.compile(r"\b(?:nacos_proxy|process)_[a-z0-9_]+\b(?!:)")
# Panels of what did not happen in this test.
MAY_BE_EMPTY = ("grpc_closed", "dns_dropped", 'outcome!="ok"', "outage_writes_total", "changes(process_start")


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text("utf-8"))


def nodes(of: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON document."""
    if isinstance(of, dict):
        yield of
    for inner in of.values() if isinstance(of, dict) else of if isinstance(of, list) else ():
        yield from nodes(inner)


def dashboard_queries(interval: str = "1m") -> list[str]:
    found = [node["expr"] for node in nodes(dashboard()) if "expr" in node]
    return [re.sub(r"\$(job|instance)\b", ".*", expr).replace("$__rate_interval", interval) for expr in found]


class Monitored:
    """A proxy with TLS, DNS, push and a state on disk in front of another proxy, which is its Nacos."""

    def __init__(self, proxy: ProxyProcess, http: httpx.Client) -> None:
        self.http = http
        self.url = proxy.url
        found = proxy.wait_for(re.compile(r"DNS for nacos: 127\.0\.0\.1:(\d+)"))
        self._dns_port = int(found[1])

    def use(self) -> None:
        """One request of each kind, and some that are repeated."""
        body = {"ip": "10.0.0.1", "port": 80, "ephemeral": False}
        self.http.post("/api/v1/services/orders/instances", json=body).raise_for_status()
        for _ in range(5):
            self.http.get("/nacos/v1/ns/instance/list?serviceName=orders").raise_for_status()
        assert self.http.get("/api/v1/services/orders/pick").status_code == 200
        assert self.http.get("/nowhere").status_code == 404
        dns.query.udp(dns.message.make_query("orders.nacos.", "A"), "127.0.0.1", port=self._dns_port, timeout=PATIENCE)


@pytest.fixture(scope="module")
def monitored() -> Iterator[Monitored]:
    tls = ("--tls-cert", str(CERTIFICATES / "server.pem"), "--dns", "127.0.0.1:0", "--agent-check", "127.0.0.1:0")
    trust = ssl.create_default_context(cafile=CERTIFICATES / "ca.pem")
    with ProxyProcess() as nacos, ProxyProcess("--upstream", nacos.url, *tls) as proxy:
        with httpx.Client(base_url=proxy.url, verify=trust, trust_env=False) as http:
            one = Monitored(proxy, http)
            one.use()
            until(lambda: "\nnacos_proxy_push_up 1.0\n" in http.get("/metrics").text)
            yield one


class Prometheus:
    """The real one, with the rules of deploy/. As a context, it gives a client for it."""

    def __init__(self, directory: Path, target: str) -> None:
        scheme, _, address = target.partition("://")
        tls = f"tls_config: {{ca_file: {CERTIFICATES / 'ca.pem'}}}" if scheme == "https" else ""
        file, port = directory / "prometheus.yml", free_port()
        job = f"job_name: p, scheme: {scheme}, static_configs: [{{targets: ['{address}']}}], {tls}"
        often = "global: {scrape_interval: 300ms, evaluation_interval: 300ms}"
        file.write_text(f"{often}\nrule_files: [{RULES}]\nscrape_configs: [{{{job}}}]\n")
        listen = f"--web.listen-address=127.0.0.1:{port}"
        command = [tool("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={directory}/data", listen]
        self._process = Process(command)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=5))

    def __enter__(self) -> httpx.Client:
        self._process.__enter__()
        until(lambda: self._http.get("/-/ready").status_code == 200)
        return self._http

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.__exit__(None, None, None)


def until(condition: Callable[[], bool]) -> None:
    clock, pause = SystemClock(), threading.Event()
    end = clock.now() + PATIENCE
    while not condition():
        assert clock.now() < end
        pause.wait(0.05)


def result(http: httpx.Client, query: str) -> list[Any]:
    answer = http.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, f"{query}: {answer.text}"
    return answer.json()["data"]["result"]


# the files


def test_rules_pass_promtool_with_example_series() -> None:
    checked(tool("promtool"), "check", "rules", str(RULES))
    checked(tool("promtool"), "test", "rules", str(ROOT / "tests" / "prometheus-rules.yml"))


def test_rules_each_have_an_example_that_fires_and_a_line_in_the_docs() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))
    examples = (ROOT / "tests" / "prometheus-rules.yml").read_text("utf-8")
    assert [name for name in alerts if f"| `{name}` |" not in OPERATIONS] == []
    assert [name for name in alerts if name not in examples] == []


def test_rules_point_to_sections_of_the_docs() -> None:
    text = RULES.read_text("utf-8")
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", OPERATIONS, re.M)}
    runbooks = re.findall(r"runbook: (.+)", text)
    assert len(runbooks) == text.count("- alert:")
    assert {path for path in runbooks if path.removeprefix("docs/operations.md#") not in headings} == set()


def test_scrape_configuration_in_the_docs_is_read_by_promtool(tmp_path: Path) -> None:
    (found,) = re.findall(r"^```yaml title=scrape.yml\n(.*?)^```", OPERATIONS, re.M | re.S)
    token, file = tmp_path / "token", tmp_path / "prometheus.yml"
    token.write_text("secret")
    file.write_text(found.replace("/etc/prometheus/nacos-proxy.token", str(token)))
    checked(tool("promtool"), "check", "config", str(file))


def test_dashboard_has_unique_ids_and_leaves_the_data_source_to_the_operator() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) > 20
    sources = [node["datasource"] for node in nodes(board) if "datasource" in node]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(node["expr"] for node in nodes(board) if "expr" in node)))
    assert used - {"__rate_interval"} <= variables == {"datasource", "job", "instance"}
    places = [(place["x"] + place["w"], place["y"], place["x"]) for place in (p["gridPos"] for p in board["panels"])]
    assert all(right <= 24 for right, *_ in places) and len({place[1:] for place in places}) == len(places)


def test_dashboard_queries_are_read_by_promtool(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    wrapped = [{"record": f"q{number}", "expr": expr} for number, expr in enumerate(dashboard_queries())]
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": wrapped}]}))  # JSON is YAML
    assert f"{len(wrapped)} rules found" in checked(tool("promtool"), "check", "rules", str(file))


# with a running proxy


def test_dashboard_and_rules_name_only_metrics_that_the_proxy_exports(monitored: Monitored) -> None:
    exported = set[str]()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)", monitored.http.get("/metrics").text, re.M):
        exported |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    named = set(METRIC.findall(" ".join(dashboard_queries()) + RULES.read_text("utf-8")))
    assert len(named) > 30 and named - exported == set()


def test_prometheus_evaluates_each_rule_and_each_query_of_the_dashboard(monitored: Monitored, tmp_path: Path) -> None:
    with Prometheus(tmp_path, monitored.url) as http:
        until(lambda: bool(result(http, "count_over_time(nacos_proxy_info[1m]) >= 3")))
        monitored.use()

        def scraped() -> bool:
            return bool(result(http, 'increase(nacos_proxy_requests_total{route="other"}[1m]) > 0'))

        until(scraped)
        shown = {query: result(http, query) for query in dashboard_queries()}
        groups = http.get("/api/v1/rules").raise_for_status().json()["data"]["groups"]
        firing = {alert["labels"]["alertname"] for alert in http.get("/api/v1/alerts").json()["data"]["alerts"]}
    empty = [query for query, found in shown.items() if not found]
    assert [query for query in empty if not any(part in query for part in MAY_BE_EMPTY)] == []
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    assert firing == set(), "a proxy that is well raises nothing"

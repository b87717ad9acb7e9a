"""Logs, request ids and traces of the real process, in front of an upstream that has a log, too."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.helpers.live import ProxyProcess

LIST = "/nacos/v1/ns/instance/list?serviceName=orders"
REGISTER = "/nacos/v1/ns/instance?serviceName=orders&ip=10.0.0.1&port=80&ephemeral=false"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
JSON = ("--log-format", "json", "--access-log")
PATIENCE = 60.0  # seconds before a test gives up


def lines(process: ProxyProcess) -> list[dict[str, Any]]:
    """What a process with a log in JSON has said; fails if a line is not an object."""
    return [dict(json.loads(line)) for line in process.log.splitlines()]


def answered(process: ProxyProcess) -> dict[str, dict[str, Any]]:
    """The lines of the access log, by request id; of those with the same id the last one."""
    return {line.get("requestId", ""): line for line in lines(process) if line["logger"] == "nacos_proxy.access"}


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A receiver of traces by OTLP over HTTP: its URL, and the spans that it got."""
    spans: list[Span] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                names = {it.key: it.value.string_value for it in resource.resource.attributes}
                assert (self.path, names["service.name"]) == ("/v1/traces", "nacos-proxy")
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_serve_follows_requests_from_the_client_to_the_upstream_in_logs_and_traces() -> None:
    with collector() as (url, spans), ProxyProcess(*JSON) as upstream:
        more = ("--upstream", upstream.url, "--push", "off", "--traces", url)
        with (
            ProxyProcess(*JSON, *more) as proxy,
            httpx.Client(base_url=proxy.url, trust_env=False, timeout=PATIENCE) as client,
        ):
            trace = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            register = client.post(REGISTER, headers={"X-Request-Id": "register-1", **trace})
            lists = [client.get(LIST, headers={"X-Request-Id": f"list-{n}"}) for n in range(4)]
            passed = client.get("/nacos/v1/cs/configs?dataId=a&group=b", headers={"X-Request-Id": "config-1"})
            made = client.get("/api/v1/nothing?password=hunter2", headers={"X-Request-Id": "not sane"})
            assert proxy.terminate() == 0
        assert upstream.terminate() == 0

    # the client gets its own id back, also from prepared bytes; or one that was made
    assert register.headers["x-request-id"] == "register-1"
    assert [it.headers["x-request-id"] for it in lists] == ["list-0", "list-1", "list-2", "list-3"]
    assert passed.headers["x-request-id"] == "config-1"
    assert re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", made.headers["x-request-id"])

    # all that the proxy said is JSON, and names the request
    ours = answered(proxy)
    assert {"register-1", "list-3", "config-1", made.headers["x-request-id"]} <= ours.keys()
    line = ours["register-1"]
    assert (line["method"], line["route"], line["path"]) == ("POST", "/v1/ns/instance", "/nacos/v1/ns/instance")
    assert (line["status"], line["bytes"], line["client"], line["repeated"]) == (200, 2, "127.0.0.1", False)
    assert line["durationMs"] > 0 and line["traceId"] == TRACE
    assert (ours["list-3"]["repeated"], ours["list-3"]["route"]) == (True, "/v1/ns/instance/list")
    assert (ours["config-1"]["status"], ours["config-1"]["route"]) == (404, "/v1/cs/*")
    assert ours[made.headers["x-request-id"]]["query"] == "password=********"
    assert any(line["message"].startswith("listening on http://127.0.0.1:") for line in lines(proxy))

    # the upstream sees the ids of what was asked for a request, and of nothing else
    theirs = answered(upstream)
    assert theirs["register-1"]["method"] == "POST"
    assert theirs["list-0"]["path"] == "/nacos/v1/ns/instance/list"
    assert theirs["config-1"]["path"] == "/nacos/v1/cs/configs"
    assert "list-3" not in theirs

    # and the collector has a span of each, in the trace of the client
    (served,) = (span for span in spans if span.name == "POST /v1/ns/instance")
    (asked,) = (span for span in spans if span.parent_span_id == served.span_id)
    assert (served.trace_id.hex(), served.parent_span_id.hex()) == (TRACE, PARENT)
    assert (asked.trace_id.hex(), asked.kind, asked.name) == (TRACE, Span.SPAN_KIND_CLIENT, "POST")
    urls = [it.value.string_value for it in asked.attributes if it.key == "url.full"]
    assert urls[0].startswith(f"{upstream.url}/nacos/v1/ns/instance?")


def without_the_extra(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from nacos_proxy.cli.main import main; main(['serve', '--port', '0', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, "--state-dir", str(state), "--traces", "http://127.0.0.1:4318", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_serve_says_what_to_install_if_traces_are_set_and_opentelemetry_is_missing(tmp_path: Path) -> None:
    ended = without_the_extra(state=tmp_path)
    assert ended.returncode == 2
    assert "pip install opentelemetry-sdk" in ended.stderr


def test_serve_that_cannot_start_says_so_in_json(tmp_path: Path) -> None:
    ended = without_the_extra("--log-format", "json", state=tmp_path)
    (line,) = (json.loads(text) for text in (ended.stdout + ended.stderr).splitlines())
    assert (ended.returncode, line["level"]) == (2, "critical")
    assert "OpenTelemetry is not installed" in line["message"]


def test_serve_without_traces_does_not_import_what_the_extra_installs() -> None:
    """FastAPI imports the interfaces of OpenTelemetry, which do nothing without its SDK."""
    code = "import sys, nacos_proxy.app.server; print({'opentelemetry.sdk', 'opentelemetry.exporter'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

"""Spans of requests and of calls to the upstream, as OpenTelemetry's own exporter for tests gets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from nacos_proxy.app.traces import MAX_ATTRIBUTE, Traces, exporter
from nacos_proxy.request_context import GRPC, Answered, Incoming

ANSWERED = Answered("GET", "/x/a", "", "/x/{name}", 200, 0.1, 2, "10.0.0.1", "it-1")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


@contextmanager
def kept() -> Iterator[tuple[Traces, list[ReadableSpan]]]:
    """Traces, and the spans that have ended once the block is left."""
    exporter = Kept()
    traces = Traces(exporter)
    try:
        yield traces, exporter.spans
    finally:
        traces.close()


def test_traces_begin_a_span_with_the_names_of_opentelemetry() -> None:
    with kept() as (traces, spans):
        traces.begin(Incoming("it-1", "GET", "/x/a", "10.0.0.1", "http")).ended(ANSWERED)
    (span,) = spans
    assert (span.name, span.kind, span.parent, span.status.status_code) == (
        *("GET /x/{name}", SpanKind.SERVER, None),
        StatusCode.UNSET,
    )
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/x/a",
        "client.address": "10.0.0.1",
        "nacos_proxy.request_id": "it-1",
        "http.route": "/x/{name}",
        "http.response.status_code": 200,
    }
    assert span.resource.attributes["service.name"] == "nacos-proxy"


def test_traces_continue_the_trace_of_the_client_and_pass_it_upstream() -> None:
    with kept() as (traces, spans):
        request = traces.begin(Incoming("it-1", "GET", "/x/a", headers=[(b"traceparent", PARENT.encode())]))
        fields = request.log_fields
        with request.call("PUT", lambda: "http://n:8848/nacos/v1/ns/instance?ip=1") as call:
            headers = dict(call.headers)
            call.status = 200
        request.ended(ANSWERED)
    child, server = spans
    assert server.parent is not None and server.context is not None and child.context is not None
    assert f"{server.parent.trace_id:032x}" == f"{server.context.trace_id:032x}" == PARENT.split("-")[1]
    assert (child.name, child.kind, child.parent) == ("PUT", SpanKind.CLIENT, server.context)
    assert headers == {
        "X-Request-Id": "it-1",
        "traceparent": f"00-{child.context.trace_id:032x}-{child.context.span_id:016x}-01",
    }
    assert (child.attributes or {})["url.full"] == "http://n:8848/nacos/v1/ns/instance?ip=1"
    assert fields == {
        "requestId": "it-1",
        "traceId": PARENT.split("-")[1],
        "spanId": f"{server.context.span_id:016x}",
    }


def test_traces_bound_what_a_client_can_make_long() -> None:
    with kept() as (traces, spans):
        request = traces.begin(Incoming("it-1", "GET", "/" + "x" * 100_000))
        with request.call("GET", lambda: "http://n/" + "x" * 100_000):
            pass
        request.ended(ANSWERED)
    child, server = spans
    assert len(str((server.attributes or {})["url.path"])) == MAX_ATTRIBUTE
    assert len(str((child.attributes or {})["url.full"])) == MAX_ATTRIBUTE


def test_traces_leave_the_bound_to_the_variable_of_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    with kept() as (traces, spans):
        traces.begin(Incoming("it-1", "GET", "/x/abcdef")).ended(ANSWERED)
    assert (spans[0].attributes or {})["url.path"] == "/x/ab"


def test_traces_of_two_requests_in_one_task_are_two() -> None:
    with kept() as (traces, spans):
        for id in ("it-1", "it-2"):
            traces.begin(Incoming(id, "GET", "/")).ended(ANSWERED._replace(route=""))
    assert len({span.context.trace_id for span in spans if span.context is not None}) == 2
    assert [span.name for span in spans] == ["GET", "GET"]


@pytest.mark.parametrize(("status", "of_server", "of_client"), [(404, "UNSET", "ERROR"), (502, "ERROR", "ERROR")])
def test_traces_mark_what_failed(status: int, of_server: str, of_client: str) -> None:
    with kept() as (traces, spans):
        request = traces.begin(Incoming("it-1", "GET", "/x/a"))
        with request.call("GET", lambda: "http://n") as call:
            call.status = status
        request.ended(ANSWERED._replace(status=status))
    assert [span.status.status_code.name for span in spans] == [of_client, of_server]


def test_traces_name_the_exception_of_a_call() -> None:
    with kept() as (traces, spans):
        request = traces.begin(Incoming("it-1", "GET", "/x/a"))
        with pytest.raises(httpx.ConnectError), request.call("GET", lambda: "http://n"):
            raise httpx.ConnectError("no connection to http://u:secret@n")
    (span,) = spans
    assert (span.attributes or {})["error.type"] == "ConnectError"
    assert "secret" not in str(span.status.description)


def test_traces_of_grpc_have_its_attributes() -> None:
    with kept() as (traces, spans):
        traces.begin(Incoming("it-1", GRPC, "InstanceRequest", "10.0.0.1", GRPC)).ended(
            Answered(GRPC, "InstanceRequest", "", "InstanceRequest", 500, 0.1, 2, "10.0.0.1", "it-1")
        )
    (span,) = spans
    assert span.name == "grpc InstanceRequest"
    assert (span.attributes or {})["rpc.method"] == "InstanceRequest"
    assert "http.request.method" not in (span.attributes or {})


@pytest.mark.parametrize("url", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_exporter_adds_the_path_of_traces(url: str) -> None:
    assert getattr(exporter(url), "_endpoint") == "http://c:4318/v1/traces"  # noqa: B009 - it is private


def test_traces_give_up_spans_that_a_collector_does_not_take() -> None:
    class Stuck(SpanExporter):
        def __init__(self) -> None:
            self.given_up = threading.Event()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.given_up.wait()
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            self.given_up.set()

    traces = Traces(Stuck(), last_spans=0.01)
    traces.begin(Incoming("it-1", "GET", "/")).ended(ANSWERED)
    traces.close()

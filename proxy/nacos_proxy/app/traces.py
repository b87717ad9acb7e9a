"""OpenTelemetry: a span for each request that is not repeated from memory, and one for each of its upstream calls.

It needs the extra `nacos-proxy[otel]`, so only `app.server` imports it, and only if `traces` is set. All other settings
are OpenTelemetry's own variables, such as `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` or `OTEL_EXPORTER_OTLP_HEADERS`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.environment_variables import OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from nacos_proxy import __version__
from nacos_proxy.model.masking import masked
from nacos_proxy.request_context import GRPC, ID_HEADER, Answered, Incoming, RequestContext, UpstreamCall

PATH = "/v1/traces"
LAST_SPANS = 2.0  # seconds that a stop waits for them
MAX_ATTRIBUTE = 1024  # characters; OpenTelemetry has no bound, and a client chooses the length of its path


def exporter(url: str) -> SpanExporter:
    """Sends spans by OTLP over HTTP. `url` is that of the collector, with or without the path of traces."""
    url = url.rstrip("/")
    return OTLPSpanExporter(url if url.endswith(PATH) else url + PATH)


class Traces:
    """`begin` makes the context of a request, with its span."""

    def __init__(self, exporter: SpanExporter, last_spans: float = LAST_SPANS) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ or SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({SERVICE_VERSION: __version__, **({} if named else {SERVICE_NAME: "nacos-proxy"})})
        bound = None if OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT in os.environ else MAX_ATTRIBUTE
        limits = SpanLimits(max_attribute_length=bound)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, span_limits=limits)
        self._exporter = exporter
        self._last_spans = last_spans
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nacos_proxy", __version__)

    def begin(self, incoming: Incoming) -> RequestContext:
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in incoming.headers}
        parent = extract(carrier, Context())  # not the trace of the request before it
        span = self._tracer.start_span(incoming.method, parent, SpanKind.SERVER, _attributes(incoming))
        return _TracedRequest(incoming.id, span, self._tracer)

    def close(self) -> None:
        """Sends what waits. Blocks for about `last_spans` seconds at most: the collector may be away."""
        give_up = threading.Timer(self._last_spans, self._exporter.shutdown)
        give_up.start()
        self._provider.shutdown()
        give_up.cancel()


def _attributes(incoming: Incoming) -> Mapping[str, str]:
    what = {
        "http.request.method": incoming.method,
        "url.scheme": incoming.scheme,
        "url.path": masked(incoming.path),
    }
    if incoming.scheme == GRPC:
        what = {"rpc.system": "grpc", "rpc.method": incoming.path}
    return {**what, "client.address": incoming.client, "nacos_proxy.request_id": incoming.id}


class _TracedRequest(RequestContext):
    __slots__ = ("_span", "_tracer")

    traced = True

    def __init__(self, id: str, span: Span, tracer: Tracer) -> None:
        super().__init__(id)
        self._span = span
        self._tracer = tracer

    @property
    def log_fields(self) -> Mapping[str, str]:
        span = self._span.get_span_context()
        return {"requestId": self.id, "traceId": f"{span.trace_id:032x}", "spanId": f"{span.span_id:016x}"}

    def call(self, method: str, url: Callable[[], str]) -> UpstreamCall:
        context = set_span_in_context(self._span, Context())
        attributes = {"http.request.method": method, "url.full": url()}
        span = self._tracer.start_span(method, context, SpanKind.CLIENT, attributes)
        carrier = {ID_HEADER: self.id}
        inject(carrier, set_span_in_context(span, context))
        return _TracedCall(tuple(carrier.items()), span)

    def ended(self, answered: Answered) -> None:
        if answered.route:
            self._span.update_name(f"{answered.method} {answered.route}")
            self._span.set_attribute("http.route", answered.route)
        _end(self._span, answered.status, server=True)


class _TracedCall(UpstreamCall):
    __slots__ = ("_span",)

    def __init__(self, headers: tuple[tuple[str, str], ...], span: Span) -> None:
        super().__init__(headers)
        self._span = span

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(StatusCode.ERROR, masked(str(error)))
        _end(self._span, self.status, server=False)


def _end(span: Span, status: int, *, server: bool) -> None:
    """As OpenTelemetry says, a status of 4xx is an error in a span of the client, not of the server."""
    if status:
        span.set_attribute("http.response.status_code", status)
        if status >= (500 if server else 400):
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", str(status))
    span.end()

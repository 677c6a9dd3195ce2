"""OpenTelemetry spans, if an OTLP endpoint is set; needs the extra `otel`.

Each request has one server span, a child of the caller's if the request has a `traceparent` header (W3C Trace Context).
Below it is a span per stage that took time: queue, claim, restore, connect, first byte. The sandbox receives the server
span's `traceparent`. Sampling is left to the SDK: OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG.
"""

from __future__ import annotations

from typing import Any

from gateway import __version__
from gateway.core.clock import Clock
from gateway.core.errors import SettingsError
from gateway.observability.request_record import Record

_NS = 1_000_000_000


class Tracing:
    """An Observer (observability/request_record.py) that creates spans. A thread of the SDK exports them in batches."""

    def __init__(self, endpoint: str, clock: Clock) -> None:
        """`endpoint` is the base URL of an OTLP/HTTP receiver. Raises SettingsError if the extra is not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            fix = "in the checkout run .venv/bin/pip install -e '.[otel]'"
            raise SettingsError([f"--otlp-endpoint: {error.name} is not installed; {fix}"]) from error
        resource = Resource.create({"service.name": "wakegate", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"))
        )
        self._tracer = self._provider.get_tracer("wakegate", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace
        # A request without a traceparent starts a trace. Without a context, start_span would take the current span of
        # this task as the parent.
        self._none = Context()
        self._clock = clock

    def began(self, record: Record) -> None:
        """Start the server span, and set the `traceparent` that the sandbox receives."""
        scope = record.scope
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        record.span = self._tracer.start_span(
            scope.get("method", "WEBSOCKET"),
            context=self._propagator.extract(carrier) if carrier else self._none,
            kind=self._trace.SpanKind.SERVER,
            start_time=self._now(),
        )
        context = record.span.get_span_context()
        record.traceparent = b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)

    def finished(self, record: Record) -> None:
        """Set the span's name and attributes, and end it and its stages.

        Stages are recorded as durations only, so their spans are laid end to end from the start of the request.
        """
        span = record.span
        if not span.is_recording():
            return
        end = self._now()
        scope = record.scope
        span.set_attributes(_attributes(record))
        if record.status >= 500 or record.cut:
            span.set_status(self._trace.StatusCode.ERROR)
        if record.runtime is not None:
            span.update_name(f"{scope.get('method', 'WEBSOCKET')} {record.runtime}")
        parent = self._trace.set_span_in_context(span)
        at = end - int(record.seconds * _NS)
        for name, seconds in record.stages:
            until = min(end, at + int(seconds * _NS))
            if until > at:
                self._tracer.start_span(name, context=parent, start_time=at).end(until)
            at = until
        span.end(end)

    def close(self) -> None:
        """Export the spans that are left. Blocks until they are sent or the SDK gives up."""
        self._provider.shutdown()

    def _now(self) -> int:
        return int(self._clock.now() * _NS)


def _attributes(record: Record) -> dict[str, Any]:
    """Attributes by OpenTelemetry's HTTP semantic conventions, and Wakegate's own under `wakegate.`."""
    scope = record.scope
    attributes: dict[str, Any] = {
        "http.request.method": scope.get("method", "WEBSOCKET"),
        "url.path": scope["path"],
        "http.response.status_code": record.status or 499,
        "http.response.body.size": record.sent,
        "wakegate.request_id": record.request_id.decode("latin-1"),
    }
    if scope["client"]:
        attributes["client.address"] = scope["client"][0]
    for name, value in (("session", record.session), ("runtime", record.runtime), ("start", record.start)):
        if value is not None:
            attributes[f"wakegate.{name}"] = str(value)
    return attributes

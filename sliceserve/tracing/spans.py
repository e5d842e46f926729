"""Spans, without OpenTelemetry's words in every place that makes one."""

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping[str, str | int | float | bool | list[str]]
Kind = Literal["server", "client"]
# A W3C traceparent of the version that there is, as a header and on the wire.
TRACE_PARENT = r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"

# A collector that is away must hold up neither requests nor the end of a process.
_EXPORT_TIMEOUT_S = 5
_CLOSE_TIMEOUT_S = 2.0


def read_trace_parent(header: str) -> str:
    """``header`` if it is a traceparent, else "": what cannot be understood is left out."""
    return header if re.fullmatch(TRACE_PARENT, header) else ""


class TracingError(ValueError):
    """Traces are wanted and cannot be made here; the message says what to do."""


class Tracing:
    """Makes spans and hands them to ``provider``, an OpenTelemetry TracerProvider. A span costs
    the request microseconds; they are sent in batches by a thread, and lost if nobody takes
    them."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("sliceserve")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str, service: str) -> "Tracing":
        """To the collector at the URL ``endpoint``, by OTLP over HTTP, in the name of ``service``
        unless OTEL_SERVICE_NAME is set. Raises TracingError where the packages are missing."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                f"traces need packages that are not installed ({error.name}); "
                "pip install 'sliceserve[tracing]', or leave otlp_traces_endpoint out"
            ) from error
        resource = Resource({"service.name": service}).merge(OTELResourceDetector().detect())
        # Whoever made it ends it, within bounds.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def start(self, name: str, kind: Kind, parent: str, attributes: Attributes) -> "Span":
        """Begin a span. ``parent`` is a W3C traceparent; with "", or one that is not valid, the
        span is under the one that the program around has open, if it has one."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract({"traceparent": parent}) if parent else None
        kinds = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT}
        span = self._tracer.start_span(name, context, kinds[kind], attributes)
        return Span(self._tracer, span)

    def close(self) -> None:
        """Send what is left, if it can be sent soon. May be called twice."""
        # The provider's own patience with a collector that is away is half a minute.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_CLOSE_TIMEOUT_S)


def make_tracing(endpoint: str | None, service: str) -> Tracing | None:
    """As `Tracing.to`; None without an endpoint."""
    return None if endpoint is None else Tracing.to(endpoint, service)


class Span:
    """One piece of a request's time, from its making until ``end``."""

    def __init__(self, tracer: "trace.Tracer", span: "trace.Span") -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        """What the other side's spans are put under."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def add(self, name: str, start: float, stop: float, attributes: Attributes) -> None:
        """A part of it, from ``start`` to ``stop``, in `time.time` seconds."""
        from opentelemetry.trace import set_span_in_context

        part = self._tracer.start_span(
            name,
            set_span_in_context(self._span),
            attributes=attributes,
            start_time=_nanoseconds(start),
        )
        part.end(_nanoseconds(stop))

    def end(self, error: str | None = None) -> None:
        """``error`` says what went wrong, if anything did."""
        from opentelemetry.trace import Status, StatusCode

        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)

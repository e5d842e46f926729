"""OpenTelemetry traces: one for each request, over client and server.

Nothing of OpenTelemetry is imported unless somebody asks for traces.
"""

from sliceserve.tracing.attributes import request_attributes, usage_attributes
from sliceserve.tracing.spans import (
    TRACE_PARENT,
    Attributes,
    Span,
    Tracing,
    TracingError,
    make_tracing,
    read_trace_parent,
)

__all__ = [
    "TRACE_PARENT",
    "Attributes",
    "Span",
    "Tracing",
    "TracingError",
    "make_tracing",
    "read_trace_parent",
    "request_attributes",
    "usage_attributes",
]

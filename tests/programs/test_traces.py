"""Traces of a gateway and of the server behind it, as a collector gets them."""

import openai
from processes import GATEWAY_KEY, running_gateway, skip_without_default_model
from trace_collector import trace_collector

from sliceserve.cli.local_server import local_server
from sliceserve.configs import DEFAULT_MODEL

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def spans_of(received):
    """All spans, each with the name of the service that it comes from."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for _, body in received:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = [
                pair.value.string_value
                for pair in resource.resource.attributes
                if pair.key == "service.name"
            ]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield service, span


def test_a_request_is_one_trace_over_both_processes():
    skip_without_default_model()
    with trace_collector() as (endpoint, received):
        tracing = ["--otlp-traces-endpoint", endpoint]
        serving = ["--cuts", "8", "--kv-cache-tokens", "4096", "--profiles", "off", *tracing]
        with (
            local_server(serving) as server,
            running_gateway(server, *tracing) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key=GATEWAY_KEY, max_retries=0) as client,
        ):
            answer = client.completions.create(
                model=DEFAULT_MODEL,
                prompt="One, two,",
                max_tokens=4,
                extra_headers={"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
            )
            assert answer.usage.completion_tokens == 4
    # Both have ended, and sent what they still had.
    spans = [(name, span) for name, span in spans_of(received) if span.trace_id.hex() == TRACE_ID]
    services = {span.span_id: service for service, span in spans}
    crossings = {
        (services[span.parent_span_id], service)
        for service, span in spans
        if span.parent_span_id in services
    }
    assert len(set(services.values())) == 2
    across = [(above, below) for above, below in crossings if above != below]
    assert len(across) == 1, crossings
    assert {span.name for _, span in spans} >= {"head", "queue", "tail", "sample", "decode"}

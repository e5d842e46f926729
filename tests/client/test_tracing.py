"""One trace for each request, over client and server."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from split_server import split_server
from trace_collector import trace_collector

from sliceserve.api.app import create_app
from sliceserve.api.backend import Backend
from sliceserve.client.build import make_session
from sliceserve.client.errors import RequestTimeout
from sliceserve.configs import ClientConfig, CodecConfig, ModelConfig, SamplingParams
from sliceserve.engine.generation import Caller
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.tracing import Tracing, TracingError, make_tracing, read_trace_parent

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported():
    """Spans that have ended, and what makes them."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, Tracing(provider)


@pytest.fixture
async def session_of(tiny):
    """Starts sessions with a server."""
    path, _ = tiny
    sessions = []

    async def start(url, tracing=None):
        config = ClientConfig(
            server=url,
            model=ModelConfig(model=path, dtype="float32", device="cpu"),
            split=3,
            codec=CodecConfig(name="float32"),
        )
        session = make_session(config)
        session.tracing = tracing
        await session.start()
        sessions.append(session)
        return session

    yield start
    for session in sessions:
        await session.close()


def family(spans):
    """Spans by name, and the name of the span that each is under."""
    names = {span.context.span_id: span.name for span in spans}
    by_name = {span.name: span for span in spans}
    return by_name, {
        (span.name, names.get(span.parent.span_id, "?") if span.parent else None) for span in spans
    }


async def test_a_gateways_request_is_one_trace_down_to_the_server(tiny, exported, session_of):
    path, _ = tiny
    exporter, tracing = exported
    async with split_server(path, first=3, cuts=(3,), tracing=tracing) as server:
        session = await session_of(server.url, tracing)
        backend = Backend(
            models=("edge",),
            fingerprint=session.info.fingerprint,
            tokenizer=Tokenizer.load(Path(path)),
            generator=session,
            engine=None,
            stats=session.head.stats,
            tracing=tracing,
        )
        transport = httpx.ASGITransport(create_app(backend))
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            body = {"model": "edge", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
            headers = {"traceparent": PARENT}
            answer = await client.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200
        # The server's span ends with the last token, before that has reached the client.
        spans = exporter.get_finished_spans()
    by_name, parents = family(spans)
    assert {f"{span.context.trace_id:032x}" for span in spans} == {PARENT.split("-")[1]}
    at_gateway, on_device = "text_completion edge", "split tiny"
    on_server = "text_completion tiny"
    assert parents == {
        (at_gateway, "?"),
        (on_device, at_gateway),
        (on_server, on_device),
        ("head", on_device),
        *((part, on_server) for part in ("queue", "tail", "sample")),
        ("decode", on_server),
        ("decode", on_device),
        ("decode", at_gateway),
    }
    assert f"{by_name[at_gateway].parent.span_id:016x}" == PARENT.split("-")[2]
    for name in (at_gateway, on_device, on_server):
        told = by_name[name].attributes
        assert told["gen_ai.usage.input_tokens"] == 3
        assert told["gen_ai.usage.output_tokens"] == 4
        assert told["gen_ai.request.max_tokens"] == 4
    assert by_name[on_server].attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert by_name[on_server].attributes["gen_ai.latency.time_in_queue"] >= 0
    assert by_name[on_device].attributes["sliceserve.cut"] == 3
    parts = [set(span.attributes) for span in spans if span.name == "decode"]
    assert {f"sliceserve.time.{part}" for part in ("queue", "tail", "sample")} in [
        found - {"sliceserve.tokens"} for found in parts
    ]
    assert any("sliceserve.time.head" in found for found in parts)
    queue, tail, sample = (by_name[name] for name in ("queue", "tail", "sample"))
    assert queue.end_time == tail.start_time and tail.end_time == sample.start_time


async def test_what_a_client_leaves_and_what_fails_ends_its_spans(tiny, exported, session_of):
    path, _ = tiny
    exporter, tracing = exported
    async with split_server(path, first=3, cuts=(3,), tracing=tracing) as server:
        session = await session_of(server.url, tracing)
        steps = session.generate([5, 6, 7], SamplingParams(max_tokens=50, ignore_eos=True))
        await anext(steps)
        await steps.aclose()
        with pytest.raises(RequestTimeout, match="time is over"):
            async for _ in session.generate([5, 6, 7], SamplingParams(), timeout_s=0.0):
                pass
    by_name, _ = family(exporter.get_finished_spans())
    left = [s for s in exporter.get_finished_spans() if s.name == "text_completion tiny"]
    assert left[0].attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert not by_name["split tiny"].status.is_ok


async def test_a_hop_without_traces_passes_them_on(tiny, exported, session_of):
    path, _ = tiny
    exporter, tracing = exported
    async with split_server(path, first=3, cuts=(3,), tracing=tracing) as server:
        session = await session_of(server.url)
        caller = Caller(trace_parent=PARENT)
        async for _ in session.generate([5, 6], SamplingParams(max_tokens=2), caller):
            pass
    by_name, _ = family(exporter.get_finished_spans())
    assert f"{by_name['text_completion tiny'].parent.span_id:016x}" == PARENT.split("-")[2]


def test_what_is_no_traceparent_is_left_out():
    assert read_trace_parent(PARENT) == PARENT
    for header in ("", "x" * 55, PARENT.upper(), PARENT + "-more", PARENT + "\n"):
        assert read_trace_parent(header) == ""


_SPANS_FOR_NOBODY = """
import logging, time
from sliceserve.tracing import make_tracing
tracing = make_tracing("http://127.0.0.1:9/v1/traces", "test")
tracing.start("request", "server", "", {}).end()
started = time.monotonic()
tracing.close()
tracing.close()
print(time.monotonic() - started < 20)
"""


def test_a_collector_that_is_away_ends_nothing():
    done = subprocess.run(
        [sys.executable, "-c", _SPANS_FOR_NOBODY], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


_WITHOUT_PACKAGES = """
import sys, json
for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"):
    sys.modules[name] = None
import sliceserve.client.session
from sliceserve.tracing import TracingError, make_tracing
assert make_tracing(None, "test") is None
try:
    make_tracing("http://127.0.0.1:9/v1/traces", "test")
except TracingError as error:
    print(json.dumps(str(error)))
"""


def test_without_its_packages_there_is_a_sentence_and_only_where_traces_are_wanted():
    done = subprocess.run([sys.executable, "-c", _WITHOUT_PACKAGES], capture_output=True, text=True)
    assert "sliceserve[tracing]" in json.loads(done.stdout), done.stderr
    assert issubclass(TracingError, ValueError)


def test_no_tracing_imports_nothing_of_it():
    code = (
        "import sys, sliceserve.client.sdk, sliceserve.api.worker\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert make_tracing(None, "test") is None


def test_spans_reach_their_collector():
    with trace_collector() as (endpoint, received):
        tracing = make_tracing(endpoint, "sliceserve-test")
        span = tracing.start("request", "server", PARENT, {"gen_ai.request.model": "tiny"})
        span.end("it broke")
        tracing.close()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"sliceserve-test" in body and b"it broke" in body
    assert bytes.fromhex(PARENT.split("-")[1]) in body

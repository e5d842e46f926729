"""Prometheus metrics. Names are vLLM's, under ``sliceserve:``, where the meaning is the same."""

import os
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from sliceserve.engine.messages import EngineStats
from sliceserve.transport.link import wire_bytes

_FIRST_TOKEN_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160,
)  # fmt: skip
_TOKEN_SECONDS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10,
)  # fmt: skip
_REQUEST_SECONDS = (
    0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
)  # fmt: skip


class Metrics:
    """All metrics of one app, in a registry of its own. Label ``path`` is "thin" for requests of
    the OpenAI routes and "split" for those of the split endpoint.

    Where the environment names a folder in PROMETHEUS_MULTIPROC_DIR, as for a server's workers,
    the processes that share it count there together, and each exposes what all have counted."""

    def __init__(self) -> None:
        self._registry = self._exposed = CollectorRegistry()
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            self._exposed = CollectorRegistry()
            MultiProcessCollector(self._exposed, folder)
        self._engine = _EngineCollector()
        self._exposed.register(self._engine)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"sliceserve:{name}", text, ["path"], buckets=buckets, registry=self._registry
            )

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"sliceserve:{name}", text, labels, registry=self._registry)

        self.first_token_seconds = histogram(
            "time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN_SECONDS
        )
        self.inter_token_seconds = histogram(
            "inter_token_latency_seconds", "Between two tokens of a request.", _TOKEN_SECONDS
        )
        self.request_seconds = histogram(
            "e2e_request_latency_seconds", "From request to last token.", _REQUEST_SECONDS
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", ("path",))
        self.cached_tokens = counter(
            "prompt_tokens_cached", "Tokens of prompts that a prefix cache had.", ("path",)
        )
        self.generation_tokens = counter("generation_tokens", "Tokens generated.", ("path",))
        self.requests = counter(
            "request_success", "Requests that ended well.", ("path", "finished_reason")
        )
        self._uplink = counter("split_uplink_bytes", "Bytes from split clients.")
        self._packets = counter("split_uplink_packets", "Hidden states from split clients.")
        self._downlink = counter("split_downlink_bytes", "Bytes to split clients.")
        self.split_sessions = Gauge(
            "sliceserve:split_sessions",
            "Open split connections, by the layer at which their rows enter.",
            ["cut"],
            registry=self._registry,
            # Those of a worker that has died are not open.
            multiprocess_mode="livesum",
        )
        Gauge(
            "sliceserve:api_workers",
            "Processes that hold clients' connections.",
            registry=self._registry,
            multiprocess_mode="livesum",
        ).set(1)
        Gauge(
            "sliceserve:start_time_seconds",
            "When the server started, in seconds since 1970.",
            registry=self._registry,
            # Workers that have taken the place of others started later.
            multiprocess_mode="min",
        ).set(time.time())

    def count_uplink(self, payload_bytes: int) -> None:
        self._uplink.inc(wire_bytes(payload_bytes, from_client=True))

    def count_packets(self, num_packets: int) -> None:
        self._packets.inc(num_packets)

    def count_downlink(self, payload_bytes: int) -> None:
        self._downlink.inc(wire_bytes(payload_bytes, from_client=False))

    def expose(self, stats: EngineStats | None) -> bytes:
        """The text of /metrics; ``stats`` None leaves the engine's part out."""
        self._engine.stats = stats
        return generate_latest(self._exposed)

    def collect(self, stats: EngineStats | None) -> list[Metric]:
        """What that text is made of."""
        self._engine.stats = stats
        return list(self._exposed.collect())


class RequestTimer:
    """The times and counts of one request, from its making on."""

    def __init__(self, metrics: Metrics, path: str, num_prompt: int) -> None:
        # Looked up once a request, not once a token.
        self._first_token_seconds = metrics.first_token_seconds.labels(path)
        self._inter_token_seconds = metrics.inter_token_seconds.labels(path)
        self._generation_tokens = metrics.generation_tokens.labels(path)
        self._metrics = metrics
        self._path = path
        self._num_prompt = num_prompt
        self._began = time.perf_counter()
        self._last_token: float | None = None

    def token(self, num_cached: int) -> None:
        """A token has come; of the prompt ``num_cached`` positions were in the prefix cache."""
        now = time.perf_counter()
        if self._last_token is None:
            self._first_token_seconds.observe(now - self._began)
            self._metrics.prompt_tokens.labels(self._path).inc(self._num_prompt)
            num_cached = min(num_cached, self._num_prompt)
            self._metrics.cached_tokens.labels(self._path).inc(num_cached)
        else:
            self._inter_token_seconds.observe(now - self._last_token)
        self._generation_tokens.inc()
        self._last_token = now

    def finish(self, reason: str) -> None:
        """The request has ended well."""
        seconds = time.perf_counter() - self._began
        self._metrics.request_seconds.labels(self._path).observe(seconds)
        self._metrics.requests.labels(self._path, reason).inc()


class _EngineCollector:
    """The engine's own counts, as of the scrape."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        if stats is None:
            return
        gauges: dict[str, tuple[str, float]] = {
            "num_requests_live": ("Requests that the engine holds.", stats.num_live),
            "num_requests_queued": ("Requests that wait to be admitted.", stats.num_queued),
            "num_requests_running": ("Requests that compute.", stats.num_running),
            "num_requests_waiting": ("Requests that wait for memory.", stats.num_waiting),
            "num_requests_detached": ("Requests whose client has gone.", stats.num_detached),
            "held_packet_bytes": ("Packets kept for replay.", stats.held_packet_bytes),
            "prefix_cache_packet_bytes": (
                "Packets kept with cached blocks.",
                stats.cached_packet_bytes,
            ),
        }
        counters: dict[str, tuple[str, float]] = {
            "num_preemptions": ("Requests that lost their KV blocks.", stats.num_preempted_total),
            "prefix_cache_queries": (
                "Positions of prompts that were looked up in the prefix cache.",
                stats.num_prefix_queried_tokens_total,
            ),
            "prefix_cache_hits": (
                "Positions of prompts that the prefix cache had.",
                stats.num_prefix_hit_tokens_total,
            ),
            "engine_steps": ("Forward passes.", stats.num_steps_total),
            "engine_tokens": ("Rows computed, replays included.", stats.num_tokens_total),
            "engine_busy_seconds": ("Time spent in forward passes.", stats.busy_seconds),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"sliceserve:{name}", text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"sliceserve:{name}", text, value)
        usage = GaugeMetricFamily(
            "sliceserve:kv_cache_usage_perc",
            "Share of KV blocks in use, 0 to 1, by segment of layers.",
            labels=["segment"],
        )
        blocks = GaugeMetricFamily(
            "sliceserve:kv_cache_blocks",
            "KV blocks by segment of layers: used, cached (free, but with a prefix in them), empty.",
            labels=["segment", "state"],
        )
        for segment in stats.segments:
            name = f"{segment.first}-{segment.stop}"
            num_used = segment.num_blocks - segment.num_free
            usage.add_metric([name], num_used / max(1, segment.num_blocks))
            blocks.add_metric([name, "used"], num_used)
            blocks.add_metric([name, "cached"], segment.num_cached)
            blocks.add_metric([name, "empty"], segment.num_free - segment.num_cached)
        yield usage
        yield blocks

"""The engine's own counts, as of the scrape."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from sliceserve.engine.distribution import Distribution
from sliceserve.engine.messages import EngineStats, PathStats, SegmentStats

_PATH_HISTOGRAMS = {
    "request_queue_time_seconds": ("Before the first step of a request.", "queue_seconds"),
    "request_prefill_time_seconds": ("From first step to first token.", "prefill_seconds"),
    "request_decode_time_seconds": ("From first token to last token.", "decode_seconds"),
    "request_inference_time_seconds": ("From first step to last token.", "inference_seconds"),
}


def engine_metrics(stats: EngineStats) -> Iterator[Metric]:
    yield from _gauges(stats)
    yield from _counters(stats)
    yield from _of_segments(stats.segments)
    yield from _of_steps(stats)
    if stats.paths:
        yield from _of_paths(stats.paths)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"sliceserve:{name}", text, value)


def token_time_metrics(path: str, parts: Iterable[tuple[str, float, int]]) -> tuple[Metric, Metric]:
    """``parts`` are (name, seconds, tokens whose time that is)."""
    seconds = CounterMetricFamily(
        "sliceserve:token_time_seconds",
        "Time of tokens after the first of their request, by part.",
        labels=["path", "part"],
    )
    tokens = CounterMetricFamily(
        "sliceserve:token_time_tokens", "Tokens whose time that is.", labels=["path", "part"]
    )
    for part, part_seconds, num_tokens in parts:
        seconds.add_metric([path, part], part_seconds)
        tokens.add_metric([path, part], num_tokens)
    return seconds, tokens


def _gauges(stats: EngineStats) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, float]] = {
        "num_requests_live": ("Requests that the engine holds.", stats.num_live),
        "num_requests_queued": ("Requests that wait to be admitted.", stats.num_queued),
        "num_requests_running": ("Requests that compute.", stats.num_running),
        "num_requests_waiting": (
            "Requests that wait for memory, or to be admitted.",
            stats.num_waiting + stats.num_queued,
        ),
        "num_requests_detached": ("Requests whose client has gone.", stats.num_detached),
        "held_packet_bytes": ("Packets kept for replay.", stats.held_packet_bytes),
        "prefix_cache_packet_bytes": (
            "Packets kept with cached blocks.",
            stats.cached_packet_bytes,
        ),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"sliceserve:{name}", text, value)


def _counters(stats: EngineStats) -> Iterator[Metric]:
    yield counter(
        "num_preemptions", "Requests that lost their KV blocks.", stats.num_preempted_total
    )
    yield counter(
        "prefix_cache_queries",
        "Positions of prompts that were looked up in the prefix cache.",
        stats.num_prefix_queried_tokens_total,
    )
    yield counter(
        "prefix_cache_hits",
        "Positions of prompts that the prefix cache had.",
        stats.num_prefix_hit_tokens_total,
    )
    yield counter("engine_steps", "Forward passes.", stats.num_steps_total)
    yield counter("engine_tokens", "Rows computed, replays included.", stats.num_tokens_total)
    yield counter("engine_busy_seconds", "Time spent in forward passes.", stats.busy_seconds)


def _of_segments(segments: Iterable[SegmentStats]) -> Iterator[Metric]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            f"sliceserve:{name}", f"{text}, by segment of layers.", labels=["segment"]
        )

    usage = gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1")
    blocks = gauge("kv_blocks", "KV blocks that there are")
    used = gauge("kv_blocks_used", "KV blocks that requests hold")
    cached = gauge("kv_blocks_cached", "KV blocks that hold prefixes until others need the room")
    for segment in segments:
        label = [f"{segment.first}-{segment.stop}"]
        num_used = segment.num_blocks - segment.num_free
        usage.add_metric(label, num_used / max(1, segment.num_blocks))
        blocks.add_metric(label, segment.num_blocks)
        used.add_metric(label, num_used)
        cached.add_metric(label, segment.num_cached)
    yield from (usage, blocks, used, cached)


def _of_steps(stats: EngineStats) -> Iterator[Metric]:
    if stats.step_tokens is not None:
        text = "Rows of a forward pass, of prompts and answers."
        yield _histogram("iteration_tokens_total", text, {}, {"": stats.step_tokens})
    if stats.step_requests is not None:
        text = "Requests in a forward pass."
        yield _histogram("iteration_requests", text, {}, {"": stats.step_requests})


def _of_paths(paths: dict[str, PathStats]) -> Iterator[Metric]:
    for name, (text, field) in _PATH_HISTOGRAMS.items():
        of_path = {path: getattr(stats, field) for path, stats in paths.items()}
        yield _histogram(name, text, ["path"], of_path)
    for path, stats in paths.items():
        times = stats.token_times
        # A whole engine's layers are the tail of nobody's head.
        parts = {"queue": times.queue_s, "tail": times.layers_s, "sample": times.exit_s}
        yield from token_time_metrics(
            path, [(part, seconds, times.num_tokens) for part, seconds in parts.items()]
        )


def _histogram(
    name: str, text: str, labels: Iterable[str], distributions: dict[str, Distribution]
) -> Metric:
    """Of the ``distributions`` by the value of the one label, if there is one."""
    family = HistogramMetricFamily(f"sliceserve:{name}", text, labels=list(labels))
    for value, distribution in distributions.items():
        buckets, num_values = [], 0
        bounds = [*map(float, distribution.bounds), float("inf")]
        for bound, count in zip(bounds, distribution.counts, strict=True):
            num_values += count
            buckets.append((_le(bound), float(num_values)))
        family.add_metric([value] if value else [], buckets, distribution.total)
    return family


def _le(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)

"""What the dashboard shows, computed from what /metrics says.

``Counts`` are counters at one moment, or what they have grown by in a span; ``Rates`` say what that
means. ``State`` is how things are.
"""

from typing import Any

import msgspec

from sliceserve.api.dashboard.readings import Readings, quantile


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Since start, or of a span; ``seconds`` long. The defaults are those of a server that has just
    started. Histograms are counts by upper bound. ``part_seconds`` is the time that ``part_tokens``
    tokens have spent in each part of their way."""

    seconds: float = 0.0
    split_tokens: float = 0.0
    thin_tokens: float = 0.0
    prompt_tokens: float = 0.0
    num_steps: float = 0.0
    num_rows: float = 0.0
    num_step_requests: float = 0.0
    busy_seconds: float = 0.0
    num_preempted: float = 0.0
    uplink_bytes: float = 0.0
    uplink_fp16_bytes: float = 0.0
    uplink_tokens: float = 0.0
    downlink_bytes: float = 0.0
    prefix_queries: float = 0.0
    prefix_hits: float = 0.0
    part_seconds: dict[str, float] = {}
    part_tokens: dict[str, float] = {}
    ended: dict[str, float] = {}
    errors: dict[str, float] = {}
    first_token: dict[float, float] = {}
    inter_token: dict[float, float] = {}
    request: dict[float, float] = {}

    @classmethod
    def of(cls, readings: Readings, seconds: float) -> "Counts":
        total, by, buckets = readings.total, readings.by, readings.buckets
        return cls(
            seconds=seconds,
            split_tokens=total("generation_tokens_total", path="split"),
            thin_tokens=total("generation_tokens_total", path="thin"),
            prompt_tokens=total("prompt_tokens_total"),
            num_steps=total("engine_steps_total"),
            num_rows=total("engine_tokens_total"),
            num_step_requests=total("iteration_requests_sum"),
            busy_seconds=total("engine_busy_seconds_total"),
            num_preempted=total("num_preemptions_total"),
            uplink_bytes=total("split_uplink_bytes_total"),
            uplink_fp16_bytes=total("split_uplink_fp16_bytes_total"),
            uplink_tokens=total("split_uplink_tokens_total"),
            downlink_bytes=total("split_downlink_bytes_total"),
            prefix_queries=total("prefix_cache_queries_total"),
            prefix_hits=total("prefix_cache_hits_total"),
            part_seconds=by("token_time_seconds_total", "part", path="split"),
            part_tokens=by("token_time_tokens_total", "part", path="split"),
            ended=by("request_success_total", "finished_reason"),
            errors=by("request_errors_total", "code"),
            first_token=buckets("time_to_first_token_seconds"),
            inter_token=buckets("inter_token_latency_seconds"),
            request=buckets("e2e_request_latency_seconds"),
        )

    def since(self, before: "Counts") -> "Counts":
        """What has been counted from ``before`` until now."""
        return Counts(
            **{
                name: _growth(getattr(before, name), getattr(self, name))
                for name in self.__struct_fields__
            }
        )


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of ``count`` observations, in seconds; None where there were none."""

    count: float
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, buckets: dict[float, float]) -> "Percentiles":
        p50, p90, p99 = (quantile(share, buckets) for share in (0.5, 0.9, 0.99))
        return cls(count=max(buckets.values(), default=0.0), p50=p50, p90=p90, p99=p99)


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in ``seconds``. A mean of nothing is None.

    Of a forward pass there are ``requests_per_step`` and ``rows_per_step``, positions computed;
    ``busy`` is the share of the time spent in passes. ``uplink_bytes_per_token``: whole WebSocket
    messages for each hidden state, which takes ``fp16_bytes_per_token`` as it is. ``parts``: the
    seconds that a token of a split request spends in each part of its way. ``prefix_hit_rate``: the
    share of prompt positions that were cached.
    """

    seconds: float
    split_tokens: float
    thin_tokens: float
    prompt_tokens: float
    num_steps: float
    num_preempted: float
    uplink_tokens: float
    uplink_bytes: float
    downlink_bytes: float
    prefix_queries: float
    prefix_hits: float
    ended: dict[str, float]
    errors: dict[str, float]
    tokens_per_s: float | None
    requests_per_step: float | None
    rows_per_step: float | None
    busy: float | None
    uplink_bytes_per_token: float | None
    fp16_bytes_per_token: float | None
    prefix_hit_rate: float | None
    parts: dict[str, float]
    first_token: Percentiles
    inter_token: Percentiles
    request: Percentiles

    @classmethod
    def of(cls, counts: Counts) -> "Rates":
        same = {name: getattr(counts, name) for name in _UNCHANGED}
        timed = {part: num for part, num in counts.part_tokens.items() if num > 0}
        return cls(
            **same,
            tokens_per_s=_mean(counts.split_tokens + counts.thin_tokens, counts.seconds),
            requests_per_step=_mean(counts.num_step_requests, counts.num_steps),
            rows_per_step=_mean(counts.num_rows, counts.num_steps),
            busy=_mean(counts.busy_seconds, counts.seconds),
            uplink_bytes_per_token=_mean(counts.uplink_bytes, counts.uplink_tokens),
            fp16_bytes_per_token=_mean(counts.uplink_fp16_bytes, counts.uplink_tokens),
            prefix_hit_rate=_mean(counts.prefix_hits, counts.prefix_queries),
            parts={part: counts.part_seconds[part] / num for part, num in timed.items()},
            first_token=Percentiles.of(counts.first_token),
            inter_token=Percentiles.of(counts.inter_token),
            request=Percentiles.of(counts.request),
        )


_UNCHANGED = Rates.__struct_fields__[: Rates.__struct_fields__.index("tokens_per_s")]


class KvBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """Of a segment of layers: of ``num_blocks`` requests hold ``num_used``; ``num_cached`` more
    have prefixes in them until somebody needs the room."""

    segment: str
    num_blocks: float
    num_used: float
    num_cached: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How things are ``at`` a time (seconds since 1970). ``sessions``: split connections by cut.
    Of ``live`` requests some are ``running``, ``waiting`` for memory, or ``detached`` from their
    client; those ``queued`` are not live yet."""

    at: float
    uptime: float
    workers: float
    draining: bool
    sessions: dict[str, float]
    live: float
    running: float
    queued: float
    waiting: float
    detached: float
    kv: list[KvBlocks]

    @classmethod
    def of(cls, readings: Readings, at: float, draining: bool) -> "State":
        total, by = readings.total, readings.by
        blocks, used, cached = (
            by(name, "segment") for name in ("kv_blocks", "kv_blocks_used", "kv_blocks_cached")
        )
        queued = total("num_requests_queued")
        return cls(
            at=at,
            uptime=at - total("start_time_seconds"),
            workers=total("api_workers"),
            draining=draining,
            sessions=by("split_sessions", "cut"),
            live=total("num_requests_live"),
            running=total("num_requests_running"),
            queued=queued,
            waiting=total("num_requests_waiting") - queued,
            detached=total("num_requests_detached"),
            kv=[
                KvBlocks(segment=s, num_blocks=n, num_used=used[s], num_cached=cached[s])
                for s, n in blocks.items()
            ],
        )


def _growth(before: Any, now: Any) -> Any:
    if isinstance(now, dict):
        return {key: value - before.get(key, 0.0) for key, value in now.items()}
    return now - before


def _mean(total: float, count: float) -> float | None:
    return total / count if count > 0 else None

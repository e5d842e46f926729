"""What the API counts itself, and the text of /metrics."""

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from sliceserve.api.metrics.device import session_metrics
from sliceserve.api.metrics.engine import engine_metrics
from sliceserve.client.stats import SessionStats
from sliceserve.configs import DEFAULT_TENANT
from sliceserve.engine.messages import EngineStats
from sliceserve.transport.link import wire_bytes
from sliceserve.transport.messages import Times

_FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640,
)  # fmt: skip
_TOKEN_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1, 2.5, 5, 10, 40,
)  # fmt: skip
_REQUEST_SECONDS = (
    0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
)  # fmt: skip
_REQUEST_TOKENS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
)  # fmt: skip

# Of an element of a hidden state that nobody has compressed.
_FP16_BYTES = 2
# Codes are this project's own words, but a gateway passes on those of its server.
_MAX_CODES = 100

Path = Literal["thin", "split"]


class Metrics:
    """All metrics of one app, in a registry of its own. Label ``path`` is "thin" for requests of
    the OpenAI routes and "split" for those of the split endpoint; ``tenant`` is one of ``tenants``,
    or "other": labels must not grow with whoever comes.

    Where the environment names a folder in PROMETHEUS_MULTIPROC_DIR, as for a server's workers,
    the processes that share it count there together, and each exposes what all have counted.

    With ``serves_split`` there is a split endpoint; on a gateway the session counts in its place.
    """

    def __init__(
        self, tenants: Iterable[str] = (DEFAULT_TENANT,), serves_split: bool = True
    ) -> None:
        self._tenants = frozenset(tenants)
        self._codes: set[str] = set()
        self._registry = self._counted = CollectorRegistry()
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            self._counted = CollectorRegistry()
            MultiProcessCollector(self._counted, folder)
        self._tell_of_this_process()
        self._define_request_metrics()
        if serves_split:
            self._define_split_metrics()

    def _tell_of_this_process(self) -> None:
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

        self._tasks = Gauge(
            "sliceserve:event_loop_tasks",
            "Tasks on the event loops of the workers, each as of its last answer to this.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def _define_request_metrics(self) -> None:
        by_path, by_tenant = ("path",), ("path", "tenant")
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds",
            "From request to first token.",
            _FIRST_TOKEN_SECONDS,
            by_tenant,
        )
        self.inter_token_seconds = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a request.", _TOKEN_SECONDS
        )
        self.token_seconds = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time between the tokens of a request, once it has ended.",
            _TOKEN_SECONDS,
        )
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "From request to last token.", _REQUEST_SECONDS
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens of the prompt of a request.", _REQUEST_TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens generated for a request.", _REQUEST_TOKENS
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", by_tenant)
        self.cached_tokens = self._counter(
            "prompt_tokens_cached", "Tokens of prompts that a prefix cache had.", by_path
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.", by_tenant)
        self.requests = self._counter(
            "request_success",
            'Requests that ended well, or "abort": their clients went away or said stop.',
            ("path", "finished_reason", "tenant"),
        )
        self._errors = self._counter(
            "request_errors", "Errors that were answered.", ("path", "code")
        )
        self._rejected = self._counter(
            "requests_rejected",
            "Of the errors, those for want of room: the same may succeed later.",
            ("path", "code"),
        )

    def _define_split_metrics(self) -> None:
        self._uplink = self._counter("split_uplink_bytes", "Bytes from split clients.")
        self._downlink = self._counter("split_downlink_bytes", "Bytes to split clients.")
        self._uplink_tokens = self._counter(
            "split_uplink_tokens", "Hidden states from split clients."
        )
        self._uplink_fp16 = self._counter(
            "split_uplink_fp16_bytes", "Bytes that these hidden states have in fp16."
        )
        self._part_seconds = self._counter(
            "token_time_seconds",
            "Time of tokens after the first of their request, by part.",
            ("path", "part"),
        )
        self._part_tokens = self._counter(
            "token_time_tokens", "Tokens whose time that is.", ("path", "part")
        )
        self.split_sessions = Gauge(
            "sliceserve:split_sessions",
            "Open split connections, by the layer at which their rows enter.",
            ("cut",),
            registry=self._registry,
            # Those of a worker that has died are not open.
            multiprocess_mode="livesum",
        )

    def tenant_label(self, tenant: str) -> str:
        return tenant if tenant in self._tenants else "other"

    def count_tasks(self) -> None:
        """Those of the event loop that runs this."""
        self._tasks.set(len(asyncio.all_tasks()))

    def count_uplink(self, payload_bytes: int) -> None:
        self._uplink.inc(wire_bytes(payload_bytes, from_client=True))

    def count_downlink(self, payload_bytes: int) -> None:
        self._downlink.inc(wire_bytes(payload_bytes, from_client=False))

    def count_packets(self, num_packets: int, hidden_size: int) -> None:
        self._uplink_tokens.inc(num_packets)
        self._uplink_fp16.inc(num_packets * hidden_size * _FP16_BYTES)

    def count_abort(self, path: Path, tenant: str) -> None:
        """The client of a live request has gone for good, or wants no more of it."""
        self.requests.labels(path, "abort", self.tenant_label(tenant)).inc()

    def count_error(self, path: Path, code: str, may_retry: bool) -> None:
        """An error that was answered; ``may_retry``: the same may succeed later."""
        if code not in self._codes:
            if len(self._codes) >= _MAX_CODES:
                code = "other"
            self._codes.add(code)
        self._errors.labels(path, code).inc()
        if may_retry:
            self._rejected.labels(path, code).inc()

    def count_times(self, times: Times) -> None:
        """What a split client says of its tokens, as far as it can be believed."""
        parts = {"head": times.head_us, "encode": times.encode_us, "link": times.link_us}
        for part, microseconds in parts.items():
            self._part_seconds.labels("split", part).inc(microseconds / 1e6)
            self._part_tokens.labels("split", part).inc(times.num_tokens)

    def expose(self, stats: EngineStats | None, session: SessionStats | None = None) -> bytes:
        """The text of /metrics. ``stats`` None leaves the engine's part out, ``session`` is that
        of a gateway."""
        return generate_latest(_Collected(self.collect(stats, session)))

    def collect(
        self, stats: EngineStats | None, session: SessionStats | None = None
    ) -> list[Metric]:
        """What that text is made of."""
        here = [] if stats is None else engine_metrics(stats)
        there = [] if session is None else session_metrics(session)
        merged: dict[str, Metric] = {}
        for metric in chain(self._counted.collect(), here, there):
            known = merged.setdefault(metric.name, metric)
            if known is not metric:
                # Of one name, but from two origins.
                known.samples += metric.samples
        return list(merged.values())

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...],
        labels: tuple[str, ...] = ("path",),
    ) -> Histogram:
        name = f"sliceserve:{name}"
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"sliceserve:{name}", text, labels, registry=self._registry)


class _Collected(CollectorRegistry):
    """Metrics that have been collected already."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)

"""The span of one request of a split client."""

import time

from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.tracing import Tracing, request_attributes, usage_attributes
from sliceserve.transport.messages import Welcome


class SplitTrace:
    """From its making to ``end``. The prompt's way through the layers here is a span of its own;
    what the tokens after the first took, here and there, are the sums of another, "decode"."""

    def __init__(
        self, tracing: Tracing, welcome: Welcome, parent: str, sampling: SamplingParams
    ) -> None:
        attributes = request_attributes("text_completion", welcome.model, sampling)
        self._span = tracing.start(f"split {welcome.model}", "client", parent, attributes)
        self._span.set({"sliceserve.cut": welcome.cut, "sliceserve.codec": welcome.codec})
        self._began = time.time()
        self._prompt_encoded: float | None = None

    @property
    def traceparent(self) -> str:
        return self._span.traceparent

    def note_prompt_encoded(self) -> None:
        """The head has given the last packet of the prompt."""
        if self._prompt_encoded is None:
            self._prompt_encoded = time.time()

    def end(self, stats: RequestStats, error: str | None = None) -> None:
        """The request has ended; ``stats`` are its own."""
        self._span.set(
            usage_attributes(stats.num_prompt_tokens, stats.num_tokens, stats.num_cached_server)
        )
        self._span.set(
            {
                "sliceserve.uplink_bytes": stats.bytes_up,
                "sliceserve.downlink_bytes": stats.bytes_down,
            }
        )
        if self._prompt_encoded is not None:
            self._span.add("head", self._began, self._prompt_encoded, {})
        if stats.num_tokens > 0:
            self._span.set({"gen_ai.latency.time_to_first_token": stats.ttft_s})
        if stats.parts.num_tokens > 0:
            first = self._began + stats.ttft_s
            parts = {f"sliceserve.time.{name}": s for name, s in stats.parts.seconds.items()}
            parts["sliceserve.tokens"] = stats.parts.num_tokens
            self._span.add("decode", first, first + stats.decode_s, parts)
        self._span.end(error)

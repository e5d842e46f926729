"""The span of one request in the API."""

import time

from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import TokenTimes
from sliceserve.tracing import Attributes, Tracing, request_attributes, usage_attributes


class RequestTrace:
    """From its making to ``end``. What the first token took is told by spans of its own, what all
    others took by the sums of one, "decode"."""

    def __init__(
        self,
        tracing: Tracing,
        operation: str,
        model: str,
        parent: str,
        sampling: SamplingParams,
        num_prompt: int,
    ) -> None:
        attributes = request_attributes(operation, model, sampling)
        self._span = tracing.start(f"{operation} {model}", "server", parent, attributes)
        self._ended = False
        self._num_prompt = num_prompt
        self._num_tokens = self._num_cached = 0
        self._times = TokenTimes()
        self._began = self._first_token = self._last_token = time.time()

    @property
    def traceparent(self) -> str:
        return self._span.traceparent

    def set(self, attributes: Attributes) -> None:
        self._span.set(attributes)

    def token(self, num_cached: int, times: TokenTimes | None) -> None:
        """A token has come. ``times``: what it took, if the engine is here that knows."""
        self._last_token = now = time.time()
        if self._num_tokens == 0:
            self._first_token = now
            self._num_cached = num_cached
            if times is not None:
                self._add_parts(times, now)
        elif times is not None:
            self._times = self._times.plus(times)
        self._num_tokens += 1

    def end(self, finish_reason: str, error: str | None = None) -> None:
        """The request has ended, with an ``error`` or without; what comes later says nothing."""
        if self._ended:
            return
        self._ended = True
        self._span.set(usage_attributes(self._num_prompt, self._num_tokens, self._num_cached))
        self._span.set({"gen_ai.response.finish_reasons": [finish_reason]})
        if self._num_tokens > 0:
            first_s, last_s = self._first_token - self._began, self._last_token - self._began
            self._span.set(
                {"gen_ai.latency.time_to_first_token": first_s, "gen_ai.latency.e2e": last_s}
            )
        if self._num_tokens > 1:
            sums = {
                "sliceserve.tokens": self._num_tokens - 1,
                "sliceserve.time.queue": self._times.queue_s,
                "sliceserve.time.tail": self._times.layers_s,
                "sliceserve.time.sample": self._times.exit_s,
            }
            parts = sums if self._times.num_tokens else {}
            self._span.add("decode", self._first_token, self._last_token, parts)
        self._span.end(error)

    def _add_parts(self, times: TokenTimes, now: float) -> None:
        """The parts follow each other, up to ``now``."""
        sampled_from = now - times.exit_s
        begun = sampled_from - times.layers_s
        self._span.add("queue", begun - times.queue_s, begun, {})
        self._span.add("tail", begun, sampled_from, {})
        self._span.add("sample", sampled_from, now, {})
        self._span.set(
            {
                "gen_ai.latency.time_in_queue": times.queue_s,
                "gen_ai.latency.time_in_model_prefill": times.layers_s + times.exit_s,
            }
        )

"""The times and counts of single requests."""

import time

from sliceserve.api.metrics.counted import Metrics, Path
from sliceserve.api.traces import RequestTrace
from sliceserve.engine.messages import TokenTimes


class RequestTimer:
    """Of one request, from its making on. One that is ``resumed`` has its first token from
    elsewhere; one that ``shares_prompt`` has the prompt of another that counts it. ``trace`` is
    told the same, if there is one."""

    def __init__(
        self,
        metrics: Metrics,
        path: Path,
        tenant: str,
        num_prompt: int,
        *,
        resumed: bool = False,
        shares_prompt: bool = False,
        trace: RequestTrace | None = None,
    ) -> None:
        self._trace = trace
        self._metrics = metrics
        self._path = path
        self._tenant = metrics.tenant_label(tenant)
        # Looked up once a request, not once a token.
        self._inter_token_seconds = metrics.inter_token_seconds.labels(path)
        self._generation_tokens = metrics.generation_tokens.labels(path, self._tenant)
        self._num_prompt = num_prompt
        self._shares_prompt = shares_prompt
        self._resumed = resumed
        self._num_tokens = 0
        self._began = time.perf_counter()
        self._first_token = self._last_token = self._began

    def token(self, num_cached: int, times: TokenTimes | None = None) -> None:
        """A token has come; of the prompt ``num_cached`` positions were in the prefix cache."""
        if self._trace is not None:
            self._trace.token(num_cached, times)
        now = time.perf_counter()
        if self._num_tokens > 0:
            self._inter_token_seconds.observe(now - self._last_token)
        else:
            self._first_token = now
            if not self._resumed:
                self._begin(now, num_cached)
        self._num_tokens += 1
        self._generation_tokens.inc()
        self._last_token = now

    def finish(self, reason: str) -> None:
        """The request has ended well."""
        if self._trace is not None:
            self._trace.end(reason)
        metrics, path = self._metrics, self._path
        metrics.requests.labels(path, reason, self._tenant).inc()
        if self._resumed:
            # The rest of it was counted where it began, if anywhere.
            return
        metrics.request_seconds.labels(path).observe(time.perf_counter() - self._began)
        metrics.request_prompt_tokens.labels(path).observe(self._num_prompt)
        metrics.request_generation_tokens.labels(path).observe(self._num_tokens)
        if self._num_tokens > 1:
            mean = (self._last_token - self._first_token) / (self._num_tokens - 1)
            metrics.token_seconds.labels(path).observe(mean)

    def abort(self) -> None:
        """Its client has gone for good, or wants no more of it."""
        if self._trace is not None:
            self._trace.end("abort")
        self._metrics.count_abort(self._path, self._tenant)

    def leave(self) -> None:
        """The request goes on without this one, or ends elsewhere; the rest is not to be seen."""
        if self._trace is not None:
            self._trace.end("abort")

    def fail(self, message: str) -> None:
        """The request has ended with an error, which is counted where it is told."""
        if self._trace is not None:
            self._trace.end("error", message)

    def _begin(self, now: float, num_cached: int) -> None:
        metrics, path = self._metrics, self._path
        metrics.first_token_seconds.labels(path, self._tenant).observe(now - self._began)
        if not self._shares_prompt:
            metrics.prompt_tokens.labels(path, self._tenant).inc(self._num_prompt)
            metrics.cached_tokens.labels(path).inc(min(num_cached, self._num_prompt))

"""The times and counts of single requests."""

import time

from sliceserve.api.metrics.counted import Metrics, Path


class RequestTimer:
    """Of one request, from its making on. One that is ``resumed`` has its first token from
    elsewhere; one that ``shares_prompt`` has the prompt of another that counts it."""

    def __init__(
        self,
        metrics: Metrics,
        path: Path,
        tenant: str,
        num_prompt: int,
        *,
        resumed: bool = False,
        shares_prompt: bool = False,
    ) -> None:
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

    def token(self, num_cached: int) -> None:
        """A token has come; of the prompt ``num_cached`` positions were in the prefix cache."""
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
        """As `Metrics.count_abort`."""
        self._metrics.count_abort(self._path, self._tenant)

    def _begin(self, now: float, num_cached: int) -> None:
        metrics, path = self._metrics, self._path
        metrics.first_token_seconds.labels(path, self._tenant).observe(now - self._began)
        if not self._shares_prompt:
            metrics.prompt_tokens.labels(path, self._tenant).inc(self._num_prompt)
            metrics.cached_tokens.labels(path).inc(min(num_cached, self._num_prompt))

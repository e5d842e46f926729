"""Prometheus metrics. Names are vLLM's, under ``sliceserve:``, where the meaning is the same."""

from sliceserve.api.metrics.counted import Metrics, Path
from sliceserve.api.metrics.requests import RequestTimer

__all__ = ["Metrics", "Path", "RequestTimer"]

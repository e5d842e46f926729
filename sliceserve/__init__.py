"""SliceServe: a large language model cut in two, its head on the device, its tail on a server."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sliceserve.client import (
        AsyncSplitLLM,
        Completion,
        ConnectionRefused,
        RequestFailed,
        RequestTimeout,
        SplitError,
        SplitLLM,
    )
    from sliceserve.configs import ClientConfig, SamplingParams
    from sliceserve.configs.loading import ConfigError
    from sliceserve.models.errors import ModelError

_HOMES = {
    "AsyncSplitLLM": "client",
    "ClientConfig": "configs",
    "Completion": "client",
    "ConfigError": "configs.loading",
    "ConnectionRefused": "client",
    "ModelError": "models.errors",
    "RequestFailed": "client",
    "RequestTimeout": "client",
    "SamplingParams": "configs",
    "SplitError": "client",
    "SplitLLM": "client",
}

__all__ = [
    "AsyncSplitLLM",
    "ClientConfig",
    "Completion",
    "ConfigError",
    "ConnectionRefused",
    "ModelError",
    "RequestFailed",
    "RequestTimeout",
    "SamplingParams",
    "SplitError",
    "SplitLLM",
]

__version__ = "0.1.0"

# Read by OpenMP when torch loads it: threads that wait must sleep soon. Measured on two cores with
# the default model, one row a step: 50 ms if they sleep at once, 40 with this spin, which outlasts
# the gap between two matrix products. With a neighbour that does the same: 58 and 80 ms, and 640
# with a long spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def __getattr__(name: str) -> Any:
    # The import of torch takes seconds: it waits until something is used that needs it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"sliceserve.{_HOMES[name]}"), name)

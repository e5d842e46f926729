"""The client of a split model: the SDK, and the session below it."""

from typing import TYPE_CHECKING, Any

from sliceserve.client.completion import Completion
from sliceserve.client.errors import (
    ConnectionRefused,
    RequestFailed,
    RequestTimeout,
    SplitError,
)
from sliceserve.client.session import SplitSession
from sliceserve.client.stats import RequestStats, SessionStats

if TYPE_CHECKING:
    from sliceserve.client.sdk import AsyncSplitLLM
    from sliceserve.client.sync import SplitLLM

__all__ = [
    "AsyncSplitLLM",
    "Completion",
    "ConnectionRefused",
    "RequestFailed",
    "RequestStats",
    "RequestTimeout",
    "SessionStats",
    "SplitError",
    "SplitLLM",
    "SplitSession",
]


def __getattr__(name: str) -> Any:
    # These two bring torch with them, which a server's API does without.
    if name == "AsyncSplitLLM":
        from sliceserve.client.sdk import AsyncSplitLLM

        return AsyncSplitLLM
    if name == "SplitLLM":
        from sliceserve.client.sync import SplitLLM

        return SplitLLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

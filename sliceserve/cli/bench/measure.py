"""One workload on one backend, as figures."""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from sliceserve.cli.bench.backends import Backend, SplitBackend, open_backend, stats_between
from sliceserve.cli.bench.options import BackendName
from sliceserve.cli.bench.timeline import latencies
from sliceserve.cli.bench.workload import OnToken, Workload, vocab_size
from sliceserve.cli.console import Working, progress
from sliceserve.client.stats import RequestStats
from sliceserve.configs import ClientConfig
from sliceserve.engine.build import pick_dtype

Measure = Callable[[Backend, ClientConfig, Workload, int, OnToken], Awaitable[dict[str, Any]]]


async def measure_each(
    names: Sequence[BackendName],
    config: ClientConfig,
    work: Workload,
    concurrency: int,
    measure: Measure,
) -> list[dict[str, Any]]:
    """Load, warm up, ``measure`` and free one backend after the other."""
    results = []
    for name in names:
        async with AsyncExitStack() as stack:
            with Working(f"Loading {config.model.model} …"):
                backend = await stack.enter_async_context(open_backend(name, config))
            with Working("Warming up …"):
                await warm_up(backend, config, work, concurrency)
            with progress(f"{name.value}, tokens", work.num_output_tokens) as on_token:
                results.append(await measure(backend, config, work, concurrency, on_token))
    return results


async def warm_up(backend: Backend, config: ClientConfig, work: Workload, concurrency: int) -> None:
    """Let everything that happens once, such as compilation, happen before the clock runs."""
    warm = work.warm_up(concurrency)
    prompts = warm.prompts(vocab_size(config))
    await backend.run(prompts, warm.sampling, concurrency, lambda: None)


async def measure_work(
    backend: Backend,
    config: ClientConfig,
    work: Workload,
    concurrency: int,
    on_token: OnToken = lambda: None,
) -> dict[str, Any]:
    """Run ``work``, ``concurrency`` prompts at a time, on a backend that is warm. ``config`` is
    what the backend was opened with."""
    prompts = work.prompts(vocab_size(config))
    before = backend.stats if isinstance(backend, SplitBackend) else None
    started = time.perf_counter()
    timelines = await backend.run(prompts, work.sampling, concurrency, on_token)
    seconds = time.perf_counter() - started
    result = {
        "backend": backend.name,
        "model": config.model.model,
        "dtype": str(pick_dtype(config.model)).removeprefix("torch."),
        "num_prompts": work.num_prompts,
        "concurrency": concurrency,
        "input_len": work.input_len,
        "output_len": work.output_len,
        "seconds": seconds,
        "tokens_per_s": work.num_output_tokens / seconds,
        "total_tokens_per_s": work.num_tokens / seconds,
        **latencies(timelines),
    }
    if isinstance(backend, SplitBackend) and before is not None:
        cost = stats_between(before, backend.stats)
        result |= {"split": backend.split, "codec": backend.codec}
        result |= split_cost(cost, backend.hidden_size)
    return result


def split_cost(cost: RequestStats, hidden_size: int) -> dict[str, float]:
    """Bytes for each hidden state, and milliseconds for each token of the answers."""
    sent, tokens = cost.uplink_bytes_per_token, cost.num_tokens
    return {
        "uplink_bytes_per_token": sent,
        "uplink_reduction_vs_fp16": 2 * hidden_size / sent,
        "head_ms_per_token": 1e3 * cost.head_s / tokens,
        "server_ms_per_token": 1e3 * cost.server_s / tokens,
        "link_ms_per_token": 1e3 * cost.link_s / tokens,
    }

"""What a codec costs in time, and what it saves in bytes."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table

from sliceserve.cli.bench.report import make_table, progress
from sliceserve.cli.bench.vectors import heavy_tailed, model_states
from sliceserve.codec.base import Codec
from sliceserve.codec.registry import build_codec
from sliceserve.configs import ClientConfig, CodecConfig
from sliceserve.engine.build import pick_device
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec

BATCH_SIZE = 64


async def run(
    codecs: Sequence[CodecConfig],
    hidden_sizes: Sequence[int],
    config: ClientConfig,
    repeats: int,
) -> list[dict[str, Any]]:
    """One result for each hidden size and codec. Vectors of the model's own size are its hidden
    states at ``config.split``, others are synthetic. Raises ModelError."""
    device = pick_device(config.model).type
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    own_size = ModelSpec.load(path).hidden_size
    results = []
    with progress("codecs", len(hidden_sizes) * len(codecs)) as advance:
        for size in hidden_sizes:
            if size == own_size:
                vectors = await model_states(config, BATCH_SIZE)
                source = f"hidden states of {config.model.model}"
            else:
                vectors = heavy_tailed(size, BATCH_SIZE, device)
                source = "synthetic, heavy-tailed"
            for settings in codecs:
                codec = build_codec(settings, size)
                header = {"codec": codec.wire_id, "hidden_size": size, "vectors": source}
                results.append(header | {"device": device} | measure_codec(codec, vectors, repeats))
                advance()
    return results


def measure_codec(codec: Codec, vectors: torch.Tensor, repeats: int) -> dict[str, float]:
    """Size, error and time of ``vectors`` (num_tokens, hidden_size).

    ``encode_us`` and ``decode_us`` are for one token in a call, ``batch_*_us`` for a token among
    all of ``vectors`` in one call; medians over ``repeats``. ``relative_mse`` is the squared error
    over the energy, of all vectors together.
    """
    packets = codec.encode(vectors)
    decoded = torch.empty_like(vectors)
    codec.decode(packets, decoded)
    rows = [vectors[i : i + 1] for i in range(len(vectors))]
    one = torch.empty_like(rows[0])
    n = len(rows)
    bits = 8 * sum(map(len, packets)) / vectors.numel()
    return {
        "bits_per_element": bits,
        "reduction_vs_fp16": 16 / bits,
        "relative_mse": float((decoded - vectors).square().sum() / vectors.square().sum()),
        "encode_us": _median_us(lambda i: codec.encode(rows[i % n]), repeats),
        "decode_us": _median_us(lambda i: codec.decode([packets[i % n]], one), repeats),
        "batch_encode_us": _median_us(lambda _: codec.encode(vectors), repeats) / n,
        "batch_decode_us": _median_us(lambda _: codec.decode(packets, decoded), repeats) / n,
    }


def _median_us(work: Callable[[int], object], repeats: int) -> float:
    work(0)
    times = []
    for i in range(repeats):
        _wait_for_gpu()
        started = time.perf_counter()
        work(i)
        _wait_for_gpu()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    """One table for each hidden size. Bits are for each element, the error is the relative MSE."""
    columns = ["codec", "bits", "× fp16", "error", "encode", "decode"]
    columns += [f"enc/{BATCH_SIZE}", f"dec/{BATCH_SIZE}"]
    names = ["bits_per_element", "reduction_vs_fp16", "relative_mse", "encode_us", "decode_us"]
    names += ["batch_encode_us", "batch_decode_us"]
    made = []
    for size in dict.fromkeys(result["hidden_size"] for result in results):
        of_size = [result for result in results if result["hidden_size"] == size]
        rows = [[result["codec"], *(result[name] for name in names)] for result in of_size]
        title = (
            f"{size} elements, {of_size[0]['vectors']}, on {of_size[0]['device']}; "
            f"µs per token, alone and among {BATCH_SIZE}"
        )
        made.append(make_table(title, columns, rows))
    return made

"""What a codec costs in time, and what it saves in bytes."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table

from sliceserve.cli.bench.profiles import model_profile, synthetic_profile
from sliceserve.cli.bench.report import make_table
from sliceserve.cli.bench.vectors import heavy_tailed, model_states
from sliceserve.cli.console import progress
from sliceserve.codec.base import Codec, Run
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.quantization import LAMBDA
from sliceserve.codec.registry import build_codec
from sliceserve.configs import ClientConfig, CodecConfig
from sliceserve.engine.build import pick_device
from sliceserve.kernels import calibrated as kernel
from sliceserve.models.embeddings import read_embeddings
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec

BATCH_SIZE = 64


async def run(
    codecs: Sequence[CodecConfig],
    hidden_sizes: Sequence[int],
    config: ClientConfig,
    repeats: int,
    transform: bool = True,
) -> list[dict[str, Any]]:
    """One result for each hidden size and codec. Vectors of the model's own size are its hidden
    states at ``config.split``, others are synthetic; so is the calibrated codec's profile, also
    that of the model's size if it is to do without ``transform``. Raises ModelError and
    CalibrationError."""
    device = pick_device(config.model).type
    path = resolve_model(config.model.model, config.model.trust_remote_code)
    own_size = ModelSpec.load(path).hidden_size
    results = []
    with progress("codecs", len(hidden_sizes) * len(codecs)) as advance:
        for size in hidden_sizes:
            if size == own_size:
                vectors, token_ids = await model_states(config, BATCH_SIZE)
                source = f"hidden states of {config.model.model}"
            else:
                vectors, token_ids = heavy_tailed(size, BATCH_SIZE, device), None
                source = "synthetic, heavy-tailed"
            for settings in codecs:
                ids = token_ids
                if settings.name != "calibrated":
                    codec = build_codec(settings, size)
                elif size == own_size and transform:
                    profile = model_profile(config, settings.calibrated)
                    codec = build_codec(settings, size, profile, read_embeddings(path))
                else:
                    # It knows one token only.
                    ids = None
                    profile = synthetic_profile(vectors, settings.calibrated, transform)
                    embeddings = torch.zeros(profile.vocab_size, size)
                    codec = build_codec(settings, size, profile, embeddings)
                header = {"codec": codec.wire_id, "hidden_size": size, "vectors": source}
                measured = measure_codec(codec, vectors, repeats, ids)
                results.append(header | {"device": device} | measured)
                advance()
    return results


def measure_codec(
    codec: Codec, vectors: torch.Tensor, repeats: int, token_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """Size, error and time of ``vectors`` (num_tokens, hidden_size), consecutive tokens.

    ``encode_us`` and ``decode_us`` are for one token in a call, ``batch_*_us`` for a token among
    all of ``vectors`` in one call, each of another request; medians over ``repeats``.
    ``relative_mse`` is the squared error over the energy, of all vectors together. The calibrated
    codec has ``kernel_*_us``, too: the part of ``batch_*_us`` without its matrices.
    """
    n = len(vectors)
    ids = [0] * n if token_ids is None else token_ids
    packets = codec.encode(vectors, [Run(n, ids)])
    decoded = torch.empty_like(vectors)
    codec.decode(packets, decoded, [Run(n)])

    def one(i: int) -> Run:
        """A token as the next of its request."""
        return Run(1, ids[i : i + 1], decoded[i - 1] if i else None)

    def all_of_them() -> list[Run]:
        return [one(i) for i in range(n)]

    rows = vectors.split(1)
    out = torch.empty_like(rows[0])
    batch_out = torch.empty_like(vectors)
    bits = 8 * sum(map(len, packets)) / vectors.numel()
    result = {
        "bits_per_element": bits,
        "reduction_vs_fp16": 16 / bits,
        "relative_mse": float((decoded - vectors).square().sum() / vectors.square().sum()),
        "encode_us": _median_us(lambda i: codec.encode(rows[i % n], [one(i % n)]), repeats),
        "decode_us": _median_us(
            lambda i: codec.decode([packets[i % n]], out, [one(i % n)]), repeats
        ),
        "batch_encode_us": _median_us(lambda _: codec.encode(vectors, all_of_them()), repeats) / n,
        "batch_decode_us": _median_us(
            lambda _: codec.decode(packets, batch_out, all_of_them()), repeats
        )
        / n,
    }
    if isinstance(codec, CalibratedCodec):
        points = [packet[0] % kernel.NUM_POINTS for packet in packets if packet[0] < kernel.ESCAPE]
        point = int(statistics.median(points)) if points else 0
        result |= _measure_kernel(codec.profile.tables, point, n, vectors.device, repeats)
    return result


def _measure_kernel(
    tables: kernel.Tables, point: int, num_rows: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """A token's time among ``num_rows`` Gaussian ones of the scales that ``tables`` expect."""
    scales = (torch.from_numpy(tables.base_scales).long() - point).clamp(min=0)
    sigmas = torch.from_numpy(kernel.SIGMAS)[scales]  # (d,)
    y64 = torch.randn(num_rows, len(sigmas), generator=torch.Generator().manual_seed(0)) * sigmas
    rows = y64.clamp(-kernel.MAX_INPUT, kernel.MAX_INPUT).int().to(device)
    points = torch.full((num_rows,), point, dtype=torch.uint8, device=device)
    payloads = torch.zeros(num_rows, dtype=torch.int32, device=device)

    def encode() -> list[bytes]:
        return kernel.encode(rows, points, payloads, tables, LAMBDA, 2)[0]

    packets = encode()
    return {
        "kernel_encode_us": _median_us(lambda _: encode(), repeats) / num_rows,
        "kernel_decode_us": _median_us(lambda _: kernel.decode(packets, tables, 2, device), repeats)
        / num_rows,
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
    columns = ["codec", "bits", "error", "enc", "dec", f"enc {BATCH_SIZE}", f"dec {BATCH_SIZE}"]
    columns += ["core enc", "core dec"]
    names = ["bits_per_element", "relative_mse", "encode_us", "decode_us"]
    names += ["batch_encode_us", "batch_decode_us", "kernel_encode_us", "kernel_decode_us"]
    made = []
    for size in dict.fromkeys(result["hidden_size"] for result in results):
        of_size = [result for result in results if result["hidden_size"] == size]
        rows = [[result["codec"], *(result.get(name) for name in names)] for result in of_size]
        title = (
            f"{size} elements, {of_size[0]['vectors']}, on {of_size[0]['device']}; "
            f"µs per token, alone and among {BATCH_SIZE}; core: without matrices"
        )
        made.append(make_table(title, columns, rows))
    return made

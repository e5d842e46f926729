"""The calibrated codec's kernel in Triton; byte for byte ``reference``.

A program takes as many tokens as fill a warp, and a tile of [TOKENS, LANES] walks their components:
trellis and rANS are sequential within a lane, so what counts is the latency of a step.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton

from sliceserve.kernels.calibrated import layout
from sliceserve.kernels.calibrated.cpu import joined
from sliceserve.kernels.calibrated.layout import CalibratedError, Tables
from sliceserve.kernels.calibrated.triton_decode import decode_kernel
from sliceserve.kernels.calibrated.triton_encode import classify_kernel, encode_kernel


def encode(
    y64: torch.Tensor,
    points: torch.Tensor,
    payloads: torch.Tensor,
    tables: Tables,
    lambda_: int,
    payload_bytes: int,
) -> tuple[list[bytes], torch.Tensor]:
    layout.expect_lambda(lambda_)
    layout.expect_payload_bytes(payload_bytes)
    y64, points, payloads = layout.expect_rows(y64, points, payloads, tables)
    num_rows, hidden_size = y64.shape
    device = y64.device
    reconstructed = torch.empty_like(y64)
    if num_rows == 0:
        return [], reconstructed
    on_device = _tables_on(tables, device)
    heads = torch.empty(num_rows, 2, dtype=torch.int32, device=device)
    classify_kernel[(num_rows,)](
        y64,
        points,
        payloads,
        on_device["base_scales"],
        on_device["sigmas"],
        on_device["reciprocals"],
        on_device["class_thresholds"],
        heads,
        hidden_size,
        1 << 8 * payload_bytes,
        BLOCK=triton.next_power_of_2(hidden_size),
    )
    max_words = 2 * (tables.num_lanes + hidden_size)
    words = torch.empty(num_rows, max_words, dtype=torch.int16, device=device)
    num_tokens = _tokens_per_program(tables)
    encode_kernel[(triton.cdiv(num_rows, num_tokens),)](
        y64,
        points,
        payloads,
        on_device["base_scales"],
        on_device["starts"],
        on_device["rates"],
        on_device["centroids"],
        torch.empty(num_rows, hidden_size, dtype=torch.uint8, device=device),
        words,
        heads,
        reconstructed,
        num_rows,
        hidden_size,
        max_words,
        lambda_,
        TOKENS=num_tokens,
        LANES=tables.num_lanes,
        num_warps=1,
    )
    return _cut(heads, words, payload_bytes), reconstructed


def _cut(heads: torch.Tensor, words: torch.Tensor, payload_bytes: int) -> list[bytes]:
    """Packets from their headers and the words that end each row."""
    headers, begins = heads.cpu().T.tolist()
    if min(headers) < 0:
        index = next(t for t, header in enumerate(headers) if header < 0)
        raise CalibratedError(-headers[index], index)
    # A row is much longer than what most packets need, and the bus is slow.
    first = min(begins)
    used = words[:, first:].cpu().numpy()
    prefix = layout.prefix_bytes(payload_bytes)
    return [
        header.to_bytes(2, "little")[:prefix] + row[begin - first :].tobytes()
        for header, begin, row in zip(headers, begins, used, strict=True)
    ]


def decode(
    packets: Sequence[bytes], tables: Tables, payload_bytes: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layout.expect_payload_bytes(payload_bytes)
    num_rows = len(packets)
    rows = torch.empty(num_rows, tables.hidden_size, dtype=torch.int32, device=device)
    points = torch.empty(num_rows, dtype=torch.uint8, device=device)
    payloads = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows == 0:
        return rows, points, payloads
    data, offsets = joined(packets)
    uploaded = torch.from_numpy(np.concatenate([offsets.view(np.uint8), data])).to(device)
    on_device = _tables_on(tables, rows.device)
    faults = torch.empty(num_rows, dtype=torch.int32, device=device)
    num_tokens = _tokens_per_program(tables)
    decode_kernel[(triton.cdiv(num_rows, num_tokens),)](
        uploaded[offsets.nbytes :],
        uploaded[: offsets.nbytes].view(torch.int64),
        on_device["base_scales"],
        on_device["starts"],
        on_device["centroids"],
        rows,
        points,
        payloads,
        faults,
        num_rows,
        tables.hidden_size,
        PREFIX=layout.prefix_bytes(payload_bytes),
        HAS_PAYLOAD=payload_bytes > 0,
        TOKENS=num_tokens,
        LANES=tables.num_lanes,
        num_warps=1,
    )
    found = faults.cpu().numpy()
    if found.any():
        index = int(found.nonzero()[0][0])
        raise CalibratedError(int(found[index]), index)
    return rows, points, payloads


def _tokens_per_program(tables: Tables) -> int:
    """As many as make a warp."""
    return max(1, 32 // tables.num_lanes)


@lru_cache(maxsize=16)
def _tables_on(tables: Tables, device: torch.device) -> dict[str, torch.Tensor]:
    arrays = {
        "base_scales": tables.base_scales,
        "starts": tables.starts.view(np.int16),
        "rates": tables.rates,
        "centroids": tables.centroids,
        "class_thresholds": tables.class_thresholds,
        "sigmas": layout.SIGMAS,
        "reciprocals": layout.RECIPROCALS,
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

"""Fits the entropy coder's tables: codes the calibration text, counts, and codes it again."""

import math
from dataclasses import replace

import numpy as np
import torch

from sliceserve.codec.quantization import LAMBDA
from sliceserve.kernels import calibrated as kernel
from sliceserve.kernels import rans

# Points that the samples are coded at, in turn: about those that are used.
_POINTS = (2, 5, 8, 10, 12, 14, 16, 19, 23)
_ROUNDS = 4
# A table that few symbols fell to leans on those of all classes, and those on the scales beside.
_CLASS_PRIOR = 40.0
_SCALE_PRIOR = 10.0
_CENTROID_PRIOR = 8.0
_UNITS = 1 << kernel.FRACTION_BITS


def fit_tables(components: torch.Tensor, base_step: float, shifts: torch.Tensor) -> kernel.Tables:
    """Components of residuals (n, d), the step of point 0, and by how many points each token's
    step is moved (n,) → tables."""
    turns = torch.tensor(_POINTS)[torch.arange(len(components)) % len(_POINTS)]
    points = (turns + shifts).clamp(0, kernel.NUM_POINTS - 1).to(torch.uint8)
    steps = base_step * torch.exp2(points / 4)
    y64 = (components * (_UNITS / steps)[:, None]).round()
    y64 = y64.clamp(-kernel.MAX_INPUT, kernel.MAX_INPUT).to(torch.int32)
    deviations = (components.square().mean(0).sqrt() / base_step).clamp_min(1e-6)
    base_scales = (4 * deviations.log2()).round() + 16
    base_scales = base_scales.clamp(0, kernel.NUM_SCALES - 1).to(torch.uint8).numpy()
    tables = kernel.Tables(
        frequencies=_frequencies(_laplace()),
        centroids=np.broadcast_to(kernel.NOMINAL, (*_SHAPE[1:3], kernel.NUM_DIRECT)).copy(),
        class_thresholds=_class_thresholds(y64.numpy(), points.numpy(), base_scales),
        base_scales=base_scales,
    )
    for _ in range(_ROUNDS):
        tables = _refit(tables, y64, points)
    return tables


_SHAPE = (kernel.NUM_CLASSES, kernel.NUM_SCALES, 2, kernel.NUM_SYMBOLS)


def _laplace() -> np.ndarray:
    """Weights of a Laplace distribution for every scale, to begin with; ``_SHAPE``."""
    magnitudes = np.arange(len(kernel.SYMBOLS))
    weights = np.zeros(_SHAPE)
    for scale in range(kernel.NUM_SCALES):
        decay = np.sqrt(2) / 2 ** ((scale - 16) / 4)
        for quantizer in (0, 1):
            values = 2 * magnitudes - quantizer * (magnitudes > 0)
            density = np.exp(-decay * values) * np.where(magnitudes > 0, 2, 1)
            np.add.at(weights[:, scale, quantizer].T, kernel.SYMBOLS, density[:, None])
    return weights * (1000 / weights.sum(axis=-1, keepdims=True))


def _class_thresholds(y64: np.ndarray, points: np.ndarray, base_scales: np.ndarray) -> np.ndarray:
    """Quartiles of the kernel's measure of a token's energy."""
    scales = np.maximum(base_scales.astype(np.int64) - points[:, None], 0)
    clipped = np.minimum(np.abs(y64).astype(np.int64), 4 * kernel.SIGMAS[scales])
    energies = ((clipped * kernel.RECIPROCALS[scales]).sum(axis=1)) >> 16
    return np.quantile(energies, (0.25, 0.5, 0.75)).astype(np.int64)


def _refit(tables: kernel.Tables, y64: torch.Tensor, points: torch.Tensor) -> kernel.Tables:
    levels, quantizers, classes = (
        part.numpy() for part in kernel.quantize(y64, points, tables, LAMBDA)
    )
    scales = np.maximum(tables.base_scales.astype(np.int64) - points.numpy()[:, None], 0)
    magnitudes = np.abs(levels.astype(np.int64))
    counts = _sums(_SHAPE, (classes[:, None], scales, quantizers, kernel.SYMBOLS[magnitudes]))
    direct = (magnitudes > 0) & (magnitudes < kernel.NUM_DIRECT)
    place = (scales[direct], quantizers[direct], magnitudes[direct])
    sums = _sums(tables.centroids.shape, place, np.abs(y64.numpy()[direct]))
    numbers = _sums(tables.centroids.shape, place)
    means = (sums + _CENTROID_PRIOR * kernel.NOMINAL) / (numbers + _CENTROID_PRIOR)
    centroids = np.clip(np.rint(means), kernel.NOMINAL - _UNITS, kernel.NOMINAL + _UNITS)
    centroids[..., 0] = 0
    return replace(tables, frequencies=_frequencies(counts), centroids=centroids.astype(np.int32))


def _sums(
    shape: tuple[int, ...], place: tuple[np.ndarray, ...], values: np.ndarray | None = None
) -> np.ndarray:
    """What falls to each place of a table, float64: how many, or the sum of their values."""
    flat = np.ravel_multi_index(np.broadcast_arrays(*place), shape).ravel()
    return np.bincount(flat, values, math.prod(shape)).reshape(shape).astype(np.float64)


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Counts of symbols, ``_SHAPE`` → frequencies that add up to 4096, none of them 0."""
    by_scale = counts.sum(axis=0)  # (NUM_SCALES, 2, NUM_SYMBOLS)
    beside = by_scale + 1e-3
    beside[1:] += by_scale[:-1] / 4
    beside[:-1] += by_scale[1:] / 4
    pooled = by_scale + _SCALE_PRIOR * beside / beside.sum(axis=-1, keepdims=True)
    shares = pooled / pooled.sum(axis=-1, keepdims=True)
    weights = counts + _CLASS_PRIOR * shares
    whole = np.rint(weights * (2**20 / weights.sum(axis=-1, keepdims=True))).astype(np.int64) + 1
    rows = [rans.normalise(row) for row in whole.reshape(-1, kernel.NUM_SYMBOLS)]
    return np.array(rows, np.uint16).reshape(_SHAPE)

"""Profiles written down rather than measured, and hidden states that they foretell.

All but the random parts is integer arithmetic, so that packets are the same on every machine.
"""

from functools import lru_cache

import numpy as np
import torch

from sliceserve.calibration.predictor import product
from sliceserve.codec.base import Run
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.profile import Profile
from sliceserve.configs import CalibratedConfig
from sliceserve.kernels import calibrated as kernel
from sliceserve.kernels import rans

PREDICTORS = ("state", "token", "none")
HIDDEN_SIZE = 24
VOCAB_SIZE = 300
BASE_STEP = 1 / 16


def make_profile(predictor="state", hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, transform=True):
    def matrix(square):
        return (square if transform else square.diagonal()).half()

    ids = torch.arange(1, vocab_size, 7, dtype=torch.int32)[:50]
    has_token, has_state = predictor != "none", predictor == "state"
    return Profile(
        model="a" * 32,
        cut=3,
        vocab_size=vocab_size,
        predictor=predictor,
        base_step=BASE_STEP,
        escape_norm=60.0,
        mean=_pattern(5, hidden_size) / 8,
        offset=_pattern(11, hidden_size) / 8,
        # Far from the identity, far from singular: off the diagonal all is at most 1/32.
        basis=matrix(torch.eye(hidden_size) + _pattern(3, hidden_size, hidden_size) / 256),
        sensitivity=torch.cat([_pattern(7, hidden_size) / 64, torch.zeros(1)]),
        rates=(kernel.NUM_POINTS - torch.arange(kernel.NUM_POINTS)) / 5,
        gains=torch.ones(kernel.NUM_POINTS),
        token_weight=matrix(_pattern(13, hidden_size, hidden_size) / 128) if has_token else None,
        token_ids=ids if has_token else None,
        token_rows=(_pattern(17, len(ids), hidden_size) / 16).half() if has_token else None,
        # Its rows' magnitudes add up to less than 1: errors die out.
        state_weight=matrix(_contraction(hidden_size)) if has_state else None,
        tables=make_tables(hidden_size),
    )


def make_codec(predictor="state", profile=None, bits_per_element=4.0, **config):
    profile = profile or make_profile(predictor)
    config = CalibratedConfig(bits_per_element=bits_per_element, **config)
    return CalibratedCodec(config, profile, embedding(profile))


def embedding(profile):
    """(vocab_size, hidden_size), multiples of 1/64."""
    return _pattern(19, profile.vocab_size, profile.hidden_size) / 8


def make_run(num_rows, seed=0, apart=(), profile=None):
    """Hidden states (num_rows, d) that the terms of ``profile`` foretell up to noise of the tables'
    scales, and token ids; rows ``apart`` are massive."""
    profile = profile or make_profile()
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(profile.vocab_size, (num_rows,), generator=generator)
    scales = kernel.SIGMAS[profile.tables.base_scales] / 64 * profile.base_step
    noise = torch.randn(num_rows, profile.hidden_size, generator=generator)
    rows = profile.offset + product(noise * torch.from_numpy(scales).float(), profile.basis.float())
    if profile.token_weight is not None:
        rows += product(embedding(profile)[token_ids], profile.token_weight.float())
    if profile.state_weight is not None:
        for i in range(1, num_rows):
            rows[i] += product(rows[i - 1] - profile.mean, profile.state_weight.float())
    for i in apart:
        rows[i] *= 1000
    return rows, token_ids.tolist()


def encode(codec, rows, token_ids):
    """Packets of one run, and the state that it carries on."""
    run = Run(len(rows), token_ids)
    return codec.encode(rows, [run]), run.previous


def decode(codec, packets, device="cpu"):
    """States of one run, and the one that it carries on."""
    run = Run(len(packets))
    out = torch.empty(len(packets), codec.hidden_size, device=device)
    codec.decode(packets, out, [run])
    return out, run.previous


def make_tables(hidden_size):
    """Geometric odds, flatter at larger scales; centroids a little below nominal."""
    below_nominal = np.minimum(3 * np.arange(kernel.NUM_DIRECT), 16)
    centroids = np.broadcast_to(kernel.NOMINAL - below_nominal, (kernel.NUM_SCALES, 2, 12))
    return kernel.Tables(
        frequencies=_frequencies(),
        centroids=np.ascontiguousarray(centroids, np.int32),
        class_thresholds=np.array([10, 13, 16], np.int64) * hidden_size,
        base_scales=(40 - 20 * np.arange(hidden_size) // hidden_size).astype(np.uint8),
    )


@lru_cache
def _frequencies():
    rows = []
    for token_class in range(kernel.NUM_CLASSES):
        for scale in range(kernel.NUM_SCALES):
            above, below = scale + 1 + token_class, scale + 12
            weights = [2**30 * above**m // below**m + 1 for m in range(kernel.NUM_SYMBOLS)]
            rows += [rans.normalise(np.array(weights, np.int64))] * 2
    shape = (kernel.NUM_CLASSES, kernel.NUM_SCALES, 2, kernel.NUM_SYMBOLS)
    return np.array(rows, np.uint16).reshape(shape)


def _contraction(hidden_size):
    weight = _pattern(23, hidden_size, hidden_size) / (64 * hidden_size)
    return weight + torch.eye(hidden_size) * 0.75


def _pattern(seed, *shape):
    """Whole numbers from -8 to 8 in no order that one sees."""
    places = torch.arange(int(np.prod(shape)))
    mixed = (places + seed) * 40503 % 65521
    return (mixed * mixed % 65521 % 17 - 8).float().view(shape)

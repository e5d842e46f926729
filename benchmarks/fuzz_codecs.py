"""Damaged packets for every codec's decoder: each must be values or a CodecError, and soon.

Packets of encoders with settings drawn at random are cut, lengthened, spliced and flipped, or
replaced by any bytes. ``check`` and ``decode`` must agree on each, its values must be finite, and
what stands beside its row must stay. The last line is JSON; the status is 1 if any packet broke a
promise.

    python benchmarks/fuzz_codecs.py --seconds 60
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch

from sliceserve.codec.base import Codec, CodecError, Run
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.profile import Profile
from sliceserve.codec.registry import build_codec, known_codecs, warm_up
from sliceserve.configs import CalibratedConfig, CodecConfig, RansConfig, SlicerConfig
from sliceserve.configs.codec import CodecName

_HIDDEN_SIZES = (1, 7, 70, 576)
_MUTATIONS_PER_PACKET = 50


@dataclass
class Tally:
    """What became of one codec's packets."""

    packets: int = 0
    accepted: int = 0
    broken: int = 0
    slowest_us: float = 0.0


def draw_codec(name: CodecName) -> Codec:
    config = CodecConfig(
        slicer=SlicerConfig(
            sparsity=random.choice((0.0, 0.2, 0.5, 0.8, 0.95)),
            num_blocks=2 ** random.randrange(5),
            distortion=random.choice((0.0, 0.001, 0.01, 0.1)),
            max_bits=random.randint(1, 12),
        ),
        rans=RansConfig(num_levels=random.choice((2, 8, 30, 256))),
    )
    return build_codec(replace(config, name=name), random.choice(_HIDDEN_SIZES))


def draw_calibrated(profile: Profile, embedding: torch.Tensor) -> Codec:
    config = CalibratedConfig(bits_per_element=random.uniform(0.2, 6))
    return CalibratedCodec(config, profile, embedding)


def draw_packet(codec: Codec) -> bytes:
    row = torch.randn(1, codec.hidden_size) * 10 ** random.uniform(-3, 2)
    row[0, random.randrange(codec.hidden_size)] *= random.choice((1, 300))
    # What float16 holds.
    row = row.clamp(-65504, 65504)
    return codec.encode(row, [Run(1, [0])])[0]


def mutate(packet: bytes, other: bytes) -> bytes:
    kind = random.choice(("none", "cut", "lengthen", "splice", "flip", "flip", "overwrite", "any"))
    place = random.randrange(len(packet) + 1)
    if kind == "cut":
        return packet[:place]
    if kind == "lengthen":
        return packet + random.randbytes(random.randint(1, 40))
    if kind == "splice":
        return packet[:place] + other[random.randrange(len(other) + 1) :]
    if kind == "any":
        return random.randbytes(random.randrange(2 * len(packet) + 2))
    damaged = bytearray(packet)
    for _ in range(random.choice((1, 2, 8)) if packet else 0):
        # The header is short and decides most.
        at = random.randrange(random.choice((min(4, len(packet)), len(packet))))
        if kind == "flip":
            damaged[at] ^= 1 << random.randrange(8)
        elif kind == "overwrite":
            damaged[at] = random.randrange(256)
    return bytes(damaged)


def judge(codec: Codec, packet: bytes, tally: Tally) -> None:
    """Decode and check ``packet``; raises AssertionError, or what the codec should not, if it
    breaks a promise."""
    out = torch.full((3, codec.hidden_size), torch.nan)
    began = time.perf_counter()
    try:
        codec.decode([packet], out[1:2], [Run(1)])
        accepted = True
    except CodecError:
        accepted = False
    tally.slowest_us = max(tally.slowest_us, (time.perf_counter() - began) * 1e6)
    tally.accepted += accepted
    assert out[::2].isnan().all(), "decode wrote beside its row"
    assert not accepted or out[1].isfinite().all(), "decode gave values that are not finite"
    try:
        codec.check(packet)
        assert accepted, "check accepts what decode refuses"
    except CodecError:
        assert not accepted, "check refuses what decode accepts"


def fuzz(codec: Codec, tally: Tally) -> None:
    packet, other = draw_packet(codec), draw_packet(codec)
    for _ in range(_MUTATIONS_PER_PACKET):
        damaged = mutate(packet, other)
        tally.packets += 1
        try:
            judge(codec, damaged, tally)
        # Whatever the codec raises is what this looks for.
        except Exception as error:
            tally.broken += 1
            print(
                f"{codec.wire_id}, d = {codec.hidden_size}: {type(error).__name__}: {error}\n"
                f"  {damaged.hex()}",
                file=sys.stderr,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, all codecs together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=Path, help="of the calibrated codec, to fuzz that, too")
    given = parser.parse_args()
    random.seed(given.seed)
    torch.manual_seed(given.seed)

    names = [cast(CodecName, wire_id.partition("/")[0]) for wire_id in known_codecs()]
    for name in names:
        warm_up(build_codec(CodecConfig(name=name), hidden_size=64))
    profile = Profile.from_bytes(given.profile.read_bytes()) if given.profile else None
    embedding = torch.randn(profile.vocab_size, profile.hidden_size) if profile else torch.empty(0)

    tallies: defaultdict[str, Tally] = defaultdict(Tally)
    began = time.monotonic()
    while time.monotonic() < began + given.seconds:
        drawn = [draw_codec(name) for name in names]
        if profile is not None:
            drawn.append(draw_calibrated(profile, embedding))
        for codec in drawn:
            fuzz(codec, tallies[codec.wire_id])
    result = {wire_id: asdict(tally) for wire_id, tally in tallies.items()}
    print(json.dumps({"seconds": given.seconds, "seed": given.seed, "codecs": result}))
    sys.exit(any(tally.broken for tally in tallies.values()))


if __name__ == "__main__":
    main()

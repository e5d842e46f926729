"""Which codec carries hidden states over the wire, and SLICER's knobs."""

from dataclasses import dataclass
from typing import Literal, get_args

from sliceserve.configs.settings import setting
from sliceserve.configs.validation import expect, expect_one_of

CodecName = Literal["calibrated", "slicer", "int8", "rans", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicerConfig:
    """SLICER's knobs; the paper's symbol in brackets. They steer the encoder alone: a packet
    says of itself all that its decoder needs.

    ``sparsity`` [s], ``asymmetry`` [λ], ``num_blocks`` [M], ``distortion`` [δ], the budget of
    squared error per block relative to its energy, and ``max_bits`` [b_max].
    """

    sparsity: float = setting(0.5, "slicer: share of elements that are dropped.", "Codec")
    asymmetry: float = setting(
        1.0, "slicer: weight of negative elements where the largest are chosen.", "Codec"
    )
    num_blocks: int = setting(
        4, "slicer: blocks of like magnitude, a power of two up to 16.", "Codec"
    )
    distortion: float = setting(
        0.01,
        "Squared error allowed, relative to the energy: per token (calibrated) or per block "
        "(slicer).",
        "Codec",
        shown="none, 0.01",
    )
    max_bits: int = setting(8, "slicer: most bits of one element, 1 to 12.", "Codec")

    def __post_init__(self) -> None:
        expect(0.0 <= self.sparsity < 1.0, "sparsity", "at least 0 and below 1", self.sparsity)
        expect(0.0 < self.asymmetry <= 16.0, "asymmetry", "above 0, at most 16", self.asymmetry)
        expect(
            self.num_blocks in (1, 2, 4, 8, 16), "num_blocks", "1, 2, 4, 8 or 16", self.num_blocks
        )
        expect(0.0 <= self.distortion <= 1.0, "distortion", "0 to 1", self.distortion)
        expect(1 <= self.max_bits <= 12, "max_bits", "1 to 12", self.max_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class RansConfig:
    """The baseline of arXiv 2511.11664. It steers the encoder alone."""

    num_levels: int = setting(8, "rans: levels of its asymmetric integer grid, 2 to 256.", "Codec")

    def __post_init__(self) -> None:
        expect(2 <= self.num_levels <= 256, "num_levels", "2 to 256", self.num_levels)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedConfig:
    """What the calibrated codec's encoder aims at; a packet says what its decoder needs.

    ``bits_per_element`` is the mean size of a packet on text like that of the calibration, header
    included. ``bits_per_token`` caps every packet, whatever the error. ``distortion`` [δ] bounds
    every token's squared error relative to its energy, whatever the size; with either of them the
    coarsest or finest step that keeps to it is chosen, and ``bits_per_element`` is not used.
    ``hide_tokens``: packets carry no token ids, at the price of about a third more bits.
    """

    bits_per_element: float = setting(
        1.2,
        "calibrated: mean size of a packet, per element of the hidden state.",
        "Codec",
    )
    bits_per_token: int | None = setting(
        None, "calibrated: largest size of a packet, in bits.", "Codec", shown="none"
    )
    distortion: float | None = setting(None, "As slicer's.", "Codec")
    hide_tokens: bool = setting(
        False, "calibrated: packets carry no token ids, and get larger for it.", "Codec"
    )

    def __post_init__(self) -> None:
        bits, cap, budget = self.bits_per_element, self.bits_per_token, self.distortion
        expect(0.0 < bits <= 8.0, "bits_per_element", "above 0, at most 8", bits)
        expect(cap is None or cap >= 256, "bits_per_token", "at least 256", cap)
        expect(budget is None or 0.0 <= budget <= 1.0, "distortion", "0 to 1", budget)
        expect(
            cap is None or budget is None,
            "bits_per_token and distortion",
            "one of them at most",
            (cap, budget),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """The codec of a connection. float32, float16 and bfloat16 pass values through."""

    name: CodecName = setting(
        "calibrated", "How hidden states are written on the wire.", "Codec", flag="codec"
    )
    slicer: SlicerConfig = SlicerConfig()
    rans: RansConfig = RansConfig()
    calibrated: CalibratedConfig = CalibratedConfig()

    def __post_init__(self) -> None:
        expect_one_of("codec", get_args(CodecName), self.name)

"""SLICER as a codec: settings and errors around ``kernels.slicer``."""

from collections.abc import Sequence

import torch

from sliceserve.codec.base import Run
from sliceserve.codec.rows import codec_errors, expect_one_row_each, expect_rows
from sliceserve.configs import SlicerConfig
from sliceserve.kernels import slicer


class SlicerCodec:
    """The settings steer ``encode`` alone; every instance of one hidden size decodes the packets
    of every other. Raises ValueError for a hidden size beyond the format's 16384."""

    def __init__(self, config: SlicerConfig, hidden_size: int) -> None:
        if not 1 <= hidden_size <= slicer.MAX_HIDDEN_SIZE:
            raise ValueError(
                f"slicer takes hidden sizes from 1 to {slicer.MAX_HIDDEN_SIZE}, got {hidden_size}; "
                "choose another codec for this model"
            )
        self._hidden_size = hidden_size
        self._settings = slicer.EncoderSettings(
            num_kept=round((1 - config.sparsity) * hidden_size),
            asymmetry=config.asymmetry,
            num_blocks=config.num_blocks,
            distortion=int(config.distortion * 2**slicer.DISTORTION_SHIFT),
            max_bits=config.max_bits,
        )

    @property
    def wire_id(self) -> str:
        return "slicer/2"

    @property
    def predicts(self) -> bool:
        return False

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    def encode(self, hidden: torch.Tensor, runs: Sequence[Run] = ()) -> list[bytes]:
        expect_rows(hidden, self._hidden_size)
        with codec_errors(slicer.SlicerError):
            return slicer.encode(hidden, self._settings)

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        expect_one_row_each(packets, out, self._hidden_size)
        with codec_errors(slicer.SlicerError):
            slicer.decode(packets, out)

    def check(self, packet: bytes) -> None:
        with codec_errors(slicer.SlicerError):
            slicer.check([packet], self._hidden_size)

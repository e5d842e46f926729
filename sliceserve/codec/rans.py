"""The baseline of arXiv 2511.11664 as a codec: settings and errors around ``kernels.grid_rans``."""

from collections.abc import Sequence

import torch

from sliceserve.codec.base import Run
from sliceserve.codec.rows import codec_errors, expect_one_row_each, expect_rows
from sliceserve.configs import RansConfig
from sliceserve.kernels import grid_rans


class RansCodec:
    """The number of levels steers ``encode`` alone; a packet says it to its decoder. Tensors on a
    GPU are coded on the CPU. Raises ValueError for a hidden size beyond the format's 16384."""

    def __init__(self, config: RansConfig, hidden_size: int) -> None:
        if not 1 <= hidden_size <= grid_rans.MAX_HIDDEN_SIZE:
            raise ValueError(
                f"rans takes hidden sizes from 1 to {grid_rans.MAX_HIDDEN_SIZE}, got "
                f"{hidden_size}; choose another codec for this model"
            )
        self._hidden_size = hidden_size
        self._num_levels = config.num_levels

    @property
    def wire_id(self) -> str:
        return "rans/1"

    @property
    def predicts(self) -> bool:
        return False

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    def encode(self, hidden: torch.Tensor, runs: Sequence[Run] = ()) -> list[bytes]:
        expect_rows(hidden, self._hidden_size)
        with codec_errors(grid_rans.GridError):
            return grid_rans.encode(hidden, self._num_levels)

    def decode(self, packets: Sequence[bytes], out: torch.Tensor, runs: Sequence[Run] = ()) -> None:
        expect_one_row_each(packets, out, self._hidden_size)
        with codec_errors(grid_rans.GridError):
            grid_rans.decode(packets, out)

    def check(self, packet: bytes) -> None:
        with codec_errors(grid_rans.GridError):
            grid_rans.check([packet], self._hidden_size)

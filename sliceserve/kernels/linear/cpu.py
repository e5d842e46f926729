"""Linear layers on the CPU with weights in the blocked layout of oneDNN.

A plain layout is either read at half speed or reordered at every call; the blocked one is made
once. Only float32 is packed: oneDNN packs half precision on few processors.
"""

import torch
from torch.nn import functional


def can_pack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy of ``weight`` (out, in) that only ``linear`` can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    num_rows = x.shape[0]
    if (num_more := rows_computed(num_rows) - num_rows) > 0:
        x = functional.pad(x, (0, 0, 0, num_more))
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")[:num_rows]


def rows_computed(num_rows: int) -> int:
    """``num_rows`` rounded up to one of eight numbers an octave, by an eighth at most.

    oneDNN compiles a product for each number of rows that it meets, and keeps it: more than half a
    megabyte each. Batches of a server come to have every size.
    """
    step = 1 << max(0, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step

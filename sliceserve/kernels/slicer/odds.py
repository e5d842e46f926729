"""How likely the bits of an entropy-coded packet are, for ``compress`` and ``expand``."""

import numpy as np
from numba import njit

from sliceserve.kernels.rans import TOTAL_BITS
from sliceserve.kernels.slicer.fields import block_end
from sliceserve.kernels.slicer.layout import SKEWED

ODDS = np.array(SKEWED)


@njit(forceinline=True)
def share(ones, total):
    """Of 4096, ones / total; 0 and 4096 are what is certain, and only that."""
    if ones == 0:
        return np.int64(0)
    return max(np.int64(1), np.int64(np.uint32(ones << TOTAL_BITS) // np.uint32(total)))


@njit(forceinline=True)
def entry(skew, place):
    return min(max(skew - place, 0), ODDS.size - 1)


@njit(cache=True, nogil=True)
def room_by_node(num_kept, num_blocks):
    """Survivors yet to come by block, in a binary tree: node n's halves are 2n and 2n + 1, the
    blocks its last ``num_blocks``."""
    room = np.zeros(2 * num_blocks, np.int64)
    before = 0
    for j in range(num_blocks):
        end = block_end(j, num_kept, num_blocks)
        room[num_blocks + j] = end - before
        before = end
    for node in range(num_blocks - 1, 0, -1):
        room[node] = room[2 * node] + room[2 * node + 1]
    return room

"""Writing keys and values to a paged cache in plain torch."""

import torch


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    kept = slots >= 0
    k_cache.flatten(0, 1)[slots[kept]] = k[kept]
    v_cache.flatten(0, 1)[slots[kept]] = v[kept]

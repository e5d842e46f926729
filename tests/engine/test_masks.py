"""Masks on logits, by definition."""

import pytest
import torch

from sliceserve.engine.guides import forbid, forbid_on_cpu


@pytest.mark.parametrize("vocab_size", [31, 64, 301])
@pytest.mark.parametrize("function", [forbid, forbid_on_cpu])
def test_a_token_whose_bit_is_missing_is_forbidden_in_its_row_alone(function, vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(5, vocab_size, generator=generator)
    rows = [0, 3, 4]
    # More words than the rows have logits for: those of a larger buffer.
    masks = torch.randint(-(2**31), 2**31, (3, 12), generator=generator, dtype=torch.int64).int()
    masks = masks[:, : -(-vocab_size // 32)]
    expected = logits.clone()
    for row, mask in zip(rows, masks.tolist(), strict=True):
        for token_id in range(vocab_size):
            if not mask[token_id // 32] >> token_id % 32 & 1:
                expected[row, token_id] = -torch.inf
    function(logits, rows, masks)
    assert torch.equal(logits, expected)

import pytest
import torch

from sliceserve.kernels.rotary import reference


def cos_sin_table(num_positions: int, rotary_dim: int) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(num_positions).unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


@pytest.mark.parametrize(
    ("num_rows", "num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(1, 9, 3, 64, 64), (63, 2, 1, 24, 24), (5, 3, 3, 100, 50), (0, 2, 1, 16, 16)],
)
def test_rotates_strided_heads_in_place(
    backend,
    dtype_and_tolerance,
    relative_error,
    num_rows,
    num_heads,
    num_kv_heads,
    head_dim,
    rotary_dim,
):
    dtype, tolerance = dtype_and_tolerance
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv = torch.randn(num_rows, width).to(backend.device, dtype)
    expected = qkv.clone()
    cos_sin = cos_sin_table(200, rotary_dim).to(backend.device)
    positions = torch.randint(0, 200, (num_rows,), device=backend.device)

    def heads(fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q_width, k_width = num_heads * head_dim, num_kv_heads * head_dim
        q, k, _ = fused.split((q_width, k_width, k_width), dim=1)
        return q.unflatten(1, (-1, head_dim)), k.unflatten(1, (-1, head_dim))

    backend.load("rotary").apply_rotary(*heads(qkv), cos_sin, positions)
    reference.apply_rotary(*heads(expected), cos_sin, positions)
    if num_rows:
        assert relative_error(qkv, expected) < tolerance
    for actual, wanted in zip(heads(qkv), heads(expected), strict=True):
        assert torch.equal(actual[..., rotary_dim:], wanted[..., rotary_dim:])
    values = slice((num_heads + num_kv_heads) * head_dim, None)
    assert torch.equal(qkv[:, values], expected[:, values])


def test_scores_depend_on_the_distance_of_positions_alone(backend):
    q, k = torch.randn(2, 1, 1, 32, device=backend.device).unbind()
    q, k = q.repeat(2, 1, 1), k.repeat(2, 1, 1)
    cos_sin = cos_sin_table(200, 32).to(backend.device)
    apply_rotary = backend.load("rotary").apply_rotary
    positions = torch.tensor([7, 107], device=backend.device)
    apply_rotary(q, k.clone(), cos_sin, positions)
    apply_rotary(q.clone(), k, cos_sin, positions - 5)
    near, far = (q * k).sum(dim=-1).flatten().tolist()
    assert near == pytest.approx(far, rel=1e-3, abs=1e-3)

"""Row products on the GPU: one program adds up a tile of columns for a few rows, in blocks of terms
whose size and order do not depend on the number of rows."""

import torch
import triton
import triton.language as tl

_ROWS = 16  # the least that tensor cores take
_COLUMNS = 32
_TERMS = 64


def row_products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    num_rows, num_terms = rows.shape
    num_columns = matrix.shape[1]
    out = torch.empty(num_rows, num_columns, dtype=torch.float32, device=rows.device)
    if out.numel():
        grid = (triton.cdiv(num_rows, _ROWS), triton.cdiv(num_columns, _COLUMNS))
        _row_products_kernel[grid](
            rows, matrix, out, num_rows, num_terms, num_columns, _ROWS, _TERMS, _COLUMNS
        )
    return out


# The count of rows bounds a mask only: specialised on its value, programs could add up differently.
@triton.jit(do_not_specialize=["num_rows"])
def _row_products_kernel(
    p_rows,
    p_matrix,
    p_out,
    num_rows,
    num_terms,
    num_columns,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_row = (o_row < num_rows)[:, None]
    m_column = (o_column < num_columns)[None, :]
    b_sum = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, num_terms, TERMS):
        o_term = first + tl.arange(0, TERMS)
        m_term = o_term < num_terms
        b_rows = tl.load(
            p_rows + o_row[:, None] * num_terms + o_term[None, :],
            mask=m_row & m_term[None, :],
            other=0.0,
        )
        b_matrix = tl.load(
            p_matrix + o_term[:, None].to(tl.int64) * num_columns + o_column[None, :],
            mask=m_term[:, None] & m_column,
            other=0.0,
        )
        b_sum = tl.dot(b_rows, b_matrix, b_sum, input_precision="ieee")
    tl.store(p_out + o_row[:, None] * num_columns + o_column[None, :], b_sum, mask=m_row & m_column)

"""Row products in float64."""

import torch


def row_products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return (rows.double() @ matrix.double()).float()

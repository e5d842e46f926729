import pytest
import torch

from sliceserve.kernels.row_products import reference


@pytest.mark.parametrize(("num_rows", "num_terms", "num_columns"), [(1, 1, 1), (3, 67, 33)])
def test_row_products(backend, poison_empty, relative_error, num_rows, num_terms, num_columns):
    rows = torch.randn(num_rows, num_terms, device=backend.device)
    matrix = torch.randn(num_terms, num_columns, device=backend.device)
    products = backend.load("row_products").row_products(rows, matrix)
    assert relative_error(products, reference.row_products(rows, matrix)) < 1e-6


def test_a_rows_bits_do_not_depend_on_its_neighbours(backend):
    row_products = backend.load("row_products").row_products
    rows = torch.randn(19, 130, device=backend.device)
    matrix = torch.randn(130, 150, device=backend.device)
    together = row_products(rows, matrix)
    assert torch.equal(row_products(rows[:1], matrix), together[:1])
    assert torch.equal(row_products(rows[:7], matrix), together[:7])
    if not backend.interpreted:  # whose dot is NumPy's, and depends on a row's place in its tile
        for i in (1, 7, 18):
            assert torch.equal(row_products(rows[i : i + 1], matrix)[0], together[i])
        assert torch.equal(row_products(rows[3:12], matrix), together[3:12])


def test_no_rows(backend):
    matrix = torch.randn(4, 5, device=backend.device)
    products = backend.load("row_products").row_products(matrix[:0, :4], matrix)
    assert products.shape == (0, 5)

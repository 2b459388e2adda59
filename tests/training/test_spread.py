"""Effective rank of matrices whose spread is known."""

import numpy as np
import pytest
import torch

from rdcd.training.spread import effective_rank


def oracle(rows):
    """Through the eigenvalues of the scatter matrix, whose roots are the singular values."""
    rows = np.asarray(rows, dtype=np.float64)
    centred = rows - rows.mean(axis=0)
    values = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(min=0))
    share = values[values > 1e-9] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_rows_on_a_line_have_rank_one():
    rows = torch.outer(torch.tensor([-2.0, 0.5, 1.0, 3.0]), torch.tensor([0.6, 0.8, 0.0])) + 5
    assert effective_rank(rows) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_orthogonal_directions_of_equal_length_count_in_full(dim):
    directions = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal((dim, dim))))[0]
    assert effective_rank(torch.cat([directions, -directions])) == pytest.approx(dim, rel=1e-4)


def test_rank_lies_between_when_one_direction_is_longer():
    rows = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows, dim", [(40, 6), (5, 12), (2, 7)])
def test_random_matrices_against_numpy(rows, dim):
    values = np.random.default_rng(rows).standard_normal((rows, dim)) * np.linspace(0.2, 2, dim)
    found = effective_rank(torch.from_numpy(values)).item()
    assert found == pytest.approx(oracle(values), rel=1e-4)
    assert 1 <= found <= min(rows - 1, dim) + 1e-3


def test_equal_rows_have_collapsed():
    assert effective_rank(torch.full((6, 4), 0.5)) == pytest.approx(1)


def test_half_precision_is_widened_and_no_gradient_is_kept():
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not effective_rank(rows).requires_grad
    assert effective_rank(rows.half()) == pytest.approx(effective_rank(rows).item(), rel=1e-2)

"""What the tests of the losses share: seeded unit vectors and slopes by finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor


def make_unit_rows(seed: int, rows: int, size: int) -> Tensor:
    """Return `rows` random L2-normalized vectors, fp32 [rows, size]."""
    values = np.random.default_rng(seed).standard_normal((rows, size))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return torch.from_numpy(values).float()


def make_at_similarity(similarity: float, dtype: torch.dtype, axis: int = 1) -> Tensor:
    """Return a vector [1, 4] at the given cosine from (1, 0, 0, 0), the rest of it along `axis`."""
    vector = torch.zeros(1, 4, dtype=torch.float64)
    vector[0, 0] = similarity
    vector[0, axis] = math.sqrt(1 - similarity**2)
    return vector.to(dtype)


def finite_differences(function, rows: list[list[float]], step: float = 1e-6) -> np.ndarray:
    """Return the slope of `function` (rows → float) in every coordinate, float64."""
    slope = np.zeros((len(rows), len(rows[0])))
    for i in range(len(rows)):
        for j in range(len(rows[0])):
            ahead, behind = [list(row) for row in rows], [list(row) for row in rows]
            ahead[i][j] += step
            behind[i][j] -= step
            slope[i, j] = (function(ahead) - function(behind)) / (2 * step)
    return slope


@pytest.fixture
def unit_rows():
    return make_unit_rows


@pytest.fixture
def at_similarity():
    return make_at_similarity


@pytest.fixture
def slope():
    return finite_differences

"""InfoNCE against a queue, beside a loop in float64."""

import math

import numpy as np
import pytest
import torch

from rdcd.losses import contrastive_loss


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def oracle(query, key, negatives, valid=None, temperature=0.07):
    total = 0.0
    for i in range(len(query)):
        positive = math.exp(dot(query[i], key[i]) / temperature)
        everything = positive
        for k in range(len(negatives)):
            if valid is None or valid[k]:
                everything += math.exp(dot(query[i], negatives[k]) / temperature)
        total -= math.log(positive / everything)
    return total / len(query)


def lists(*tensors):
    return [tensor.double().tolist() for tensor in tensors]


@pytest.mark.parametrize("batch, slots, size", [(5, 11, 8), (1, 11, 8), (5, 1, 8), (1, 1, 2), (7, 3, 64)])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_equals_loop(unit_rows, batch, slots, size, temperature):
    query, key, queue = unit_rows(0, batch, size), unit_rows(1, batch, size), unit_rows(2, slots, size)
    loss = contrastive_loss(query, key, queue, temperature=temperature)
    assert loss.shape == () and loss.dtype == torch.float32
    expected = oracle(*lists(query, key, queue), None, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_default_temperature_is_published(unit_rows):
    query, key, queue = unit_rows(0, 4, 8), unit_rows(1, 4, 8), unit_rows(2, 6, 8)
    explicit = contrastive_loss(query, key, queue, temperature=0.07)
    assert torch.equal(contrastive_loss(query, key, queue), explicit)


@pytest.mark.parametrize("seed", range(4))
def test_unfilled_slots_take_no_part(unit_rows, seed):
    query, key, queue = unit_rows(seed, 4, 8), unit_rows(seed + 10, 4, 8), unit_rows(seed + 20, 9, 8)
    valid = torch.from_numpy(np.random.default_rng(seed).random(9) < 0.5)
    loss = contrastive_loss(query, key, queue, valid=valid)
    expected = oracle(*lists(query, key, queue), valid.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.allclose(loss, contrastive_loss(query, key, queue[valid]))
    garbage = torch.where(valid[:, None], queue, 50 * unit_rows(99, 9, 8))
    assert torch.equal(loss, contrastive_loss(query, key, garbage, valid=valid))


def test_all_valid_is_no_mask(unit_rows):
    query, key, queue = unit_rows(0, 4, 8), unit_rows(1, 4, 8), unit_rows(2, 9, 8)
    masked = contrastive_loss(query, key, queue, valid=torch.ones(9, dtype=torch.bool))
    assert torch.equal(masked, contrastive_loss(query, key, queue))


def test_no_negative_at_all_is_zero(unit_rows):
    query, nothing = unit_rows(0, 4, 8).requires_grad_(), torch.zeros(9, dtype=torch.bool)
    loss = contrastive_loss(query, unit_rows(1, 4, 8), unit_rows(2, 9, 8), valid=nothing)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros(4, 8))


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_finite_differences(unit_rows, slope, masked):
    query, key, queue = unit_rows(0, 3, 5).requires_grad_(), unit_rows(1, 3, 5), unit_rows(2, 6, 5)
    valid = torch.tensor([True, False, True, True, False, True]) if masked else None
    contrastive_loss(query, key, queue, valid=valid).backward()
    keys, negatives = lists(key, queue)
    expected = slope(lambda rows: oracle(rows, keys, negatives, valid), query.detach().double().tolist())
    np.testing.assert_allclose(query.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_order_of_pictures_and_slots_is_free(unit_rows):
    query, key, queue = unit_rows(0, 5, 8), unit_rows(1, 5, 8), unit_rows(2, 9, 8)
    valid = torch.arange(9) % 3 > 0
    rows, slots = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([8, 2, 5, 0, 1, 7, 4, 3, 6])
    loss = contrastive_loss(query, key, queue, valid=valid)
    shuffled = contrastive_loss(query[rows], key[rows], queue[slots], valid=valid[slots])
    assert torch.allclose(loss, shuffled, rtol=1e-6)
    mispaired = contrastive_loss(query[rows], key, queue, valid=valid)
    assert not torch.allclose(loss, mispaired)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", [-1.0, 0.0, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("of", ["positive", "negative"])
def test_extreme_similarities(at_similarity, dtype, similarity, of):
    query = at_similarity(1.0, dtype).requires_grad_()
    at, right_angle = at_similarity(similarity, dtype, axis=1), at_similarity(0.0, dtype, axis=2)
    key, queue = (at, right_angle) if of == "positive" else (right_angle, at)
    loss = contrastive_loss(query, key, queue)
    loss.backward()
    expected = oracle(*lists(query.detach(), key, queue))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert query.grad.dtype == dtype
    assert query.grad.isfinite().all()
    assert query.grad.abs().max() > 0  # key and negative differ, so the query always has a way to go

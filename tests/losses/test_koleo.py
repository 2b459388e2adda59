"""KoLeo, beside a loop in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rdcd.losses import koleo_loss


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def log_distance(u, epsilon):
    """log sqrt(2u), with the logarithm's tangent at epsilon below it."""
    log_u = math.log(u) if u >= epsilon else math.log(epsilon) - (1 - u / epsilon)
    return 0.5 * log_u + 0.5 * math.log(2)


def oracle(descriptors, others=None, same=None, epsilon=1e-3):
    logs = []
    for i in range(len(descriptors)):
        best = None
        for j, other in enumerate(descriptors if others is None else others):
            if (i == j) if same is None else same[i][j]:
                continue
            similarity = dot(descriptors[i], other)
            best = similarity if best is None else max(best, similarity)
        if best is not None:
            logs.append(log_distance(1 - best, epsilon))
    return -sum(logs) / len(logs) if logs else 0.0


def lists(*tensors):
    return [tensor.double().tolist() for tensor in tensors]


@pytest.mark.parametrize("rows, size", [(2, 8), (3, 2), (9, 8), (30, 2), (16, 64)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_equals_loop(unit_rows, rows, size, epsilon):
    descriptors = unit_rows(0, rows, size)
    loss = koleo_loss(descriptors, epsilon=epsilon)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(*lists(descriptors), epsilon=epsilon), rel=1e-4, abs=1e-5)


def test_is_the_mean_log_distance_to_the_nearest(unit_rows):
    (rows,) = lists(unit_rows(3, 10, 8))
    total = 0.0
    for i in range(10):
        total += math.log(min(math.dist(rows[i], rows[j]) for j in range(10) if j != i))
    assert koleo_loss(torch.tensor(rows)).item() == pytest.approx(-total / 10, rel=1e-5)


def test_default_epsilon(unit_rows):
    descriptors = unit_rows(0, 5, 8)
    descriptors[1] = descriptors[3]
    assert torch.equal(koleo_loss(descriptors), koleo_loss(descriptors, epsilon=1e-3))
    assert not torch.equal(koleo_loss(descriptors), koleo_loss(descriptors, epsilon=1e-2))


@pytest.mark.parametrize("rows, columns", [(4, 9), (1, 9), (4, 1), (1, 1)])
def test_neighbours_among_others(unit_rows, rows, columns):
    descriptors, others = unit_rows(0, rows, 8), unit_rows(1, columns, 8)
    nothing = torch.zeros(rows, columns, dtype=torch.bool)
    loss = koleo_loss(descriptors, others, same=nothing)
    expected = oracle(*lists(descriptors, others), nothing.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_views_of_the_same_picture_are_no_neighbours(unit_rows, seed):
    descriptors, others = unit_rows(seed, 5, 8), unit_rows(seed + 20, 9, 8)
    same = torch.from_numpy(np.random.default_rng(seed).random((5, 9)) < 0.5)
    same[:, 0] = False
    loss = koleo_loss(descriptors, others, same=same)
    expected = oracle(*lists(descriptors, others), same.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_same_among_the_descriptors_themselves(unit_rows):
    descriptors = unit_rows(0, 6, 8)
    descriptors[3:] = descriptors[:3]
    pictures = torch.arange(6) % 3
    same = pictures[:, None] == pictures[None, :]
    loss = koleo_loss(descriptors, same=same)
    assert loss.item() == pytest.approx(oracle(*lists(descriptors), None, same.tolist()), rel=1e-5, abs=1e-6)
    assert torch.allclose(loss, koleo_loss(descriptors[:3]))


def test_a_row_without_neighbour_takes_no_part(unit_rows):
    descriptors, others = unit_rows(0, 3, 8), unit_rows(1, 4, 8)
    same = torch.zeros(3, 4, dtype=torch.bool)
    same[1] = True
    loss = koleo_loss(descriptors, others, same=same)
    expected = oracle(*lists(descriptors, others), same.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_nobody_has_a_neighbour():
    descriptors = torch.tensor([[0.6, 0.8], [1.0, 0.0]], requires_grad=True)
    everything = torch.ones(2, 2, dtype=torch.bool)
    loss = koleo_loss(descriptors, descriptors.detach(), same=everything)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(descriptors.grad, torch.zeros(2, 2))


def test_a_single_row_has_no_neighbour(unit_rows):
    descriptors = unit_rows(0, 1, 8).requires_grad_()
    loss = koleo_loss(descriptors)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(descriptors.grad, torch.zeros(1, 8))


@pytest.mark.parametrize("collapsed", [False, True])
def test_gradient_equals_finite_differences(unit_rows, slope, collapsed):
    descriptors = unit_rows(0, 5, 4)
    if collapsed:
        descriptors[1] = descriptors[3]
    descriptors.requires_grad_()
    koleo_loss(descriptors).backward()
    expected = slope(lambda rows: oracle(rows), descriptors.detach().double().tolist())
    np.testing.assert_allclose(descriptors.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gradient_with_others_equals_finite_differences(unit_rows, slope):
    descriptors, others = unit_rows(0, 3, 4).requires_grad_(), unit_rows(1, 6, 4)
    same = torch.arange(3)[:, None] == torch.arange(6)[None, :] % 3
    koleo_loss(descriptors, others, same=same).backward()
    rows, columns = lists(descriptors.detach(), others)
    expected = slope(lambda moved: oracle(moved, columns, same.tolist()), rows)
    np.testing.assert_allclose(descriptors.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_slope_at_epsilon_itself():
    epsilon = 2.0**-10  # exact in fp32, as is 1 − epsilon
    descriptors = torch.tensor([[1.0, 0.0], [1 - epsilon, 0.04]], requires_grad=True)
    koleo_loss(descriptors, epsilon=epsilon).backward()
    expected = descriptors.detach().flip(0) / (2 * epsilon)
    np.testing.assert_allclose(descriptors.grad.numpy(), expected.numpy(), rtol=1e-5)


def test_clamp_is_sscds_published_term(unit_rows):
    descriptors = unit_rows(0, 6, 8)
    descriptors[4:] = F.normalize(descriptors[:2] + torch.tensor([[1e-5], [0.01]]) * unit_rows(1, 2, 8), dim=1)
    descriptors.requires_grad_()
    similarity = descriptors @ descriptors.T
    nearest = similarity.masked_fill(torch.eye(6, dtype=torch.bool), -100.0).amax(dim=1)
    published = -(2 - 2 * nearest).clamp(min=1e-6).sqrt().log().mean()
    loss = koleo_loss(descriptors, epsilon=5e-7, form="clamp")  # 1e-6 of the squared distance
    assert loss.item() == pytest.approx(published.item(), rel=1e-6)
    slopes = [torch.autograd.grad(value, descriptors, retain_graph=True)[0] for value in (loss, published)]
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-6)
    assert not slopes[0][[0, 4]].any() and slopes[0][[1, 5]].any(dim=1).all()  # collapsed: no gradient; close: one
    tangent = koleo_loss(descriptors)
    assert torch.autograd.grad(tangent, descriptors)[0][[0, 4]].any(dim=1).all() and tangent < loss


def test_another_form_is_said(unit_rows):
    with pytest.raises(ValueError, match="form 'soft': expected 'tangent' or 'clamp'"):
        koleo_loss(unit_rows(0, 3, 8), form="soft")


def test_order_is_free(unit_rows):
    descriptors, order = unit_rows(0, 7, 8), torch.tensor([3, 0, 4, 6, 1, 2, 5])
    assert torch.allclose(koleo_loss(descriptors), koleo_loss(descriptors[order]), rtol=1e-6)
    others, columns = unit_rows(1, 5, 8), torch.tensor([4, 2, 0, 3, 1])
    same = torch.arange(7)[:, None] % 5 == torch.arange(5)[None, :]
    loss = koleo_loss(descriptors, others, same=same)
    shuffled = koleo_loss(descriptors[order], others[columns], same=same[order][:, columns])
    assert torch.allclose(loss, shuffled, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", [-1.0, 0.0, 1 - 1e-7, 1.0])
def test_extreme_similarities(at_similarity, dtype, similarity):
    descriptors = torch.cat([at_similarity(1.0, dtype), at_similarity(similarity, dtype)]).requires_grad_()
    loss = koleo_loss(descriptors)
    loss.backward()
    assert loss.item() == pytest.approx(oracle(*lists(descriptors.detach())), rel=1e-5, abs=1e-6)
    assert descriptors.grad.dtype == dtype
    assert descriptors.grad.isfinite().all()
    assert (descriptors.grad.abs().amax(1) > 0).all()


def test_lower_bound():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2))

"""The nearest entry of the queue, beside a loop in float64."""

import math

import numpy as np
import pytest
import torch

from rdcd.losses import hard_negative_loss, koleo_loss
from rdcd.losses.hard_negative import hardest_similarity


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def nearest(row, negatives, valid=None):
    best = None
    for k in range(len(negatives)):
        if valid is None or valid[k]:
            similarity = dot(row, negatives[k])
            best = similarity if best is None else max(best, similarity)
    return best


def minus_log(u, epsilon, form):
    if u >= epsilon:
        return -math.log(u)
    if form == "clamp":
        return -math.log(epsilon)
    return -math.log(epsilon) + (1 - u / epsilon)


def oracle(query, negatives, valid=None, epsilon=1e-3, form="tangent"):
    total = 0.0
    for row in query:
        similarity = nearest(row, negatives, valid)
        if similarity is None:
            return 0.0
        total += minus_log(1 - similarity, epsilon, form)
    return total / len(query)


def lists(*tensors):
    return [tensor.double().tolist() for tensor in tensors]


@pytest.mark.parametrize("batch, slots, size", [(5, 11, 8), (1, 11, 8), (5, 1, 8), (1, 1, 2), (6, 40, 2)])
@pytest.mark.parametrize("form", ["tangent", "clamp"])
@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_equals_loop(unit_rows, batch, slots, size, form, epsilon):
    query, queue = unit_rows(0, batch, size), unit_rows(1, slots, size)
    loss = hard_negative_loss(query, queue, epsilon=epsilon, form=form)
    expected = oracle(*lists(query, queue), None, epsilon, form)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_defaults(unit_rows):
    query, queue = unit_rows(0, 6, 8), unit_rows(1, 9, 8)
    query[0] = queue[4]  # below epsilon, where the forms differ
    default = hard_negative_loss(query, queue)
    assert torch.equal(default, hard_negative_loss(query, queue, epsilon=1e-3, form="tangent"))
    assert default > hard_negative_loss(query, queue, form="clamp")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["tangent", "clamp"])
def test_unfilled_slots_take_no_part(unit_rows, seed, form):
    query, queue = unit_rows(seed, 4, 8), unit_rows(seed + 20, 9, 8)
    valid = torch.from_numpy(np.random.default_rng(seed).random(9) < 0.5)
    queue[~valid] = query[0]  # the hardest negative of all, were it counted
    loss = hard_negative_loss(query, queue, valid=valid, form=form)
    expected = oracle(*lists(query, queue), valid.tolist(), form=form)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.allclose(loss, hard_negative_loss(query, queue[valid], form=form))


def test_opposite_neighbour_beats_an_unfilled_slot():
    query = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[-1.0, 0.0], [0.0, 0.0]])  # an empty slot holds zeros: cosine 0 > −1
    loss = hard_negative_loss(query, queue, valid=torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("form", ["tangent", "clamp"])
def test_no_slot_at_all_is_zero(unit_rows, form):
    query, queue = unit_rows(0, 4, 8).requires_grad_(), unit_rows(1, 9, 8)
    loss = hard_negative_loss(query, queue, valid=torch.zeros(9, dtype=torch.bool), form=form)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros(4, 8))


def test_hardest_similarity_equals_loop(unit_rows):
    query, queue = unit_rows(0, 4, 8), unit_rows(1, 9, 8)
    valid = torch.arange(9) % 2 == 0
    rows, negatives = lists(query, queue)
    for mask in (None, valid):
        expected = [nearest(row, negatives, mask) for row in rows]
        np.testing.assert_allclose(hardest_similarity(query, queue, mask).numpy(), expected, atol=1e-6)
    nobody = hardest_similarity(query, queue, torch.zeros(9, dtype=torch.bool))
    assert torch.equal(nobody, torch.full((4,), -1.0))


@pytest.mark.parametrize("form", ["tangent", "clamp"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_finite_differences(unit_rows, slope, form, masked):
    query, queue = unit_rows(0, 3, 5), unit_rows(1, 6, 5)
    query[0] = queue[0]  # one row below epsilon
    query.requires_grad_()
    valid = torch.tensor([True, False, True, True, False, True]) if masked else None
    hard_negative_loss(query, queue, valid=valid, form=form).backward()
    (negatives,) = lists(queue)
    expected = slope(lambda rows: oracle(rows, negatives, valid, form=form), query.detach().double().tolist())
    np.testing.assert_allclose(query.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def at_distance(u):
    """A queue of one entry at 1 − cosine = u from the query (1, 0), with s itself in the first place."""
    return torch.tensor([[1.0, 0.0]]), torch.tensor([[1 - u, math.sqrt(1 - (1 - u) ** 2)]])


@pytest.mark.parametrize("u", [1e-3 + 1e-6, 2e-3, 0.01, 0.3, 1.0, 1.7, 2.0])
def test_tangent_equals_clamp_from_epsilon_up(u):
    values, gradients = [], []
    for form in ("tangent", "clamp"):
        query, queue = at_distance(u)
        query.requires_grad_()
        loss = hard_negative_loss(query, queue, form=form)
        loss.backward()
        values.append(loss.item())
        gradients.append(query.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert torch.allclose(*gradients, rtol=1e-6)
    assert values[0] == pytest.approx(-math.log(u), rel=1e-4)


@pytest.mark.parametrize("u", [0.0, 1e-6, 1e-4, 9e-4])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-2])
def test_collapsed_descriptors(u, epsilon):
    query, queue = at_distance(u)
    query.requires_grad_()
    clamp = hard_negative_loss(query, queue, form="clamp", epsilon=epsilon)
    clamp.backward()
    assert clamp.item() == pytest.approx(-math.log(epsilon), rel=1e-6)
    assert torch.equal(query.grad, torch.zeros(1, 2))  # the published trap: no way out

    query.grad = None
    tangent = hard_negative_loss(query, queue, form="tangent", epsilon=epsilon)
    tangent.backward()
    assert tangent.item() == pytest.approx(-math.log(epsilon) + 1 - u / epsilon, rel=1e-4)
    np.testing.assert_allclose(query.grad.numpy(), queue.numpy() / epsilon, rtol=1e-5)


def test_tangent_keeps_its_slope_at_epsilon_itself():
    epsilon = 2.0**-10  # exact in fp32, as is 1 − epsilon
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    queue = torch.tensor([[1 - epsilon, 0.04]])
    hard_negative_loss(query, queue, epsilon=epsilon).backward()
    np.testing.assert_allclose(query.grad.numpy(), queue.numpy() / epsilon, rtol=1e-5)


def test_bounds():
    query = torch.tensor([[1.0, 0.0]])
    assert hard_negative_loss(query, -query).item() == pytest.approx(-math.log(2))
    assert hard_negative_loss(query, query).item() == pytest.approx(1 - math.log(1e-3))
    assert hard_negative_loss(query, query, form="clamp").item() == pytest.approx(-math.log(1e-3))


@pytest.mark.parametrize("collapsed", [False, True])
def test_is_twice_koleo_plus_log_2(unit_rows, collapsed):
    query, queue = unit_rows(0, 5, 8), unit_rows(1, 9, 8)
    if collapsed:
        query[2] = queue[3]
    nothing_same = torch.zeros(5, 9, dtype=torch.bool)
    koleo = koleo_loss(query, queue, same=nothing_same)
    assert hard_negative_loss(query, queue).item() == pytest.approx(2 * koleo.item() + math.log(2), rel=1e-5)


def test_order_of_pictures_and_slots_is_free(unit_rows):
    query, queue = unit_rows(0, 5, 8), unit_rows(1, 9, 8)
    valid = torch.arange(9) % 3 > 0
    rows, slots = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([8, 2, 5, 0, 1, 7, 4, 3, 6])
    loss = hard_negative_loss(query, queue, valid=valid)
    assert torch.allclose(loss, hard_negative_loss(query[rows], queue[slots], valid=valid[slots]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", [-1.0, 0.0, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("form", ["tangent", "clamp"])
def test_extreme_similarities(at_similarity, dtype, similarity, form):
    query = at_similarity(1.0, dtype).requires_grad_()
    queue = torch.cat([at_similarity(similarity, dtype), at_similarity(-1.0, dtype)])
    loss = hard_negative_loss(query, queue, form=form)
    loss.backward()
    assert loss.item() == pytest.approx(oracle(*lists(query.detach(), queue), form=form), rel=1e-5, abs=1e-6)
    assert query.grad.dtype == dtype
    assert query.grad.isfinite().all()
    vanishes = form == "clamp" and similarity > 0.999
    assert (query.grad.abs().max() == 0) == vanishes


def test_unknown_form_is_refused(unit_rows):
    with pytest.raises(ValueError, match="chord"):
        hard_negative_loss(unit_rows(0, 2, 4), unit_rows(1, 3, 4), form="chord")

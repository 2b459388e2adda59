"""The learning rate against a loop, and one step of each algorithm against its formula."""

import math

import pytest
import torch
from torch import nn

from rdcd.errors import UserError
from rdcd.training.optim import optimizer_and_schedule, schedule_factor


def loop_factors(total, warmup):
    """Factors of steps 0 … total, by walking the schedule: equal steps up, then half a cosine down."""
    factors = [0.0] if warmup else []
    for _ in range(warmup - 1):
        factors.append(factors[-1] + 1 / warmup)
    down = total - warmup
    for i in range(down + 1):
        angle = math.pi * i / down if down else 0.0
        factors.append((1 + math.cos(angle)) / 2)
    return factors


def make(value=1.0, **options):
    parameter = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    settings = {"lr": 1.0, "global_batch": 256, "total_steps": 10, "warmup_steps": 4} | options
    return parameter, *optimizer_and_schedule([parameter], **settings)


@pytest.mark.parametrize("total, warmup", [(10, 4), (10, 0), (10, 1), (10, 9), (10, 10), (1, 0), (1, 1),
                                           (390, 20)])
def test_schedule_is_the_loop(total, warmup):
    found = [schedule_factor(step, total=total, warmup=warmup) for step in range(total + 1)]
    assert found == pytest.approx(loop_factors(total, warmup), abs=1e-12)


def test_schedule_by_hand():
    found = [schedule_factor(step, total=12, warmup=4) for step in range(13)]
    assert found[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert found[8] == pytest.approx(0.5)
    assert found[12] == pytest.approx(0, abs=1e-15)
    assert all(a > b for a, b in zip(found[4:], found[5:]))


@pytest.mark.parametrize("global_batch, peak", [(256, 0.3), (64, 0.075), (1024, 1.2)])
def test_learning_rate_of_every_step(global_batch, peak):
    _, optimizer, schedule = make(lr=0.3, global_batch=global_batch)
    found = []
    for _ in range(11):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([peak * factor for factor in loop_factors(10, 4)], abs=1e-12)


def test_warmup_longer_than_the_run_ends_at_its_own_peak():
    _, optimizer, schedule = make(total_steps=3, warmup_steps=50)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1])


def steps(parameter, optimizer, gradients):
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return parameter.item()


def test_muon_step_by_step():
    """A matrix moves along the orthogonal factor of its momentum, whatever the gradient's size; a vector by AdamW.

    Newton-Schulz only comes near that factor (singular values between about 0.7 and 1.2), hence the wide bound.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    vector = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    settings = {"lr": 0.1, "global_batch": 256, "total_steps": 10, "warmup_steps": 0, "weight_decay": 0.01}
    optimizer, _ = optimizer_and_schedule([matrix, vector], algorithm="muon", momentum=0.8, **settings)
    velocity = torch.zeros(6, 4, dtype=torch.float64)
    for scale in (1.0, 100.0, 0.01):
        before, vector_before = matrix.detach().clone(), vector.detach().clone()
        matrix.grad = scale * torch.randn(6, 4, generator=generator, dtype=torch.float64)
        vector.grad = torch.tensor([0.5, -0.2], dtype=torch.float64)
        velocity = 0.8 * velocity + 0.2 * matrix.grad
        left, _, right = torch.linalg.svd(0.8 * velocity + 0.2 * matrix.grad, full_matrices=False)
        optimizer.step()
        moved = (matrix.detach() - before * (1 - 0.1 * 0.01)) / (-0.1)
        direction = left @ right
        cosine = (moved * direction).sum() / moved.norm() / direction.norm()
        assert cosine > 0.97
        assert moved.norm() == pytest.approx(0.2 * math.sqrt(6) * direction.norm().item(), rel=0.3)
        steps_of_vector = (vector_before * (1 - 0.1 * 0.01) - vector.detach()) / 0.1  # AdamW: about ±1 each
        assert torch.equal(steps_of_vector.sign(), vector.grad.sign())
        assert ((steps_of_vector.abs() > 0.5) & (steps_of_vector.abs() < 2.5)).all()


def test_sgd_step_by_step():
    parameter, optimizer, _ = make(algorithm="sgd", warmup_steps=0, lr=0.1, momentum=0.8, weight_decay=0.01)
    value, velocity = 1.0, 0.0
    for gradient in (0.5, -0.2, 0.7):
        velocity = 0.8 * velocity + gradient + 0.01 * value
        value -= 0.1 * velocity
    assert steps(parameter, optimizer, (0.5, -0.2, 0.7)) == pytest.approx(value, rel=1e-12)


LARS_START = [[0.3, -0.4, 1.2], [0.0, 0.0], [2.0, -1.0], [5.0]]  # a matrix's row, a zero, one without gradient, a bias
LARS_GRADIENTS = [
    [[0.5, 0.1, -0.2], [1.0, -2.0], [0.0, 0.0], [3e-6]],
    [[-0.3, 0.0, 0.4], [0.5, 0.25], [0.0, 0.0], [-40.0]],
    [[1e-9, 0.0, 0.0], [-0.1, 0.3], [0.7, 0.2], [0.0]],
    [[30.0, -20.0, 10.0], [0.2, 0.2], [0.0, 0.0], [0.5]],
    [[0.1, 0.2, 0.3], [0.0, 0.0], [-0.5, 0.5], [0.25]],
]


def lars_loop(weight_decay, rates):
    """Every value after every step, from the formula, number by number."""
    values = [list(row) for row in LARS_START]
    velocities = [[0.0] * len(row) for row in values]
    for rate, gradients in zip(rates, LARS_GRADIENTS, strict=True):
        for row, velocity, gradient in zip(values, velocities, gradients, strict=True):
            size, slope = math.hypot(*row), math.hypot(*gradient)
            trust = 1.0
            if size > 0 and slope > 0:
                trust = 0.001 * size / (slope + weight_decay * size + 1e-8)
            for k in range(len(row)):
                velocity[k] = 0.8 * velocity[k] + trust * (gradient[k] + weight_decay * row[k])
                row[k] -= rate * velocity[k]
    return values


@pytest.mark.parametrize("weight_decay", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("interrupted", [False, True])
def test_lars_step_by_step(weight_decay, interrupted):
    """Also with parameters or gradients of norm 0, without weight decay, and from a saved state on."""
    def make_lars(values):
        parameters = [nn.Parameter(torch.tensor(row, dtype=torch.float64)) for row in values]
        return parameters, *optimizer_and_schedule(parameters, algorithm="lars", lr=3.0, global_batch=512,
                                                   total_steps=5, warmup_steps=2, momentum=0.8,
                                                   weight_decay=weight_decay)

    parameters, optimizer, schedule = make_lars(LARS_START)
    for step, gradients in enumerate(LARS_GRADIENTS):
        if interrupted and step == 3:
            saved = optimizer.state_dict(), schedule.state_dict()
            parameters, optimizer, schedule = make_lars([p.tolist() for p in parameters])
            for part, state in zip((optimizer, schedule), saved):
                part.load_state_dict(state)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        schedule.step()
    expected = lars_loop(weight_decay, [6.0 * factor for factor in loop_factors(5, 2)[:5]])
    for parameter, row in zip(parameters, expected, strict=True):
        assert parameter.tolist() == pytest.approx(row, rel=1e-9, abs=1e-15)


def test_lars_takes_a_matrix_as_one():
    matrix = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    optimizer, _ = optimizer_and_schedule([matrix], algorithm="lars", lr=1.0, global_batch=256, total_steps=1,
                                          warmup_steps=0, weight_decay=0.0)
    matrix.grad = torch.tensor([[0.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    optimizer.step()
    assert matrix[0, 1].item() == pytest.approx(-0.001 * 5)  # a thousandth of its norm, along the gradient
    assert torch.equal(matrix[:, 0], torch.tensor([3.0, 0.0])) and matrix[1, 1] == 4


def test_adamw_step_by_step():
    parameter, optimizer, _ = make(algorithm="adamw", warmup_steps=0, lr=0.1, weight_decay=0.01)
    value, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.2, 0.7), start=1):
        value *= 1 - 0.1 * 0.01
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value -= 0.1 * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    assert steps(parameter, optimizer, (0.5, -0.2, 0.7)) == pytest.approx(value, rel=1e-9)


def test_unknown_algorithm_is_named_with_what_there_is():
    with pytest.raises(UserError, match=r"algorithm='lamb': expected one of sgd, lars, adamw, muon"):
        make(algorithm="lamb")


def test_muon_multiplies_in_fp32_on_a_cpu(monkeypatch):
    """timm's own bf16 takes tens of times as long on many CPUs."""
    types, product = set(), torch.addmm

    def addmm(*words, **named):
        types.add(words[0].dtype)
        return product(*words, **named)

    monkeypatch.setattr(torch, "addmm", addmm)
    matrix = nn.Parameter(torch.ones(6, 4))
    optimizer, _ = optimizer_and_schedule([matrix], algorithm="muon", lr=0.1, global_batch=256, total_steps=1,
                                          warmup_steps=0)
    matrix.grad = torch.eye(6, 4)
    optimizer.step()
    assert types == {torch.float32}

"""A batch computed in parts is the batch, but for what BatchNorm sees."""

import copy

import pytest
import torch
from torch import nn

from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.training.objectives import RDCD, SSCD
from rdcd.training.parts import InParts


def views(seed, count=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 3, 32, 32, generator=generator)


def step(objective_class, trunk, parts, **options):
    """Two SGD steps; return the objective's terms and the student."""
    torch.manual_seed(0)
    student = Student(trunk=trunk, dim=6, kd_dim=12)
    teacher = Teacher(Student(trunk="test_resnet", dim=None, kd_dim=12))
    objective = objective_class(student, teacher, **options).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    called = student if parts == 1 else InParts(student, parts)
    terms = []
    for number in range(2):
        query, key = views(number)
        outcome = objective(called, query, key, torch.arange(len(query)))
        optimizer.zero_grad()
        outcome.total.backward()
        outcome.remember()
        optimizer.step()
        terms.append({name: value.detach() for name, value in outcome.terms.items()})
    return terms, student.state_dict() | objective.state_dict()


@pytest.mark.parametrize("parts", [2, 3, 7, 20])
@pytest.mark.parametrize(("objective", "options"), [
    (RDCD, {"queue_size": 9}), (RDCD, {"queue_size": 9, "batch_negatives": True, "append_batch": True}), (SSCD, {})])
def test_losses_and_steps_are_those_of_the_whole_batch(objective, options, parts):
    whole, in_parts = (step(objective, "test_convnext", n, **options) for n in (1, parts))
    for first, second in zip(whole[0], in_parts[0], strict=True):
        assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert all(torch.allclose(value, in_parts[1][name], atol=1e-4) for name, value in whole[1].items())


def test_running_statistics_move_once_a_part():
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=6, kd_dim=12).train()
    by_hand = copy.deepcopy(student)
    pictures = views(0)[0]
    InParts(student, 2)(pictures).descriptors.sum().backward()
    for part in pictures.chunk(2):
        by_hand(part)
    norms = [(name, m) for name, m in student.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for name, norm in norms:
        other = by_hand.get_submodule(name)
        assert norm.momentum == other.momentum == 0.1
        assert torch.equal(norm.running_mean, other.running_mean) and torch.equal(norm.running_var, other.running_var)


def test_random_numbers_are_drawn_once():
    torch.manual_seed(0)
    student = Student(trunk="test_convnext", dim=6, kd_dim=12).train()
    student.pool = nn.Sequential(student.pool, nn.Dropout(0.5))
    pictures, gradients = views(0, 6)[0], []
    for called in (lambda x: torch.cat([student(part).descriptors for part in x.chunk(3)]),
                   lambda x: InParts(student, 3)(x).descriptors):
        torch.manual_seed(1)
        student.zero_grad()
        called(pictures)[:, 0].sum().backward()
        gradients.append(student.fc.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)

"""The bare loop trains as the objectives and the trainer do, step by step."""

from functools import partial

import pytest
import torch

from rdcd.bench.bare import Bare
from rdcd.bench.step import random_batches
from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.training.datamodule import DataSettings
from rdcd.training.fit import TrainerSettings
from rdcd.training.module import Optimization
from rdcd.training.objectives import RDCD, SSCD

BATCHES = random_batches(3, data=DataSettings(size=32, batch_size=6), seed=1)


def made(loss):
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=5, kd_dim=7)
    return student, loss(student, Teacher(Student(trunk="test_efficientnet", dim=None, kd_dim=7)))


def bare(loss, **changes):
    settings = TrainerSettings(**{"optimization": Optimization(lr=2.0, weight_decay=0.01)} | changes)
    return Bare(*made(loss), settings=settings, device="cpu", batch_size=6, total_steps=3, warmup_steps=1,
                channels_last=False)


@pytest.mark.parametrize("loss", [
    partial(RDCD, queue_size=10), partial(RDCD, queue_size=10, batch_negatives=True, append_own=True),
    partial(RDCD, queue_size=10, hard_negative_weight=0.0, append_batch=True, teacher_train_mode=True),
    partial(RDCD, queue_size=10, contrastive_weight=0.0), partial(RDCD, queue_size=10, relational_weight=0.0), SSCD])
def test_three_steps_are_those_of_the_objective_and_plain_sgd(loss) -> None:
    rate = 0.02 if loss is SSCD else 2.0  # its gradient is hundreds of times larger: one step must not undo the start
    ours = bare(loss, optimization=Optimization(lr=rate, weight_decay=0.01))
    student, objective = made(loss)
    start = student.trunk.conv_stem.weight.clone()
    velocities = [torch.zeros_like(p) for p in student.parameters()]
    for lr, batch in zip((0.0, 1.0, 0.5), BATCHES, strict=True):  # of 3 steps, the first rises from 0
        ours.step(batch)
        outcome = objective(student, batch["query"] / 255, batch["key"] / 255, batch["index"])
        gradients = torch.autograd.grad(outcome.total, list(student.parameters()), allow_unused=True)
        outcome.remember()
        with torch.no_grad():
            for weight, gradient, velocity in zip(student.parameters(), gradients, velocities, strict=True):
                if gradient is not None:
                    velocity.mul_(0.9).add_(gradient + 0.01 * weight)
                    weight -= rate * lr * 6 / 256 * velocity
    for mine, plain in ((ours.student, student), (ours.objective, objective)):
        for (name, a), b in zip(mine.state_dict().items(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(start, student.trunk.conv_stem.weight, rtol=1e-3)


def test_networks_alone_get_a_gradient_and_keep_their_weights() -> None:
    for loss in (partial(RDCD, queue_size=10), SSCD):
        ours, (plain, _) = bare(loss), made(loss)
        ours.networks(*ours.views(BATCHES[0]))
        assert all(torch.equal(a, b) for a, b in zip(ours.student.parameters(), plain.parameters(), strict=True))
        assert ours.student.trunk.conv_stem.weight.grad.abs().sum() > 0


def test_mixed_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="loss.mixup=0.5: the bare loop mixes no pictures; set 0"):
        bare(partial(SSCD, mixup=0.5))

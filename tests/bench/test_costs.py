"""What is counted of networks so small that it can be told by hand."""

from functools import partial

import pytest
import torch
from test_bare import bare
from torch import nn

from rdcd.bench.costs import kept_bytes, operations_of, passing_bytes, step_costs
from rdcd.models.student import Student, parameter_count
from rdcd.training.module import Optimization
from rdcd.training.objectives import RDCD, SSCD


def test_a_layer_keeps_its_input_once() -> None:
    first, second = nn.Linear(5, 3, bias=False), nn.Linear(3, 2)

    def forward(count: int) -> torch.Tensor:
        hidden = first(torch.rand(count, 5)).relu()  # 3 numbers, which relu and the second layer both keep
        return second(hidden).sum()

    assert kept_bytes(forward) == 4 * (5 + 3)


def test_operations_of_a_product_are_two_for_each_pair() -> None:
    layer = nn.Linear(5, 3)
    assert operations_of(lambda n: layer(torch.rand(n, 5)).sum()) == 2 * 5 * 3
    assert operations_of(lambda n: layer(torch.rand(n, 5)).sum().backward()) == 2 * 2 * 5 * 3  # of the weights, too


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_operations_of_a_convolution(kind: type, groups: int) -> None:
    layer = kind(6, 12, 3, padding=1, groups=groups)
    forward = 2 * 8 * 8 * 6 * 12 // groups * 9  # of every place, channel in, channel out of its group, and tap
    assert operations_of(lambda n: layer(torch.rand(n, 6, 8, 8)).sum()) == forward
    assert operations_of(lambda n: layer(torch.rand(n, 6, 8, 8)).sum().backward()) == 2 * forward  # of the weights
    assert operations_of(lambda n: layer(torch.rand(n, 6, 8, 8, requires_grad=True)).sum().backward()) == 3 * forward


def test_the_largest_layer_is_found_by_what_passes_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    network.embed = network.forward
    assert passing_bytes(network, size=8) == 4 * (3 * 64 + 4 * 16)


def test_costs_of_a_step() -> None:
    ours = bare(partial(RDCD, queue_size=10))
    costs = step_costs(ours, size=32, algorithm="adamw")
    student, teacher = (parameter_count(Student(trunk="test_efficientnet", dim=dim, kd_dim=7)) for dim in (5, None))
    assert (costs["student_parameters"], costs["teacher_parameters"]) == (student, teacher)
    assert costs["network_bytes"] == 4 * (5 * student + teacher) and costs["queue_bytes"] == 4 * 10 * (5 + 7)
    assert costs["student_operations"] > 2 * costs["key_operations"] > 0 and costs["teacher_operations"] > 0
    assert costs["operations"] == sum(costs[f"{name}_operations"] for name in ("student", "key", "teacher", "loss"))
    forward = 2 * 10 * (5 + 2 * 7)  # queries with the keys' queue, student's and teacher's features with the teacher's
    assert costs["loss_operations"] == pytest.approx(forward + 2 * 10 * 5 + 2 * 10 * (5 + 5 + 7), rel=0.3)
    assert costs["student_bytes"] > 3 * 32 * 32 * 4 and 0 < costs["loss_bytes"] < costs["student_bytes"]


def test_half_precision_keeps_less_and_plain_losses_need_no_second_network() -> None:
    wide, narrow = (step_costs(bare(SSCD, precision=precision, optimization=Optimization()), size=32, algorithm="sgd")
                    for precision in ("32-true", "bf16-mixed"))
    assert narrow["student_bytes"] < 0.8 * wide["student_bytes"]
    assert wide["queue_bytes"] == 0 == wide["teacher_operations"] == wide["key_operations"]
    assert wide["network_bytes"] == 4 * 3 * wide["student_parameters"]

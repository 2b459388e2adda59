import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rdcd.models.dino import DinoDescriptor
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher, Unregistered


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(Student(trunk="test_resnet", dim=None, kd_dim=8))


class Holder(Unregistered, nn.Module):
    """Trains a layer towards a teacher it uses without owning."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 8)
        self.use("teacher", teacher)

    def forward(self, pictures: Tensor) -> Tensor:
        return (self.layer(pictures.flatten(1)) - self.teacher(pictures)).square().mean()


class Outer(nn.Module):
    def __init__(self, holder: Holder) -> None:
        super().__init__()
        self.holder = holder


def everything(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module, buffers outside the state dict included."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in tensors}


def test_stays_in_eval_mode(teacher: Teacher) -> None:
    outer = Outer(Holder(teacher))
    for train in (teacher.train, outer.holder.train, outer.train, lambda: outer.holder.teacher.train(True)):
        train()
        assert outer.holder.training or train == teacher.train
        assert not any(module.training for module in teacher.modules())
    registered = nn.ModuleList([teacher]).train()  # even where somebody registers it
    assert registered.training and not any(module.training for module in teacher.modules())


def test_output_is_the_networks_without_gradient(teacher: Teacher) -> None:
    pictures = torch.rand(2, 3, 32, 32, requires_grad=True)
    found = teacher(pictures)
    assert teacher.dim == 8 and found.shape == (2, 8)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    with torch.no_grad():
        assert torch.equal(found, teacher.network.embed(pictures))


def test_no_tensor_changes_while_a_holder_trains(teacher: Teacher) -> None:
    outer = Outer(Holder(teacher)).train()
    before, layer = everything(teacher), outer.holder.layer.weight.detach().clone()
    assert any("running_mean" in name for name in before)
    optimizer = torch.optim.SGD(outer.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for seed in range(3):
        outer.train()
        optimizer.zero_grad()
        outer.holder(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))).backward()
        optimizer.step()
    assert not torch.equal(layer, outer.holder.layer.weight)
    after = everything(teacher)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_in_train_mode_only_statistics_drift(teacher: Teacher) -> None:
    pictures = torch.rand(4, 3, 32, 32)
    online = copy.deepcopy(teacher.network).train()
    evaluated = teacher(pictures)
    before, drifting = everything(teacher), Teacher(teacher.network, train_mode=True)
    assert not drifting.training and torch.equal(drifting(pictures), evaluated)  # until it is told
    found = drifting.train()(pictures)
    assert all(module.training for module in drifting.modules()) and not found.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found, online.embed(pictures))
    assert not torch.allclose(found, evaluated, atol=1e-3)
    changed = {name.rpartition(".")[2] for name, value in everything(drifting).items()
               if not torch.equal(value, before[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(p.requires_grad for p in drifting.parameters())
    assert not any(module.training for module in drifting.eval().modules())


@pytest.mark.parametrize("network", [lambda: Student(trunk="test_resnet", dim=None, kd_dim=8),
                                     lambda: DinoDescriptor(trunk="test_vit")])
def test_descriptors_are_normalized_in_fp32_under_autocast(network: Callable[[], nn.Module]) -> None:
    teacher = Teacher(network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher(torch.rand(3, 3, 160, 160))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


def test_holder_does_not_own_it(teacher: Teacher) -> None:
    outer = Outer(Holder(teacher))
    assert [name for name, _ in outer.named_parameters()] == ["holder.layer.weight", "holder.layer.bias"]
    assert set(outer.state_dict()) == {"holder.layer.weight", "holder.layer.bias"}
    assert not list(outer.buffers()) and teacher not in list(outer.modules())
    assert outer.holder.teacher is teacher


def test_follows_its_holder_to_other_types(teacher: Teacher) -> None:
    outer = Outer(Holder(teacher)).to(torch.float64)
    assert {value.dtype for value in everything(teacher).values()} == {torch.float64, torch.int64}
    outer.float()
    assert {value.dtype for value in everything(teacher).values()} == {torch.float32, torch.int64}
    outer.to("meta")
    assert all(value.is_meta for value in [*teacher.parameters(), *teacher.buffers()])

import copy

import pytest
import torch
from torch import nn

from rdcd.models.momentum import MomentumEncoder


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


@pytest.fixture
def online() -> nn.Module:
    made = network()
    made(torch.rand(2, 3, 8, 8))
    return made


def disturb(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value += torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("m", [0.0, 0.99, 1.0])
def test_parameters_move_by_the_equation(online: nn.Module, m: float) -> None:
    keys = MomentumEncoder(online, momentum=m)
    expected = [p.detach().double().flatten().tolist() for p in online.parameters()]
    for step in range(3):
        disturb(online, step)
        keys.update(online)
        for old, target in zip(expected, online.parameters()):  # one number at a time
            for i, value in enumerate(target.detach().double().flatten().tolist()):
                old[i] = m * old[i] + (1 - m) * value
    for old, found in zip(expected, keys.network.parameters(), strict=True):
        torch.testing.assert_close(found.double().flatten(), torch.tensor(old).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.99, 0.996, 1.0])
def test_a_step_rounds_by_an_ulp_at_most(online: nn.Module, m: float) -> None:
    """Of the larger of the two: m·θ_K + (1 − m)·θ in fp32 beside float64, and nothing at all at both ends of m."""
    keys = MomentumEncoder(online, momentum=m)
    disturb(online, 0)
    before = [p.double() for p in keys.network.parameters()]
    keys.update(online)
    for old, target, found in zip(before, online.parameters(), keys.network.parameters(), strict=True):
        target = target.detach()
        expected = m * old + (1 - m) * target.double()
        ulp = 2.0**-23 * torch.maximum(old.abs(), target.double().abs())
        assert ((found.double() - expected).abs() <= (0 if m in (0, 1) else 1) * ulp).all()


def test_update_leaves_the_online_network_alone(online: nn.Module) -> None:
    keys = MomentumEncoder(online)
    disturb(online, 0)
    before = copy.deepcopy(online.state_dict())
    keys.update(online)
    keys(torch.rand(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in online.state_dict().items())


def test_buffers_are_not_averaged_but_learnt_from_the_keys(online: nn.Module) -> None:
    keys = MomentumEncoder(online, momentum=0.5).train()
    with torch.no_grad():
        online[1].running_mean.fill_(100.0)
    before = keys.network[1].running_mean.clone()
    keys.update(online)
    assert torch.equal(keys.network[1].running_mean, before)
    keys(torch.rand(2, 3, 8, 8))
    assert not torch.equal(keys.network[1].running_mean, before)


def test_takes_no_gradient(online: nn.Module) -> None:
    keys = MomentumEncoder(online)
    assert not any(p.requires_grad for p in keys.parameters())
    assert all(p.requires_grad for p in online.parameters())
    pictures = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not keys(pictures).requires_grad
    disturb(online, 0)
    keys.update(online)
    assert not any(p.requires_grad for p in keys.parameters())


def test_output_is_the_copied_networks(online: nn.Module) -> None:
    pictures = torch.rand(2, 3, 8, 8)
    keys = MomentumEncoder(online).eval()
    torch.testing.assert_close(keys(pictures), online.eval()(pictures))

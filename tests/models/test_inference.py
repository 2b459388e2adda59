"""The network made ready is the network, but for rounding."""

import copy

import pytest
import torch
from torch import nn

from rdcd.errors import UserError
from rdcd.models.inference import fold_batch_norms, make_embed
from rdcd.models.student import Student
from rdcd.models.thumbnail import Thumbnail


def trained(trunk: str) -> Student:
    """A student whose batch norms have statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    made = Student(trunk=trunk, dim=6, kd_dim=10).train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        for _ in range(20):
            made(torch.rand(8, 3, 48, 48))
    return made


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("trunk", "folds"), [("test_efficientnet", True), ("test_resnet", True), ("test_vit", False),
                                              ("test_convnext", False)])
def test_equals_the_network_and_leaves_it(trunk: str, folds: bool, pictures: torch.Tensor) -> None:
    network = trained(trunk)
    if trunk == "test_vit":
        pictures = pictures[..., :48]
    before = copy.deepcopy(network.state_dict())
    embed = make_embed(network, device="cpu")
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval().embed(pictures.float() / 255)
    found = embed(pictures)
    assert found.dtype == torch.float32 and expected.std(dim=0).max() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert (fold_batch_norms(network) > 0) == folds
    if folds:
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Odd(nn.Module):
    """Of four batch norms, only that of `a` may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.na, self.nb, self.nc = (nn.BatchNorm2d(3) for _ in range(3))
        self.nd = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.na(self.a(x))
        y = self.b(x)
        x = self.nb(y) + y  # the convolution is used without it, too
        x = self.nc(self.c(self.nc(self.c(x))))  # twice
        return self.nd(self.d(x))


def test_only_what_is_a_batch_norm_of_one_convolution_alone_is_folded() -> None:
    torch.manual_seed(0)
    whole = nn.Module()
    whole.trunk = Odd()
    x = torch.rand(2, 3, 8, 8)
    whole.trunk(x)
    expected = whole.eval().trunk(x)
    assert fold_batch_norms(whole) == 1 and isinstance(whole.trunk.na, nn.Identity)
    torch.testing.assert_close(whole.trunk(x), expected)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.na(self.a(x)) if x.mean() > 0 else x


def test_what_cannot_be_traced_stays() -> None:
    whole = nn.Module()
    whole.trunk = Branching()
    assert fold_batch_norms(whole) == 0 and isinstance(whole.trunk.na, nn.BatchNorm2d)
    assert fold_batch_norms(Thumbnail()) == 0


def test_half_precision_is_near_and_another_refused(pictures: torch.Tensor) -> None:
    network = trained("test_efficientnet").eval()
    found, exact = (make_embed(network, device="cpu", precision=name)(pictures) for name in ("bf16", "fp32"))
    assert found.dtype == torch.float32 and 1e-6 < (found - exact).abs().max() < 0.05
    with pytest.raises(UserError, match="precision=fp16: expected one of fp32, bf16"):
        make_embed(network, device="cpu", precision="fp16")


def test_compiled_batches_are_filled_up_and_failure_is_said(pictures: torch.Tensor, monkeypatch) -> None:
    network, shapes = trained("test_efficientnet").eval(), []

    def compiled(function, **options):
        def run(x):
            shapes.append(tuple(x.shape))
            return function(x)
        return run

    monkeypatch.setattr(torch, "compile", compiled)
    square = pictures[..., :48]
    found = make_embed(network, device="cpu", compile=(8, 48))(square)
    torch.testing.assert_close(found, make_embed(network, device="cpu")(square), atol=2e-6, rtol=0)
    assert len(found) == 5 and set(shapes) == {(8, 3, 48, 48)}

    def broken(function, **options):
        raise_ = RuntimeError("no C++ compiler\nand a long story")
        return lambda x: (_ for _ in ()).throw(raise_)

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"compile=true: torch.compile does not work here \(no C\+\+ compiler\)"):
        make_embed(network, device="cpu", compile=(8, 48))

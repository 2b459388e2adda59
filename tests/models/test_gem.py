import numpy as np
import pytest
import torch

from rdcd.models.gem import GeM


def loops(x: np.ndarray, p: float, eps: float = 1e-6) -> np.ndarray:
    """GeM of [B, places, C], one number at a time, in float64."""
    out = np.zeros((x.shape[0], x.shape[2]))
    for b in range(x.shape[0]):
        for c in range(x.shape[2]):
            total = 0.0
            for place in range(x.shape[1]):
                total += max(float(x[b, place, c]), eps) ** p
            out[b, c] = (total / x.shape[1]) ** (1 / p)
    return out


@pytest.mark.parametrize("p", [1.0, 3.0, 4.0])
def test_maps_and_tokens_equal_the_loops(p: float) -> None:
    tokens = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(loops(tokens.numpy(), p)).float()
    torch.testing.assert_close(GeM(p)(tokens), expected)
    maps = tokens.permute(0, 2, 1).reshape(2, 5, 2, 3)
    torch.testing.assert_close(GeM(p)(maps), expected)


def test_power_one_is_the_mean_and_a_high_power_nears_the_maximum() -> None:
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(GeM(1.0)(x), x.mean(dim=(2, 3)))
    torch.testing.assert_close(GeM(100.0)(x + 0.5), x.amax(dim=(2, 3)) + 0.5, rtol=0.03, atol=0)


def test_gradient_is_finite_at_and_below_zero() -> None:
    x = torch.tensor([0.0, -1.0, 1e-7, 1e-6]).view(1, 1, 2, 2).requires_grad_()
    GeM(3.0)(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    pooled = GeM(3.0)(dead)
    pooled.sum().backward()
    torch.testing.assert_close(pooled, torch.full((2, 3), 1e-6), atol=0, rtol=1e-5)
    assert torch.equal(dead.grad, torch.zeros_like(dead))


def test_gradient_equals_the_formula() -> None:
    x = (torch.rand(1, 4, 2, dtype=torch.float32) + 0.1).requires_grad_()
    GeM(3.0)(x).sum().backward()
    y = loops(x.detach().numpy(), 3.0)
    slope = x.detach().numpy() ** 2 / 4 / y[:, None] ** 2  # d y / d x = x^(p-1) / (N y^(p-1))
    torch.testing.assert_close(x.grad, torch.from_numpy(slope).float())


def test_half_precision_and_autocast_are_pooled_in_fp32() -> None:
    x = torch.full((1, 1, 2, 2), 60.0, dtype=torch.float16)  # 60³ is more than fp16 holds
    assert GeM(3.0)(x).dtype == torch.float32
    torch.testing.assert_close(GeM(3.0)(x), torch.tensor([[60.0]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(GeM(3.0)(x.bfloat16()), torch.tensor([[60.0]]))

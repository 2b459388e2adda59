"""Generalized-mean pooling (Radenović et al. 2018; docs/method.md §1)."""

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """(mean over places of max(x, ε)^p)^(1/p), in fp32, for maps [B, C, H, W] or tokens [B, N, C].

    Args:
        p: the exponent, fixed; 1 is the mean, ∞ the maximum.
        eps: ε, the clamp that keeps the power's gradient finite.
        keep: return a map of one place.

    Returns:
        [B, C], or [B, C, 1, 1] with `keep`.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, *, keep: bool = False) -> None:
        super().__init__()
        self.p, self.eps, self.keep = p, eps, keep

    def forward(self, x: Tensor) -> Tensor:
        places = (2, 3) if x.ndim == 4 else (1,)
        with torch.autocast(x.device.type, enabled=False):
            return x.float().clamp(min=self.eps).pow(self.p).mean(dim=places, keepdim=self.keep).pow(1 / self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, eps={self.eps}"

"""The momentum student, or key encoder (MoCo; docs/method.md §1, §2)."""

import copy

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """A copy of a network that follows it as an exponential moving average and takes no gradient.

    Only parameters are averaged; BN statistics are the copy's own, from the keys it sees.

    Args:
        network: the online network, copied at construction.
        momentum: m in θ_K ← m·θ_K + (1 − m)·θ.
    """

    def __init__(self, network: nn.Module, *, momentum: float = 0.99) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move one step towards `network`; once per training step, before the key forward."""
        keys, online = list(self.network.parameters()), [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(keys, online, 1 - self.momentum)

    @torch.no_grad()
    def forward(self, pictures: Tensor):
        """Return the copy's output for pictures [B, 3, H, W] in [0, 1]."""
        return self.network(pictures)

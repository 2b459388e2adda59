"""How much of their space descriptors use: the method is about collapse, so we watch it."""

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(descriptors: Tensor) -> Tensor:
    """exp of the entropy of the normalized singular values of centred rows (Roy & Vetterli 2007).

    Args:
        descriptors: [N, d].

    Returns:
        A scalar in [1, min(N − 1, d)]; 1 when all rows are equal.
    """
    centred = descriptors.float() - descriptors.float().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())

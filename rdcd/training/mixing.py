"""Views that show two pictures: mixup and cutmix, element by element (METHOD §3)."""

import math

import numpy as np
import torch
from torch import Tensor


def mix_views(pictures: Tensor, labels: Tensor, *, probability: float = 0.05, mixup_alpha: float = 2.0,
              cutmix_alpha: float = 2.0, switch_probability: float = 0.5,
              generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix elements of a batch with their partners, the same batch in reversed order.

    Mixup adds up (1 − λ)·element + λ·partner (Zhang et al. 2018); cutmix pastes a box of the partner's with
    sides of √λ of the picture's around a uniform centre, cut off at the borders (Yun et al. 2019).
    λ ~ Beta(α, α). An element of which the partner would show nothing, or everything, stays as it is, so that no
    picture loses a view.

    Args:
        pictures: the batch, float [M, 3, H, W]; not changed.
        labels: which picture each element shows, int [M].
        probability: of an element to be mixed.
        mixup_alpha, cutmix_alpha: α of either.
        switch_probability: of cutmix, where an element is mixed.
        generator: of all draws.

    Returns:
        The mixed batch [M, 3, H, W], and the pictures that each element shows, int [M, 2]: its own, and its partner's
        or its own again.
    """
    count, _, height, width = pictures.shape
    mixed, shown = pictures.clone(), torch.stack([labels, labels], dim=1)
    for i in np.flatnonzero(generator.random(count) < probability).tolist():
        partner, cut = count - 1 - i, generator.random() < switch_probability
        alpha = cutmix_alpha if cut else mixup_alpha
        share = float(np.float32(generator.beta(alpha, alpha)))  # in the pictures' precision, where it may be 0 or 1
        if cut:
            rows, columns = _span(height, share, generator), _span(width, share, generator)
            share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        if not 0 < share < 1:
            continue
        if cut:
            mixed[i, :, rows, columns] = pictures[partner, :, rows, columns]
        else:
            mixed[i] = torch.lerp(pictures[i], pictures[partner], share)
        shown[i, 1] = labels[partner]
    return mixed, shown


def _span(side: int, share: float, generator: np.random.Generator) -> slice:
    """Return one side of a box: √share of `side` around a uniform centre, cut off at the borders."""
    half, centre = int(side * math.sqrt(share)) // 2, int(generator.integers(side))
    return slice(max(centre - half, 0), min(centre + half, side))

"""Views that show two pictures: mixup and cutmix, element by element (docs/method.md §3)."""

import math

import numpy as np
import torch
from torch import Tensor

from rdcd.errors import UserError


def mix_views(views: Tensor, labels: Tensor, *, probability: float = 0.05, mixup_alpha: float = 2.0,
              cutmix_alpha: float = 2.0, switch_probability: float = 0.5, rank: int = 0, ranks: int = 1,
              generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix elements of a batch with their partners: the neighbour in pairs 0 and 1, 2 and 3, … of the same half.

    Mixup adds up (1 − λ)·element + λ·partner (Zhang et al. 2018); cutmix pastes a box of the partner's with
    sides of √λ of the picture's around a uniform centre, cut off at the borders (Yun et al. 2019).
    λ ~ Beta(α, α). An element of which the partner would show nothing, or everything, stays as it is, so that no
    picture loses a view; likewise the last of an odd half, which has no partner.

    Published SSCD takes as partners the same batch in reversed order, GPU by GPU, so that what is mixed depends on
    their number. Pairs of neighbours lie on one process whatever their number, and every process draws the numbers of
    the whole global batch and applies those of its own rows: the mixtures are those of one process. Over a shuffled
    batch both ways give a view a random partner, and both views of a picture the same one.

    Args:
        views: this process's, float [2B, 3, H, W], the B queries and then the B keys; not changed.
        labels: which picture each view shows, int [2B].
        probability: of an element to be mixed.
        mixup_alpha, cutmix_alpha: α of either.
        switch_probability: of cutmix, where an element is mixed.
        rank, ranks: of `ranks` processes with B queries each, this is number `rank`.
        generator: of all draws; in the same state on every process.

    Returns:
        The mixed batch [2B, 3, H, W], and the pictures that each element shows, int [2B, 2]: its own, and its partner's
        or its own again.

    Raises:
        UserError: several processes with an odd B.
    """
    count, _, height, width = views.shape
    half = count // 2
    check_pairs(half, ranks=ranks)

    def mine(drawn: np.ndarray) -> np.ndarray:
        """Of numbers for all views, [2·ranks·B, …] with all queries first, those of this process."""
        return drawn.reshape(2, ranks, half, -1)[:, rank].reshape(count, *drawn.shape[1:])

    total = ranks * count
    chosen = mine(generator.random(total) < probability)
    boxes = mine(generator.random(total) < switch_probability)
    shares = np.where(boxes, mine(generator.beta(cutmix_alpha, cutmix_alpha, total)),
                      mine(generator.beta(mixup_alpha, mixup_alpha, total)))
    centres = mine(generator.random((total, 2)))
    mixed, shown = views.clone(), torch.stack([labels, labels], dim=1)
    for i in np.flatnonzero(chosen).tolist():
        start = i // half * half
        partner = start + ((i - start) ^ 1)
        if partner >= start + half:
            continue
        share = float(np.float32(shares[i]))  # in the views' precision, where it may be 0 or 1
        if boxes[i]:
            rows, columns = _span(height, share, centres[i, 0]), _span(width, share, centres[i, 1])
            share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        if not 0 < share < 1:
            continue
        if boxes[i]:
            mixed[i, :, rows, columns] = views[partner, :, rows, columns]
        else:
            mixed[i] = torch.lerp(views[i], views[partner], share)
        shown[i, 1] = labels[partner]
    return mixed, shown


def check_pairs(share: int, *, ranks: int) -> None:
    """Refuse, of several processes, an odd number of pictures each: neighbours must lie on one of them.

    Args:
        share: pictures a step of each process.
        ranks: number of processes.

    Raises:
        UserError: it is odd.
    """
    if ranks > 1 and share % 2:
        raise UserError(f"data.batch_size={share * ranks} gives {share} pictures to each of {ranks} processes, and "
                        f"loss.mixup mixes them in pairs: data.batch_size must be an even multiple of the processes, "
                        f"such as {(share + 1) * ranks}, or loss.mixup=0")


def _span(side: int, share: float, place: float) -> slice:
    """Return one side of a box: √share of `side` around the pixel at `place` in [0, 1), cut off at the borders."""
    half, centre = int(side * math.sqrt(share)) // 2, int(side * place)
    return slice(max(centre - half, 0), min(centre + half, side))

"""L_HN: push every descriptor from its nearest neighbour in the queue (docs/method.md §2)."""

import torch
from torch import Tensor

from rdcd.losses.precision import cut_log, in_fp32


@in_fp32
def hardest_similarity(query: Tensor, negatives: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return s_i = max_k query_i · negatives_k over the valid slots, [B]; −1 where there are none."""
    similarity = query @ negatives.T
    if valid is None:
        return similarity.amax(dim=1)
    hardest = similarity.masked_fill(~valid, -2.0).amax(dim=1)  # below every cosine: a tie would share the gradient
    return torch.where(hardest < -1.5, -1.0, hardest)


@in_fp32
def hard_negative_loss(query: Tensor, negatives: Tensor, *, valid: Tensor | None = None,
                       epsilon: float = 1e-3, form: str = "tangent") -> Tensor:
    """−mean_i log u_i with u_i = 1 − s_i and s_i the cosine to the nearest queue entry.

    This is 2·KoLeo + log 2 with the neighbour sought in the queue. The logarithm diverges at u = 0:

    - `form="clamp"`, published: −log max(u, ε). Its gradient vanishes for u < ε, exactly where two
      descriptors have collapsed.
    - `form="tangent"`, default: equal to the published value for u ≥ ε; below, the logarithm goes
      on along its tangent at ε, −log ε + (1 − u/ε), so the gradient stays −1/ε up to s = 1.

    Args:
        query: z_S, L2-normalized [B, d].
        negatives: the student queue [K, d].
        valid: bool [K] or [B, K], False for unfilled slots; None: all count.
        epsilon: ε, where the logarithm is cut.
        form: `tangent` or `clamp`.

    Returns:
        A scalar in [−log 2, 1 − log ε]; 0 when no slot is valid.

    Raises:
        ValueError: for another `form`.
    """
    u = 1 - hardest_similarity(query, negatives, valid)
    loss = -cut_log(u, epsilon, form).mean()
    if valid is not None:  # no negatives yet: no pull, and no constant that would show as progress
        loss = loss * valid.any()
    return loss

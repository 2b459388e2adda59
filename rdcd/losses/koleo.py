"""KoLeo, the differential-entropy term of SSCD (Sablayrolles et al. 2019; SSCD §3.3; docs/method.md §3)."""

import math

import torch
from torch import Tensor

from rdcd.losses.precision import cut_log, in_fp32


@in_fp32
def koleo_loss(descriptors: Tensor, others: Tensor | None = None, *, same: Tensor | None = None,
               epsilon: float = 1e-3, form: str = "tangent") -> Tensor:
    """−mean_i log min_{j not of picture i} ‖z_i − z_j‖: spreads descriptors over the sphere.

    The distance is written as sqrt(u)·sqrt(2) with u = 1 − cosine; below u = ε the logarithm is cut, as in
    `hard_negative_loss`:

    - `form="tangent"`, default, goes on along its tangent, so two equal descriptors give a finite value and a finite
      gradient, which parts them;
    - `form="clamp"` with ε = 5e-7 is SSCD's code, which clamps the squared distance 2u at 1e-6: the value is finite,
      and the gradient 0 where two descriptors have collapsed.

    Args:
        descriptors: L2-normalized [N, d].
        others: where neighbours are sought, L2-normalized [M, d]; None: among `descriptors`.
        same: bool [N, M], True where column j shows the picture of row i and is no neighbour.
            Needed with `others`; None: each row excludes itself alone.
        epsilon: ε, in units of 1 − cosine.
        form: `tangent` or `clamp`.

    Returns:
        A scalar ≥ −log 2; 0 when no row has a neighbour.

    Raises:
        ValueError: another `form`.
    """
    if others is None:
        others = descriptors
        if same is None:
            same = torch.eye(len(descriptors), dtype=torch.bool, device=descriptors.device)
    similarity = descriptors @ others.T
    if same is not None:
        similarity = similarity.masked_fill(same, -torch.inf)[~same.all(dim=1)]
    if len(similarity) == 0:
        return descriptors.sum() * 0
    return -0.5 * (cut_log(1 - similarity.amax(dim=1), epsilon, form) + math.log(2)).mean()

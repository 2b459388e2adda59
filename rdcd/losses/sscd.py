"""The SSCD objective: InfoNCE over the batch plus the entropy term (Pizzi et al. 2022; docs/method.md §3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rdcd.losses.koleo import koleo_loss
from rdcd.losses.precision import MASKED, in_fp32


def share_picture(pictures: Tensor, others: Tensor) -> Tensor:
    """Return bool [N, M]: which rows of `pictures`, int [N] or [N, L], show one that a row of `others` shows."""
    same = torch.zeros(len(pictures), len(others), dtype=torch.bool, device=pictures.device)
    for mine in pictures.reshape(len(pictures), -1).T:
        for theirs in others.reshape(len(others), -1).T:
            same |= mine[:, None] == theirs[None, :]
    return same


@in_fp32
def sscd_loss(descriptors: Tensor, pictures: Tensor, others: Tensor | None = None,
              other_pictures: Tensor | None = None, *, offset: int = 0, temperature: float = 0.05,
              entropy_weight: float = 30.0, entropy_form: str = "tangent", entropy_epsilon: float = 1e-3,
              ) -> tuple[Tensor, Tensor]:
    """Return (InfoNCE, entropy) of a batch with two or more views a picture; their weighted sum is L.

    Two rows match if they show a picture in common. For every row i and every other row p that matches it,
    −log( e^{z_i·z_p/τ} / (e^{z_i·z_p/τ} + Σ_n e^{z_i·z_n/τ}) ) with n over the rows that do not match i,
    averaged over p, then over i; the entropy term is KoLeo with the neighbour sought among the same n.

    Args:
        descriptors: this process's L2-normalized descriptors [N, d].
        pictures: which pictures each row shows, int [N], or [N, L] for mixed views; a row of fewer than L repeats one.
        others, other_pictures: the same for the whole global batch [M, d], [M] or [M, L], rows of this process
            at `offset` … `offset + N`; None: this process's batch is the global batch.
        offset: first row of this process within `others`.
        temperature: τ.
        entropy_weight: λ; the second value is returned multiplied by it.
        entropy_form, entropy_epsilon: `form` and `epsilon` of `koleo_loss`; published: `clamp`, 5e-7.

    Returns:
        Two scalars. Their sum is the loss.

    Raises:
        ValueError: a row has no second view in the batch.
    """
    if others is None:
        others, other_pictures = descriptors, pictures
    same = share_picture(pictures, other_pictures)
    rows = torch.arange(len(descriptors), device=descriptors.device)
    positive = same.clone()
    positive[rows, rows + offset] = False
    if not bool(positive.any(dim=1).all()):
        raise ValueError("every picture needs two views in the batch: a row has no positive")
    logits = descriptors @ others.T / temperature
    negatives = logits.masked_fill(same, MASKED).logsumexp(dim=1, keepdim=True)
    terms = F.softplus(negatives - logits).masked_fill(~positive, 0.0)
    info_nce = (terms.sum(dim=1) / positive.sum(dim=1)).mean()
    entropy = koleo_loss(descriptors, others, same=same, epsilon=entropy_epsilon, form=entropy_form)
    return info_nce, entropy_weight * entropy

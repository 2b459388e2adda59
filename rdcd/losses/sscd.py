"""The SSCD objective: InfoNCE over the batch plus the entropy term (Pizzi et al. 2022; METHOD §3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rdcd.losses.koleo import koleo_loss
from rdcd.losses.precision import in_fp32


@in_fp32
def sscd_loss(descriptors: Tensor, pictures: Tensor, others: Tensor | None = None,
              other_pictures: Tensor | None = None, *, offset: int = 0, temperature: float = 0.05,
              entropy_weight: float = 30.0) -> tuple[Tensor, Tensor]:
    """Return (InfoNCE, entropy) of a batch with two or more views a picture; their weighted sum is L.

    For every row i and every other view p of the same picture,
    −log( e^{z_i·z_p/τ} / Σ_{j≠i} e^{z_i·z_j/τ} ), averaged over p, then over i; the entropy term is
    KoLeo with the neighbour sought among other pictures.

    Args:
        descriptors: this process's L2-normalized descriptors [N, d].
        pictures: int [N], which picture each row shows.
        others, other_pictures: the same for the whole global batch [M, d], [M], rows of this process
            at `offset` … `offset + N`; None: this process's batch is the global batch.
        offset: first row of this process within `others`.
        temperature: τ.
        entropy_weight: λ; the second value is returned multiplied by it.

    Returns:
        Two scalars. Their sum is the loss.

    Raises:
        ValueError: a row has no second view in the batch.
    """
    if others is None:
        others, other_pictures = descriptors, pictures
    itself = torch.zeros(len(descriptors), len(others), dtype=torch.bool, device=descriptors.device)
    rows = torch.arange(len(descriptors), device=descriptors.device)
    itself[rows, rows + offset] = True
    same = pictures[:, None] == other_pictures[None, :]
    positive = same & ~itself
    if not bool(positive.any(dim=1).all()):
        raise ValueError("every picture needs two views in the batch: a row has no positive")
    logits = (descriptors @ others.T / temperature).masked_fill(itself, -torch.inf)
    log_p = F.log_softmax(logits, dim=1).masked_fill(~positive, 0.0)
    info_nce = -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()
    return info_nce, entropy_weight * koleo_loss(descriptors, others, same=same)

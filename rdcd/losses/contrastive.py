"""L_con: InfoNCE against a queue (MoCo; docs/method.md §2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rdcd.losses.precision import MASKED, in_fp32


@in_fp32
def contrastive_loss(query: Tensor, key: Tensor, negatives: Tensor, *, valid: Tensor | None = None,
                     temperature: float = 0.07) -> Tensor:
    """InfoNCE, one direction: −mean_i log( e^{q_i·k_i/τ} / (e^{q_i·k_i/τ} + Σ_n e^{q_i·n/τ}) ).

    Args:
        query: z_S, L2-normalized [B, d]; takes the gradient.
        key: z_K, L2-normalized [B, d], row i the positive of query i.
        negatives: the student queue [K, d].
        valid: bool [K], or [B, K] where it differs by query; False marks what is no negative, such as slots
            not filled yet. None: all count.
        temperature: τ, in units of cosine.

    Returns:
        A scalar; 0 when no negative is valid.
    """
    positive = (query * key).sum(dim=1, keepdim=True)
    negative = query @ negatives.T
    logits = torch.cat([positive, negative], dim=1) / temperature
    if valid is not None:
        taken = torch.cat([valid.new_ones(*valid.shape[:-1], 1), valid], dim=-1)
        logits = logits.masked_fill(~taken, MASKED)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))

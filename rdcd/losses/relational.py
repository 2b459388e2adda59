"""L_rel: the student repeats the teacher's similarities to a queue of teacher features (docs/method.md §2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rdcd.losses.precision import MASKED, in_fp32


@in_fp32
def relational_loss(student: Tensor, teacher: Tensor, queue: Tensor, *, valid: Tensor | None = None,
                    student_temperature: float = 0.04, teacher_temperature: float = 0.04,
                    append_batch: bool = False, append_own: bool = False, batch: Tensor | None = None) -> Tensor:
    """mean_i KL(p_T ‖ p_S), p_T = softmax(h_T Qᵀ/τ_T), p_S = softmax(h_S Qᵀ/τ_S).

    Published: the queue as it was before this batch, one τ of 0.04, nothing appended.

    Args:
        student: h_S, L2-normalized [B, D]; takes the gradient.
        teacher: h_T, L2-normalized [B, D]; no gradient flows into it.
        queue: Q, earlier teacher features [K, D].
        valid: bool [K], False for unfilled slots; None: all count.
        student_temperature, teacher_temperature: τ_S, τ_T.
        append_batch: the batch's h_T join the anchors (thesis code).
        append_own: each picture's own h_T joins its anchors (SEED). Not together with `append_batch`,
            which contains it.
        batch: h_T of the whole global batch [M, D], what `append_batch` appends; None: `teacher` is that.

    Returns:
        A scalar ≥ 0; 0 when there are no anchors.

    Raises:
        ValueError: both append options at once.
    """
    if append_batch and append_own:
        raise ValueError("append_batch already contains append_own: choose one")
    teacher, queue = teacher.detach(), queue.detach()
    anchors = queue
    if append_batch:
        batch = teacher if batch is None else batch.detach()
        anchors = torch.cat([queue, batch])
        valid = None if valid is None else torch.cat([valid, valid.new_ones(len(batch))])

    def log_probabilities(features: Tensor, temperature: float) -> Tensor:
        logits = features @ anchors.T / temperature
        if valid is not None:
            logits = logits.masked_fill(~valid, MASKED)
        if append_own:
            own = (features * teacher).sum(dim=1, keepdim=True) / temperature
            logits = torch.cat([logits, own], dim=1)
        return F.log_softmax(logits, dim=1)

    return F.kl_div(log_probabilities(student, student_temperature),
                    log_probabilities(teacher, teacher_temperature),
                    reduction="batchmean", log_target=True)

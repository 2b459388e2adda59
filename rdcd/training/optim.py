"""SGD with linear scaling, per-step warm-up from 0, then cosine to 0 (METHOD §3)."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def schedule_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the base learning rate at `step` of `total`, rising linearly over `warmup` steps."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))


def sgd(parameters: Iterable[nn.Parameter], *, lr: float, global_batch: int, total_steps: int, warmup_steps: int,
        momentum: float = 0.9, weight_decay: float = 1e-6,
        ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer and its per-step schedule.

    Args:
        lr: learning rate for a global batch of 256; scaled by `global_batch` / 256.
        global_batch: pictures a step over all ranks.
        total_steps, warmup_steps: length of the schedule and of its rise, in steps.
    """
    optimizer = torch.optim.SGD(parameters, lr=lr * global_batch / 256, momentum=momentum,
                                weight_decay=weight_decay)
    warmup = min(warmup_steps, total_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(step, total=total_steps, warmup=warmup))

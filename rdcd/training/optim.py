"""SGD (or LARS, AdamW, Muon) with linear scaling, per-step warm-up from 0, then cosine to 0 (docs/method.md §3)."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from unittest.mock import patch

import torch
from timm.optim import Lars, Muon, muon
from torch import nn

from rdcd.errors import UserError

ALGORITHMS = ("sgd", "lars", "adamw", "muon")


def schedule_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the base learning rate at `step` of `total`, rising linearly over `warmup` steps."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))


def optimizer_and_schedule(parameters: Iterable[nn.Parameter], *, algorithm: str = "sgd", lr: float,
                           global_batch: int, total_steps: int, warmup_steps: int, momentum: float = 0.9,
                           weight_decay: float = 1e-6,
                           ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer and its per-step schedule.

    Args:
        algorithm: `sgd`, as published; `lars`, SSCD's for batches of thousands: momentum over t·(g + wd·p), with
            t = 0.001·‖p‖ / (‖g‖ + wd·‖p‖ + 1e-8) of each parameter p, vectors too, and 1 where ‖p‖ or ‖g‖ is 0
            (You et al. 2017), whatever wd; `adamw`, which learns from random weights in fewer steps; `muon` (momentum
            whose matrices are orthogonalized, AdamW for vectors), in fewer still: SGD and AdamW first let the
            features of a phone network shrink to a few directions.
        lr: learning rate for a global batch of 256; scaled by `global_batch` / 256.
        global_batch: pictures a step over all ranks.
        total_steps, warmup_steps: length of the schedule and of its rise, in steps.
        momentum: of SGD, LARS and Muon.
        weight_decay: L2 penalty of SGD and LARS (wd), decoupled decay of the others.

    Raises:
        UserError: another algorithm.
    """
    lr = lr * global_batch / 256
    if algorithm == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    elif algorithm == "lars":  # timm's alone would be SGD at a weight decay of 0, with steps a thousand times as long
        optimizer = Lars(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coeff=1e-3, eps=1e-8,
                         always_adapt=True)
    elif algorithm == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    elif algorithm == "muon":
        optimizer = WideMuon(parameters, lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay)
    else:
        raise UserError(f"trainer.optimization.algorithm={algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
    warmup = min(warmup_steps, total_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(step, total=total_steps, warmup=warmup))


class WideMuon(Muon):
    """timm's Muon, whose matrix products are fp32 on a CPU: in its bf16, a CPU without AVX-512 or AMX takes thirty
    times as long, seconds a step for a phone network."""

    def step(self, closure: Callable | None = None):
        """Take a step."""
        name = "zeropower_via_newtonschulz"
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        with patch.object(muon, name, partial(getattr(muon, name), dtype=torch.float32)):
            return super().step(closure)

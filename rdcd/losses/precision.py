"""Every loss computes in fp32 with autocast off, whatever the precision of the networks."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

MASKED = -1e4  # a logit whose softmax weight is exactly 0 in fp32, yet finite: no NaN when all are masked


def in_fp32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss: floating-point tensors arrive as fp32 and autocast is off inside."""

    @functools.wraps(loss)
    def wrapped(*args, **kwargs):
        def up(x):
            return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

        device = next(a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*map(up, args), **{name: up(value) for name, value in kwargs.items()})

    return wrapped


def cut_log(u: Tensor, epsilon: float, form: str = "tangent") -> Tensor:
    """log u for u > ε; below, `tangent`: log ε + u/ε − 1, finite, with slope 1/ε down to u = 0; `clamp`: log ε, flat.

    Raises:
        ValueError: another `form`.
    """
    log = u.clamp(min=epsilon).log()
    if form == "clamp":
        return log
    if form == "tangent":
        return torch.where(u > epsilon, log, math.log(epsilon) + u / epsilon - 1)
    raise ValueError(f"form {form!r}: expected 'tangent' or 'clamp'")

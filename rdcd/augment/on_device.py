"""The photometric half of a view on the device that trains, for whole batches: colours, grey and blur.

Workers leave a view after its geometry and say what is to be done to its values, one row of numbers a view
(`coded`); `edited` does it. JPEG stays with the workers, and with it all edits of a view that has it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from rdcd.augment import steps
from rdcd.augment.colours import kernel_of

KINDS = ("brightness", "contrast", "saturation", "hue")
_GREY, _BLUR, WIDTH = 8, 9, 10  # columns after four pairs of kind (1 to 4; 0: none) and value; and their number
_LUMA = (0.299, 0.587, 0.114)


def coded(edits: Sequence[steps.Step]) -> Tensor | None:
    """Return a view's edits as float32 [WIDTH]; None if they are more than this module can do, in this order."""
    row, place = torch.zeros(WIDTH), 0
    for step in edits:
        kind = next((i for i, known in enumerate((steps.Jittered, steps.Grey, steps.Blurred), start=1)
                     if isinstance(step, known)), 0)
        if kind <= place:
            return None
        place = kind
        if isinstance(step, steps.Jittered):
            for i, (name, value) in enumerate(step.changes):
                row[2 * i], row[2 * i + 1] = 1 + KINDS.index(name), value
        elif isinstance(step, steps.Grey):
            row[_GREY] = 1
        else:
            row[_BLUR] = step.radius
    return row


def split(drawn: Sequence[steps.Step]) -> tuple[Sequence[steps.Step], Tensor]:
    """Part a view's steps in those for a worker and those for the device, coded; all for the worker where need be."""
    cut = next((i for i, step in enumerate(drawn) if isinstance(step, steps.Resized)), len(drawn)) + 1
    while cut < len(drawn) and isinstance(drawn[cut], steps.Mirrored):
        cut += 1
    row = coded(drawn[cut:])
    return (drawn, torch.zeros(WIDTH)) if row is None else (drawn[:cut], row)


def edited(views: Tensor, rows: Tensor) -> Tensor:
    """Do to each view what its row says.

    Args:
        views: uint8 [B, 3, H, W], on any device.
        rows: float32 [B, WIDTH], of `coded`, on the CPU: which edit is for which view is found out there, so that
            nothing waits for a GPU.

    Returns:
        uint8 [B, 3, H, W]; values are rounded after every edit, as in the other ways.
    """
    with torch.autocast(views.device.type, enabled=False):  # bf16 holds 8 bits, of sums too
        return _edited(views, rows)


def _edited(views: Tensor, rows: Tensor) -> Tensor:
    values = views.float()

    def beside(numbers: Tensor) -> Tensor:
        return numbers.pin_memory().to(values.device, non_blocking=True) if values.is_cuda else numbers

    for place in range(4):
        for number, change in enumerate((_brightness, _contrast, _saturation, _hue), start=1):
            chosen = (rows[:, 2 * place] == number).nonzero()[:, 0]
            if len(chosen):
                factors, chosen = beside(rows[chosen, 2 * place + 1]), beside(chosen)
                values[chosen] = change(values[chosen], factors[:, None, None, None]).clamp(0, 255).floor()
    chosen = beside(rows[:, _GREY].nonzero()[:, 0])
    if len(chosen):
        values[chosen] = _luma(values[chosen]).round().expand(-1, 3, -1, -1)
    chosen = rows[:, _BLUR].nonzero()[:, 0]
    if len(chosen):
        kernels, chosen = beside(_kernels(rows[chosen, _BLUR])), beside(chosen)
        values[chosen] = _blurred(values[chosen], kernels).round()
    return values.to(torch.uint8)


def _luma(values: Tensor) -> Tensor:
    return sum(weight * values[:, i:i + 1] for i, weight in enumerate(_LUMA))


def _brightness(values: Tensor, factors: Tensor) -> Tensor:
    return values * factors


def _contrast(values: Tensor, factors: Tensor) -> Tensor:
    means = (_luma(values).round().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return means + factors * (values - means)


def _saturation(values: Tensor, factors: Tensor) -> Tensor:
    grey = _luma(values).round()
    return grey + factors * (values - grey)


def _hue(values: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour circle in HSV, as Pillow does, without rounding in between."""
    most, least = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    span = (most - least).clamp(min=1e-6)
    red, green, blue = values.split(1, dim=1)
    hue = torch.where(most == red, (green - blue) / span,
                      torch.where(most == green, 2 + (blue - red) / span, 4 + (red - green) / span))
    hue = torch.remainder(hue / 6 + torch.trunc(turns * 255) / 256, 1)
    offset = torch.arange(5, 0, -2, device=values.device)[:, None, None]  # of red, green and blue
    place = torch.remainder(offset + 6 * hue, 6)
    return most - (most - least) * torch.minimum(place, 4 - place).clamp(0, 1) + 0.5


def _kernels(deviations: Tensor) -> Tensor:
    """Return Pillow's Gaussian of each deviation, pixels, as a row of float32 [n, 2 reach + 1]."""
    each = [kernel_of(deviation) for deviation in deviations.tolist()]
    reach = max(map(len, each)) // 2
    return torch.from_numpy(np.stack([np.pad(kernel, reach - len(kernel) // 2) for kernel in each])).float()


def _blurred(values: Tensor, kernels: Tensor) -> Tensor:
    """Blur each view by its own kernel along rows and columns; edges are continued."""
    count, channels, height, width = values.shape
    kernels, reach = kernels.repeat_interleave(channels, 0), kernels.shape[1] // 2
    flat = values.reshape(1, count * channels, height, width)
    flat = conv2d(pad(flat, (reach, reach, 0, 0), mode="replicate"), kernels[:, None, None], groups=len(kernels))
    flat = conv2d(pad(flat, (0, 0, reach, reach), mode="replicate"), kernels[:, None, :, None], groups=len(kernels))
    return flat.reshape(values.shape)

"""A batch computed in parts, for want of memory, that stays one batch for the losses."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdcd.models.student import Embedding


class InParts:
    """Calls a student part by part and forgets the activations; the backward pass computes them again.

    The losses see the descriptors of the whole batch, so negatives, queues and the global batch keep their meaning,
    at the price of a second forward pass. BatchNorm normalizes by the statistics of a part; its running ones move
    once a part.

    Args:
        network: what is called; `module` for those who look for it behind a wrapper.
        parts: how many of them, of equal size but for the last.
    """

    def __init__(self, network: nn.Module, parts: int) -> None:
        self.module, self.parts = network, parts

    def __call__(self, pictures: Tensor) -> Embedding:
        """Return what the network gives for pictures [B, 3, H, W]."""
        done = [checkpoint(self.module, part, use_reentrant=False,
                           context_fn=lambda: (nullcontext(), still_statistics(self.module)))
                for part in pictures.chunk(self.parts)]
        return Embedding(*map(torch.cat, zip(*done, strict=True)))


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm as they are, for the batch is passed a second time."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum

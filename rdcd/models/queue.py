"""A ring buffer of descriptors that survives checkpoints (docs/method.md §2)."""

import torch
from torch import Tensor, nn


class DescriptorQueue(nn.Module):
    """First in, first out; features, pointer and fill count are persistent buffers.

    Any batch size works: batches wrap around, and of one longer than the queue the last rows stay.
    Nothing here waits for the device.

    Args:
        size: K, the number of slots.
        dim: length of a descriptor.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @property
    def valid(self) -> Tensor:
        """bool [K]: which slots hold a descriptor; the others must be masked."""
        return torch.arange(self.size, device=self.filled.device) < self.filled

    @torch.no_grad()
    def enqueue(self, descriptors: Tensor) -> None:
        """Append descriptors [B, dim] in row order over the oldest ones."""
        count = len(descriptors)
        kept = descriptors[-self.size:]
        slots = (self.pointer + (count - len(kept)) + torch.arange(len(kept), device=self.pointer.device)) % self.size
        self.features.index_copy_(0, slots, kept.to(self.features.dtype))
        self.pointer.copy_((self.pointer + count) % self.size)
        self.filled.copy_((self.filled + count).clamp(max=self.size))

"""Gathering rows over ranks; with no process group, the identity."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def gather(rows: Tensor) -> Tensor:
    """Return the rows [B, …] of all ranks in rank order; gradients flow back where rows has one."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    if rows.requires_grad:
        return torch.cat(all_gather_with_gradient(rows))
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_objects(value: object) -> list:
    """Return the value of every rank, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values

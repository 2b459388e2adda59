"""Several processes as one: starting them, and gathering over ranks; with no process group, the identity."""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor

from rdcd.errors import UserError


def start(*, devices: int, nodes: int, device: str) -> None:
    """Join the processes that torchrun started; on ranks other than the first, silence standard output.

    Args:
        devices: processes on this machine.
        nodes: machines.
        device: `cpu` (gloo) or `cuda` (NCCL, one GPU a process).

    Raises:
        UserError: torchrun started another number of processes, or none at all.
    """
    wanted, started = devices * nodes, int(os.environ.get("WORLD_SIZE", 1))
    if wanted != started:
        many = f"--nnodes {nodes} --rdzv_backend c10d --rdzv_endpoint HOST:29500" if nodes > 1 else "--standalone"
        launcher = f"torchrun {many} --nproc_per_node {devices}" if wanted > 1 else "python"
        command = f"{launcher} -m rdcd train …"
        raise UserError(f"trainer.devices={devices} and trainer.nodes={nodes} make {wanted} processes, {started} "
                        f"{'was' if started == 1 else 'were'} started: run `{command}`"
                        + (f", or `sh train.sh trainer.devices={devices} …`" if nodes == 1 and wanted > 1 else ""))
    if wanted == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # errors go to standard error


def rank() -> int:
    """Return the number of this process, 0 for the first or only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first_says(value: object) -> object:
    """Return the value that the first rank was given; every rank waits for it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(rows: Tensor) -> Tensor:
    """Return the rows [B, …] of all ranks in rank order; gradients flow back where rows has one."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All rows on every rank; the gradient of a rank's rows is the sum of what every rank's loss gives them."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_objects(value: object) -> list:
    """Return the value of every rank, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values

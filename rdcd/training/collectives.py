"""Several processes as one: starting them, and gathering over ranks; with no process group, the identity."""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor

from rdcd import provenance
from rdcd.data.parallel import end_with_torchrun
from rdcd.errors import UserError

Result = TypeVar("Result")

MEET = timedelta(minutes=10)  # for all processes to come
WAIT = timedelta(hours=2)  # for each other, in a collective: the first one searches alone when it validates

_meeting: dist.Store | None = None  # where they meet, for all runs of a sweep
_runs = 0


def start(*, devices: int, nodes: int, device: str) -> None:
    """Join the processes that torchrun or srun started; on ranks other than the first, silence standard output.

    Args:
        devices: processes on this machine.
        nodes: machines.
        device: `cpu` (gloo) or `cuda` (NCCL, one GPU a process).

    Raises:
        UserError: another number of processes was started, or none at all; this one has no GPU of its own; they do
            not find each other.
    """
    wanted = devices * nodes
    _join_step(devices, nodes)
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if wanted != started:
        words = _words(devices, nodes)
        many = f"--nnodes {nodes} --rdzv_backend c10d --rdzv_endpoint HOST:29500" if nodes > 1 else "--standalone"
        command = f"`python -m rdcd train {words}`" if wanted == 1 else (
            f"`sh train.sh {words}`" + " on every machine (docs/multi-node.md)" * (nodes > 1)
            + f", or `torchrun {many} --nproc_per_node {devices} -m rdcd train` with the same words")
        raise UserError(f"trainer.devices={devices} and trainer.nodes={nodes} make {wanted} processes, {started} "
                        f"{'was' if started == 1 else 'were'} started: run {command}")
    if wanted == 1 or dist.is_initialized():
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(f"WORLD_SIZE={started} says that this is one of {started} processes, and {', '.join(missing)} "
                        f"{'is' if len(missing) == 1 else 'are'} not set: start them by torchrun or srun")
    end_with_torchrun()
    if device == "cuda":
        local, seen = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= seen:
            raise UserError(f"process {local} of this machine needs a GPU of its own, and sees {seen} "
                            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}): every process must "
                            f"see all GPUs of the machine; under SLURM ask for them by --gpus-per-node, not by "
                            f"--gpus-per-task")
        torch.cuda.set_device(local)
    _meet("nccl" if device == "cuda" else "gloo")
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # errors go to standard error


def stop() -> None:
    """Part from the other processes at the end of a run, all at once: the first may have worked on alone.

    Without this wait, the torchrun of another machine would give up five minutes after its own processes have ended,
    and so does `srun --wait`.
    """
    if _meeting is None or not dist.is_initialized():  # alone, or in a group of the caller's own
        return
    key = f"run {_runs} is over"
    try:
        if rank() == 0:
            _meeting.add(key, 1)
        while not _meeting.add(key, 0):
            time.sleep(0.5)  # here, a signal is heard
    except RuntimeError:  # the meeting place has gone with the first process, whose exit code tells
        pass
    dist.destroy_process_group()


class LeftAlone(UserError):
    """Another process of the run has gone, in the middle of what all do together."""

    code = 1

    def __init__(self, error: Exception) -> None:
        reason = re.sub(r"^\[\S+\] ", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
        super().__init__(f"rank {rank()} ends because another has ended or no longer answers ({reason})")


def left_alone(error: Exception) -> bool:
    """Whether an error only says that other processes have gone."""
    signs = "gloo/transport|ncclRemoteError|communicator was aborted|Watchdog caught collective operation timeout"
    return isinstance(error, RuntimeError) and re.search(signs, str(error)) is not None


def _join_step(devices: int, nodes: int) -> None:
    """Take this process for what it is in a step of srun, in torchrun's variables; a step of one task is none."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks == 1 or os.environ.get("WORLD_SIZE"):
        return
    local, machines = int(os.environ["SLURM_LOCALID"]), int(os.environ["SLURM_STEP_NUM_NODES"])
    if tasks != devices * nodes or machines != nodes or local >= devices:
        raise UserError(f"this step of srun has {tasks} tasks on {machines} machines; trainer.devices={devices} and "
                        f"trainer.nodes={nodes} want {devices} on each of {nodes}: run `srun --nodes={nodes} "
                        f"--ntasks-per-node={devices} sh train.sh {_words(devices, nodes)}`")
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    host = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]) if nodes > 1 else "127.0.0.1"
    os.environ |= {"RANK": os.environ["SLURM_PROCID"], "WORLD_SIZE": str(tasks), "LOCAL_RANK": str(local),
                   "LOCAL_WORLD_SIZE": str(devices), "GROUP_RANK": os.environ["SLURM_NODEID"]}
    os.environ.setdefault("MASTER_ADDR", host)
    os.environ.setdefault("MASTER_PORT", str(15000 + (17 * job + step) % 10000))  # one for every step of a machine


def _words(devices: int, nodes: int) -> str:
    """Return the words of the command line that runs, with the numbers of processes that it wants."""
    known = provenance.run_config() is not None
    words = shlex.split(provenance.provenance()["command"])[2:] if known else []
    wanted = {"trainer.devices": devices, "trainer.nodes": nodes}
    added = [f"{key}={number}" for key, number in wanted.items()
             if number > 1 and not any(word.startswith(f"{key}=") for word in words)]
    return " ".join([*added, shlex.join(words) if known else "…"])


def _meet(backend: str) -> None:
    global _meeting, _runs
    try:
        if _meeting is None:
            _meeting, _, _ = next(dist.rendezvous("env://", timeout=MEET))
        _runs += 1
        dist.init_process_group(backend, store=dist.PrefixStore(f"run {_runs}", _meeting), timeout=WAIT,
                                rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"process {os.environ['RANK']} does not find the others at MASTER_ADDR="
                        f"{os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']} ({reason}): set these "
                        f"two to a machine's name that all can resolve and to a port that is free there") from error


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


def first_does(work: Callable[[], Result]) -> Result:
    """Return what `work` returns on the first rank, which alone does it; every rank waits for it.

    Raises:
        UserError: what it raised there, on every rank.
    """
    result = None
    if rank() == 0:
        try:
            result = work()
        except UserError as error:
            result = error
    result = first_says(result)
    if isinstance(result, UserError):
        raise result
    return result


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


@torch.no_grad()
def shuffled(embed: Callable[[Tensor], Tensor], pictures: Tensor, *, seed: tuple[int, ...]) -> Tensor:
    """Embed pictures in batches that are shuffled over ranks (ShuffleBN, He et al. 2020, §3.3); alone, as they are.

    A rank's BatchNorm then sees its keys beside other pictures than its queries, so that the statistics they would
    share do not give the positive away. Pictures go to the rank that embeds them, and only there; their descriptors
    come back.

    Args:
        embed: pictures [B, …] → descriptors [B, d], in whatever order they are; takes no gradient.
        pictures: this rank's, [B, …], as many as every other's.
        seed: of the permutation of the global batch, equal on all ranks.

    Returns:
        The descriptors of this rank's pictures, in their order.
    """
    if world_size() == 1:
        return embed(pictures)
    ranks, count = world_size(), len(pictures)
    mine = slice(rank() * count, (rank() + 1) * count)
    order = np.random.default_rng(seed).permutation(ranks * count)  # place in the shuffled batch → picture
    places = np.argsort(order)[mine]  # where this rank's pictures go
    leaving, coming = (np.bincount(numbers // count, minlength=ranks).tolist() for numbers in (places, order[mine]))
    sent = torch.from_numpy(np.argsort(places)).to(pictures.device, non_blocking=True)  # by the rank that they go to
    layout = torch.channels_last if pictures.is_contiguous(memory_format=torch.channels_last) else None
    received = _exchange(pictures[sent], leaving, coming)
    descriptors = embed(received.contiguous(memory_format=layout) if layout else received)
    returned = torch.empty_like(descriptors)
    returned[sent] = _exchange(descriptors, coming, leaving)
    return returned


def _exchange(rows: Tensor, leaving: list[int], coming: list[int]) -> Tensor:
    """Send rows to the ranks, so many to each in their order, and return what comes from them."""
    received = rows.new_empty(sum(coming), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), coming, leaving)
    return received


def gather_objects(value: object) -> list:
    """Return the value of every rank, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values

"""How the cores are used: several processes over many pictures, or compute threads beside loader workers."""

import atexit
import ctypes
import gc
import multiprocessing.util  # its own exit function is registered before ours, and so called after it
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import torch

from rdcd.data.progress import track
from rdcd.errors import UserError

Job, Result = TypeVar("Job"), TypeVar("Result")
Map = Callable[[Callable[[Job], Result], Sequence[Job], str], Iterator[Result]]
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """Return this process's share of them, where a launcher such as torchrun started several on this machine."""
    return max(available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def share_cores(device: str, *, threads: int | None = None) -> None:
    """Prepare this process to compute beside loader workers; with a GPU, do nothing.

    Compute threads that wait for a core taken by a worker slow each other several times, so half the cores compute
    and `loader_workers` has the others.

    Args:
        device: `cpu` or `cuda`.
        threads: torch's compute threads; None: half the cores, or what OMP_NUM_THREADS says.
    """
    if device == "cpu":
        if threads or "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads or max(own_cores() // 2, 1))
        keep_freed_memory()


def loader_workers(workers: int | None, *, device: str) -> int:
    """Return the number of loader processes: `workers`, or for None the cores computing leaves free, at most 8."""
    if workers is not None:
        return workers
    return min(max(own_cores() - (torch.get_num_threads() if device == "cpu" else 0), 1), 8)


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks, where it is the C library.

    By default it returns them to the system, and every step fetches all its activations again, page by page.
    """
    _mallopt(mmap_max=0, trim_threshold=2**31 - 1, top_pad=2**26)


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`, with the defaults of glibc."""
    _mallopt(mmap_max=65536, trim_threshold=2**17, top_pad=2**17)


def reuse_freed_memory() -> None:
    """Let glibc reuse freed blocks of usual pictures, and return those of large ones: for loader workers."""
    _mallopt(mmap_max=65536, mmap_threshold=2**24, trim_threshold=2**26, top_pad=2**22)


def start_worker(worker: int = 0) -> None:
    """Prepare a loader worker: it outlives the signals that tell the training process, which ends it, to stop.

    What it inherits is left to the garbage collector of the training process: looking through it would copy it.
    """
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    reuse_freed_memory()


@atexit.register
def end_workers() -> None:
    """End loader workers that outlive their loader: Python would ask them to by SIGTERM, and wait for ever."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends, be it by a signal that nobody can hear: on Linux."""
    if sys.platform == "linux":
        parent_death_signal = 1  # of <sys/prctl.h>
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def end_with_torchrun() -> None:
    """Have this process killed when the torchrun that started it is: nobody else would end it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    end_with_parent()
    if os.environ.get("RDCD_LAUNCHER", str(os.getppid())) != str(os.getppid()):  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)


def _mallopt(**values: int) -> None:
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt, numbers = ctypes.CDLL(None).mallopt, {"mmap_max": -4, "mmap_threshold": -3, "trim_threshold": -1,
                                                        "top_pad": -2}  # of malloc.h
    for name, value in values.items():
        mallopt(numbers[name], value)


@contextmanager
def process_map(workers: int | None = None) -> Iterator[Map]:
    """Yield `map(function, jobs, label)`, an iterator of results in the order of the jobs, with progress.

    Processes are spawned at the first use and compute with one thread each.

    Args:
        workers: processes; 1: none but this one; None: one a core, at most 16.

    Raises:
        UserError: `workers` is below 1, or a process was killed.
    """
    workers = min(available_cores(), 16) if workers is None else workers
    if workers < 1:
        raise UserError(f"workers={workers}: expected at least 1 process, or null for one a core")
    pool = None
    if workers > 1:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)

    def run(function: Callable[[Job], Result], jobs: Sequence[Job], label: str) -> Iterator[Result]:
        with track(len(jobs), label) as advance, _environment(dict.fromkeys(_ONE_THREAD, "1")):
            if pool is None:
                results = map(function, jobs)
            else:
                results = pool.map(function, jobs, chunksize=max(1, min(16, len(jobs) // (8 * workers))))
            for result in results:
                yield result
                advance(1)

    try:
        yield run
    except BrokenProcessPool:
        raise UserError(f"one of workers={workers} processes was killed, most likely for want of memory: "
                        f"try workers={max(1, workers // 2)}, or smaller pictures") from None
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears Ctrl-C and ends the others
    end_with_parent()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that libraries read when they are imported, for the processes spawned meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

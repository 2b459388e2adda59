"""Descriptors written shard by shard, so that an extraction that was killed goes on where it was."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from rdcd.data.images import write_ledger
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import end_with_torchrun
from rdcd.errors import BadImage, UserError
from rdcd.files import atomic_path, write_json
from rdcd.retrieval.descriptors import write_blocks


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started, each with its share of the shards."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def join(cls, device: str) -> "Process":
        """Meet the others, if there are any; on a GPU, take the one of this process.

        Raises:
            UserError: this process has no GPU of its own.
        """
        world_size, rank = (int(os.environ.get(name) or default) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
        if world_size == 1:
            return cls()
        end_with_torchrun()
        if device == "cuda":
            local, seen = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
            if local >= seen:
                raise UserError(f"process {local} of this machine needs a GPU of its own, and sees {seen}: start at "
                                f"most {seen}, or compute on the CPU (device=cpu)")
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=14))  # the first to finish waits for the last
        return cls(rank, world_size)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    def part(self) -> None:
        """Leave the others, at the end."""
        if self.world_size > 1:
            dist.destroy_process_group()


class Shards:
    """The folder of finished shards beside the file to come: `plan.json`, and of each shard an array and its JSON.

    A shard's vectors are a memory-mapped `.npy`, float32 [n, d]; its `.json`, written last, says that it is whole and
    which of its pictures could not be read. Nothing but whole files has a final name.

    Args:
        out: the descriptor file to come; the folder is `<out>.parts`.
        plan: whatever decides the numbers; shards of another plan are refused.
        pictures: which.
        dim: length of a descriptor.
        shard: pictures of each, but for the last.

    Raises:
        UserError: the folder holds shards of another plan.
    """

    def __init__(self, out: str | Path, *, plan: dict, pictures: Manifest, dim: int, shard: int) -> None:
        self.out, self.pictures, self.dim = Path(out), pictures, dim
        self.folder = self.out.with_name(f"{self.out.name}.parts")
        self.ledger = self.out.with_name(f"{self.out.stem}-bad_files.csv")  # of the whole
        self.rows = [range(start, min(start + shard, len(pictures))) for start in range(0, len(pictures), shard)]
        before = self.folder / "plan.json"
        if before.is_file():
            other = json.loads(before.read_text(encoding="utf-8"))
            if differing := [key for key in plan | other if plan.get(key) != other.get(key)]:
                changes = ", ".join(f"{key} was {other.get(key)} and is {plan.get(key)}" for key in differing)
                raise UserError(f"{self.folder} holds the beginning of another extraction ({changes}): give the former "
                                f"settings to finish it, or remove that folder to begin anew")
        write_json(before, plan)

    def array(self, number: int) -> Path:
        """Return the path of a shard's vectors."""
        return self.folder / f"{number:06d}.npy"

    def done(self, number: int) -> bool:
        """Whether a shard is whole."""
        return self.array(number).with_suffix(".json").is_file()

    def bad(self, number: int) -> dict[int, BadImage]:
        """Return the unreadable pictures of a finished shard by their numbers."""
        said = json.loads(self.array(number).with_suffix(".json").read_text(encoding="utf-8"))["bad"]
        return {index: BadImage(path, reason) for index, path, reason in said}

    def write(self, number: int, groups: Iterator[tuple[list[int], np.ndarray]], bad: dict[int, BadImage]) -> None:
        """Fill a shard from (indices, vectors), in any order; `bad` is filled meanwhile."""
        rows = self.rows[number]
        with atomic_path(self.array(number)) as partial:
            vectors = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(rows), self.dim))
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash where it is first written to
                with open(partial, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            found = np.zeros(len(rows), dtype=bool)
            for indices, values in groups:
                places = np.array(indices) - rows.start
                vectors[places], found[places] = values, True
            vectors.flush()
            if int(found.sum()) + len(bad) != len(rows):
                raise RuntimeError(f"shard {number}: {found.sum()} descriptors and {len(bad)} unreadable pictures of "
                                   f"{len(rows)}")
        write_json(self.array(number).with_suffix(".json"),
                   {"bad": [[index, error.path, error.reason] for index, error in sorted(bad.items())]})

    def merge(self) -> list[BadImage]:
        """Write the descriptor file, and before it the list of unreadable pictures; return these.

        Both are made in the folder of shards, so that a kill leaves nothing unfinished beside the file to come.

        Raises:
            UserError: not one picture could be read, or a descriptor is not finite.
        """
        bad = {index: error for number in range(len(self.rows)) for index, error in self.bad(number).items()}
        if len(bad) == len(self.pictures):
            first = bad[0]
            raise UserError(f"none of the {len(bad)} pictures under {self.pictures.root} could be read, the first "
                            f"{first.path} ({first.reason})")
        names = self.pictures.names

        def blocks() -> Iterator[tuple[list[str], np.ndarray]]:
            for number, rows in enumerate(self.rows):
                kept = [index for index in rows if index not in bad]
                vectors = np.load(self.array(number), mmap_mode="r")[np.array(kept, dtype=np.int64) - rows.start]
                yield [names[index] for index in kept], vectors

        whole, listed = self.folder / "whole.h5", self.folder / "bad_files.csv"
        write_blocks(whole, blocks(), names=[name for i, name in enumerate(names) if i not in bad], dim=self.dim,
                     missing=[names[index] for index in sorted(bad)])
        if bad:
            write_ledger(listed, list(bad.values()))
            os.replace(listed, self.ledger)
        os.replace(whole, self.out)
        return list(bad.values())

    def remove(self) -> None:
        """Delete the folder; what is left of it if that is cut short counts as no shard."""
        for number in range(len(self.rows)):
            self.array(number).with_suffix(".json").unlink()
        shutil.rmtree(self.folder)

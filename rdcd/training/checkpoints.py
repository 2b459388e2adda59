"""Checkpoints that are whole or absent, and runs that go on from them with the settings they are given."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.io import TorchCheckpointIO

from rdcd.errors import UserError
from rdcd.files import atomic_path
from rdcd.models.student import FORMER, check_fit
from rdcd.models.weights import read_checkpoint
from rdcd.training.optim import schedule_factor


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, to the disk, then renames; the `last.ckpt` before becomes `previous.ckpt`.

    Lightning's own goes by way of the system's temporary folder, from which, on another disk, the last step is a copy
    that an interruption cuts short.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write `checkpoint` to `path`."""
        path = Path(path)
        with atomic_path(path) as partial:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == "last.ckpt" and path.is_file():
                os.replace(path, path.with_name("previous.ckpt"))


def latest_sound(folder: Path) -> Path | None:
    """Return the checkpoint in `folder` of most steps that can be read; None where there is none at all.

    What cannot be read is said, and kept under a name ending in `.damaged`; what a killed process left half-written is
    removed.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    for partial in folder.glob(".*.partial.ckpt"):
        partial.unlink()
    best, steps, damaged = None, -1, []
    for path in sorted(folder.glob("*.ckpt")):  # best, last, previous
        try:
            done = int(read_checkpoint(path).get("global_step", 0))
        except UserError as error:
            damaged.append((path, error))
            continue
        if done > steps or done == steps and path.name == "last.ckpt":
            best, steps = path, done
    if damaged and best is None:
        raise damaged[0][1]
    for path, error in damaged:
        kept = path.with_name(f"{path.name}.damaged")
        path.replace(kept)
        print(f"warning: {error}; it is now called {kept.name}, and {best.name}, after step {steps}, takes its place",
              file=sys.stderr, flush=True)
    return best


def random_state() -> dict:
    """Return the state of the generators of Python, NumPy and torch, as tensors and plain types."""
    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def restore_random_state(state: dict) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def resettle(checkpoint: dict, *, lr: float, momentum: float, weight_decay: float, total_steps: int,
             warmup_steps: int) -> None:
    """Put a run's present settings into a loaded checkpoint, whose optimizer remembers the former ones.

    Args:
        checkpoint: Lightning's, changed in place.
        lr: learning rate scaled to the global batch.
        momentum, weight_decay: as `optimizer_and_schedule` takes them.
        total_steps, warmup_steps: of the schedule.
    """
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            group |= {"initial_lr": lr, "weight_decay": weight_decay,
                      "lr": lr * schedule_factor(checkpoint["global_step"], total=total_steps, warmup=warmup_steps)}
            if "momentum" in group:
                group["momentum"] = momentum
    for state in checkpoint["lr_schedulers"]:
        state["base_lrs"] = [lr] * len(state["base_lrs"])


def check_resumable(checkpoint: dict, module: LightningModule, *, path: Path) -> None:
    """Refuse to continue a run with other networks, queues, batches or views than it was begun with.

    Args:
        checkpoint: as loaded.
        module: what is to continue; its `card` says how.

    Raises:
        UserError: what differs.
    """
    card, present = checkpoint["card"].get("training", {}), module.card["training"]
    for key, name in (("batch_size", "data.batch_size"), ("view_size", "data.size"), ("objective", "loss"),
                      ("pictures", "the number of training pictures"), ("teacher_sha256", "a teacher with the hash")):
        if card.get(key) != present.get(key):
            raise UserError(f"{path} was written at {name} {card.get(key)}, this run has {present.get(key)}: continue "
                            f"with the former, or start a new run")
    check_fit(module.state_dict(), checkpoint["state_dict"], path=path,
              what="this run's networks and queues (student.*, loss.queue_size)")
    former, here = (FORMER | one["architecture"] for one in (checkpoint["card"], module.card))
    for key in FORMER:
        if former[key] != here[key]:
            raise UserError(f"{path} was written at student.{key}={former[key]}, this run has {here[key]}: continue "
                            f"with the former, or start a new run")

"""Checkpoints that are whole or absent, and runs that go on from them with the settings they are given."""

from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.io import TorchCheckpointIO

from rdcd.errors import UserError
from rdcd.files import atomic_path
from rdcd.models.student import check_fit
from rdcd.training.optim import schedule_factor


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames; Lightning's own goes by way of the system's temporary folder, from
    which, on another disk, the last step is a copy that an interruption cuts short."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write `checkpoint` to `path`."""
        with atomic_path(path) as partial:
            torch.save(checkpoint, partial)


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

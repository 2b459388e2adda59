"""Checkpoints on the way, and an orderly end when the system asks for one."""

import signal
import threading
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Checkpoint

from rdcd.errors import UserError
from rdcd.training import collectives

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers that take a machine back


class Stopped(UserError):
    """A run that was told to end and left a checkpoint; its exit code is the shell's for the signal."""

    def __init__(self, number: int, *, step: int, run: Path) -> None:
        self.code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which {run} holds: "
                         f"`rdcd train resume={run}` continues")


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`: every so many steps, before a validation, at the end of every epoch, and on SIGTERM or
    SIGUSR1, after which every rank stops with `Stopped`.

    A signal that reaches one rank stops them all after the same step: they agree on it while the next one computes.

    Args:
        folder: of the checkpoints.
        every: steps between checkpoints; 0: only at the ends of epochs.
        run: the folder to name as what `resume` takes.
    """

    def __init__(self, folder: Path, *, every: int, run: Path) -> None:
        self.path, self.every, self.run = folder / "last.ckpt", every, run
        self.told, self._group, self._vote = 0, None, None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # in place of Lightning's, which puts back what was there before
                signal.signal(number, self._hear)
        if collectives.world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def _hear(self, number: int, frame: object) -> None:
        self.told = number

    def _agreed(self) -> int:
        """Return the signal that some rank had heard one step ago, 0 for none; alone, at once."""
        if self._group is None:
            return self.told
        agreed = 0
        if self._vote is not None:
            work, votes = self._vote
            work.wait()
            agreed = int(votes)
        votes = torch.tensor(self.told)
        self._vote = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group, async_op=True), votes
        return agreed

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *arguments) -> None:
        told = self._agreed()
        if trainer.is_last_batch:  # the end of the epoch follows, and saves again
            due = module.benchmark is not None and (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        else:
            due = self.every and trainer.global_step % self.every == 0
        if told or due:
            self._save(trainer, module)
        if told:
            raise Stopped(told, step=trainer.global_step, run=self.run)

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments, **named) -> None:
        if self.told and trainer.state.fn == "fit":
            raise Stopped(self.told, step=trainer.global_step, run=self.run)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer, module)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        with module.clock.part("checkpoints"):
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._vote is not None:
            self._vote[0].wait()

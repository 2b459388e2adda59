"""The Lightning module: one step of an objective, and the benchmark's µAP as validation."""

import time
from dataclasses import dataclass
from functools import partial

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rdcd.augment import on_device
from rdcd.data.disc import Benchmark
from rdcd.data.views import EDITS, VIEWS
from rdcd.errors import UserError, check_number
from rdcd.evaluation.extract import assemble
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student
from rdcd.training import collectives
from rdcd.training.checkpoints import random_state, resettle, restore_random_state
from rdcd.training.clock import Clock
from rdcd.training.collectives import gather, gather_objects, shuffled
from rdcd.training.nonfinite import asked, check_finite
from rdcd.training.objectives import Outcome, unshuffled
from rdcd.training.optim import ALGORITHMS, optimizer_and_schedule
from rdcd.training.parts import InParts
from rdcd.training.watch import measured, write_histograms


@dataclass(frozen=True)
class Optimization:
    """The recipe of docs/method.md §3; lr is for a global batch of 256; `clip` bounds the gradient's norm."""

    algorithm: str = "sgd"
    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-6
    warmup_epochs: float = 5.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UserError(f"optimization.algorithm={self.algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
        for name in ("lr", "momentum", "weight_decay", "warmup_epochs", "clip"):
            check_number(f"optimization.{name}", getattr(self, name), 0, 1 if name == "momentum" else None, whole=False,
                         null="no bound" if name == "clip" else None)


class CopyDetection(pl.LightningModule):
    """Trains a student under an objective.

    Checkpoints hold `student.*`, `objective.*` (momentum encoder, queues), never the teacher, and
    under `card` what is needed to use the student.

    Args:
        student: the network.
        objective: `rdcd.training.objectives`.
        optimization: learning rate and its like.
        epochs, steps_per_epoch, global_batch: length and width of the run.
        card: plain dict that travels in checkpoints.
        benchmark, protocol: what validation measures; None: no validation.
        channels_last: memory format of pictures and weights.
        accumulate: parts that the student computes a batch in, see `InParts`.
        shuffle_seed: shuffle keys over ranks, see `shuffled`, every step by this seed and its number; None: do not.
    """

    def __init__(self, *, student: Student, objective: torch.nn.Module, optimization: Optimization, epochs: int,
                 steps_per_epoch: int, global_batch: int, card: dict, benchmark: Benchmark | None = None,
                 protocol: Protocol | None = None, channels_last: bool = False, accumulate: int = 1,
                 shuffle_seed: int | None = None) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.optimization, self.card = optimization, card
        self.epochs, self.steps_per_epoch, self.global_batch = epochs, steps_per_epoch, global_batch
        self.benchmark, self.protocol = benchmark, protocol
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self.accumulate, self.shuffle_seed = accumulate, shuffle_seed
        self._extracted: list = []
        self._random_state: dict | None = None
        self.clock = Clock()
        self.waited = 0.0  # seconds that this process had no batch to work on

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks of a step by name, for what concerns each of them."""
        keys, teacher = (getattr(self.objective, name, None) for name in ("key_encoder", "teacher"))
        return ({"student": self.student} | ({"key encoder": keys.network} if keys else {})
                | ({"teacher": teacher.network} if teacher else {}))

    def compile_networks(self) -> None:
        """Compile every network of a step in place: names of weights stay as they are."""
        networks = self.networks()
        if teacher := networks.pop("teacher", None):
            if any(isinstance(part, torch.jit.ScriptModule) for part in teacher.modules()):
                print("note: the teacher is TorchScript, which runs as it was traced: it is not compiled", flush=True)
            else:  # as it is called, for `embed` of a network need not come by its own call
                networks["teacher"] = self.objective.teacher
        for network in networks.values():
            network.compile()

    def configure_optimizers(self):
        o = self.optimization
        optimizer, schedule = optimizer_and_schedule(
            self.student.parameters(), algorithm=o.algorithm, lr=o.lr, global_batch=self.global_batch,
            momentum=o.momentum, weight_decay=o.weight_decay, **self._lengths())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lengths(self) -> dict[str, int]:
        total = self.epochs * self.steps_per_epoch
        return {"total_steps": total,
                "warmup_steps": min(round(self.optimization.warmup_epochs * self.steps_per_epoch), total)}

    def prepare(self, pictures: Tensor) -> Tensor:
        """Turn uint8 pictures [B, 3, H, W] into floats in [0, 1] in the run's memory format."""
        return (pictures.float() / 255).contiguous(memory_format=self.memory_format)

    @property
    def logging_step(self) -> bool:
        """Whether loggers write the step under way."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    def on_train_epoch_start(self) -> None:
        self._wait()

    def on_train_batch_start(self, batch: dict, batch_index: int) -> None:
        self.waited += time.monotonic() - self._waiting[0]
        self.clock.since(self._waiting[1], "data")

    def on_train_batch_end(self, outputs: object, batch: dict, batch_index: int) -> None:
        self._wait()  # the callbacks are done, checkpoints written

    def _wait(self) -> None:
        """Begin to wait for the next batch."""
        self._waiting = time.monotonic(), self.clock.now()

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        with self.clock.part("data"):
            for name, edits in zip(VIEWS, EDITS, strict=True):
                if edits in batch:
                    batch[name] = on_device.edited(batch[name], batch.pop(edits))
            query, key = self.prepare(batch["query"]), self.prepare(batch["key"])
        student = self.student if self.accumulate == 1 else InParts(self.student, self.accumulate)
        shuffle = unshuffled if self.shuffle_seed is None else partial(
            shuffled, seed=(self.shuffle_seed, self.global_step))
        outcome: Outcome = self.objective(student, query, key, batch["index"], gather, self.clock.part, shuffle)
        self.shown_loss = outcome.total.detach()
        self._check = partial(check_finite, asked(outcome.total), outcome, batch, module=self)
        self._remember = outcome.remember
        if self.logging_step:
            with self.clock.part("logging"):
                self._check()
                scalars, histograms = measured(outcome, self.objective, global_batch=self.global_batch, gather=gather)
                self.log_dict({f"train/{name}": value for name, value in scalars.items()}
                              | {"train/lr": self.optimizers().param_groups[0]["lr"]})
                write_histograms(self.loggers, histograms, step=self.global_step)
        return outcome.total

    def on_before_backward(self, loss: Tensor) -> None:
        self._since = self.clock.now()

    def on_after_backward(self) -> None:
        self.clock.since(self._since, "backward")
        self._since = self.clock.now()
        self._check()
        self._remember()
        self._check = self._remember = None  # and what they hold of the step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logging_step:  # of the whole batch, before it is clipped
            norms = [p.grad.norm() for p in self.student.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.stack(norms).norm())

    def optimizer_step(self, *arguments, **named) -> None:
        super().optimizer_step(*arguments, **named)  # which computes the step, too
        self.clock.since(self._since, "optimizer")

    def on_train_start(self) -> None:
        self._wait()  # a run that goes on within an epoch has no start of one
        if self._random_state is not None:  # here, as what comes before draws numbers that a whole run did not
            restore_random_state(self._random_state)

    def on_validation_start(self) -> None:
        if collectives.world_size() > 1:  # every rank embeds its share with the network that is kept
            for buffer in self.student.buffers():
                dist.broadcast(buffer, src=0)

    def validation_step(self, batch: list, batch_index: int, dataloader_idx: int = 0) -> None:
        # unreadable pictures, batch[1], leave no part: `assemble` lists whatever is absent as missing
        for indices, pictures in batch[0]:
            descriptors = self.student.embed(self.prepare(pictures)).cpu().numpy()
            self._extracted.append((dataloader_idx, indices, descriptors))

    def on_validation_epoch_end(self) -> None:
        from rdcd.evaluation.score import score_descriptors

        parts = [part for rank in gather_objects(self._extracted) for part in rank]
        self._extracted = []
        roles = (self.benchmark.queries, self.benchmark.references, self.benchmark.background)
        query, reference, background = (
            assemble(role, [(indices, vectors) for loader, indices, vectors in parts if loader == i], self.student.dim)
            for i, role in enumerate(roles))
        rows = score_descriptors(query, reference, background, self.benchmark.pairs, codecs=["Flat"],
                                 score_norms=self.protocol.score_norms, candidates=self.protocol.candidates,
                                 k=self.protocol.k)
        # the first of several normalizations: Lightning would average what is logged twice
        first = {"_SN" if row.score_norm else "": row.metrics for row in reversed(rows)}
        for suffix, metrics in first.items():
            self.log(f"val/uAP{suffix}", metrics.uAP, prog_bar=True, sync_dist=False, rank_zero_only=False)
            self.log(f"val/recall_at_p90{suffix}", metrics.recall_at_p90)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        training = self.card.get("training", {}) | {"steps_done": self.global_step}
        checkpoint["card"] = self.card | {"training": training}
        checkpoint["random"] = gather_objects(random_state())  # of every rank

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        states, rank = checkpoint.get("random", []), collectives.rank()
        self._random_state = states[rank] if rank < len(states) else None
        o = self.optimization
        resettle(checkpoint, lr=o.lr * self.global_batch / 256, momentum=o.momentum, weight_decay=o.weight_decay,
                 **self._lengths())
